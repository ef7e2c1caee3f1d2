"""What a pretraining run leaves in its folder, beside VISSL's files and its provenance."""

import contextlib
import json
from pathlib import Path

from vissl_barlow.regular_files import MAX_LIST_BYTES, read_regular

CONFIG_FILE = "train_config.yaml"  # VISSL's
# The config of a start that is to replace the run in its folder, until it has left something there.
NEXT_CONFIG_FILE = "train_config.next.yaml"
METRICS_FILE = "barlow.jsonl"
PROBE_FILE = "barlow_probe.json"
# What the probe calls the trunk before its first step: of a random start, and with a file's weights.
UNTRAINED, AT_ITS_START = "untrained trunk", "trunk at its start"
FIGURE_FILE = "barlow.png"
MAP_FILE = "barlow_map.png"


def read_history(folder: Path) -> list[dict]:
    """The logged steps of a run, in order; a step repeated after a resume counts once, the last.

    A line that is damaged, or no entry, is left out.

    Raises:
        OSError: nothing was logged (FileNotFoundError), or the log is no regular file.
    """
    by_iteration = {}
    log = read_regular(folder / METRICS_FILE, MAX_LIST_BYTES)
    for line in log.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and type(entry.get("iteration")) is int:
                by_iteration[entry["iteration"]] = entry
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]
