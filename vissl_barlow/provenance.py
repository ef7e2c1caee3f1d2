"""Where a result comes from: versions, revision, seed, command, weights and machine, beside it."""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from vissl_barlow.atomic_files import write_text_atomically
from vissl_barlow.libraries import checkout_commit, library_sources, library_versions
from vissl_barlow.paths import PACKAGE
from vissl_barlow.version import __version__

PROVENANCE_FILE = "barlow_run.json"

# When this process began the starts that it has noted, by folder and the time noted, in seconds of a
# clock that nobody sets.
_began: dict[tuple[Path, str], float] = {}


def command_line() -> list[str]:
    """This process's own, as it was typed except for the interpreter's folder."""
    return [Path(sys.executable).name, *sys.orig_argv[1:]]


def file_sha256(path: str | os.PathLike) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(
    seed: int, command: Sequence[str], weights: str | os.PathLike | None, processes: int
) -> dict:
    """What makes a run, as plain data for JSON; the arguments are `write_provenance`'s."""
    own = {"python": platform.python_version(), "vissl_barlow": __version__}
    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "hours": None,
        "command": list(command),
        "weights": _weights(weights),
        "seed": seed,
        "versions": {**own, **library_versions()},
        "sources": library_sources(),
        "revision": checkout_commit(PACKAGE.parent),  # None for an installed wheel
        "processes": processes,
        "hardware": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores",
    }


def write_provenance(
    folder: Path,
    seed: int,
    command: Sequence[str],
    *,
    weights: str | os.PathLike | None = None,
    processes: int = 1,
) -> None:
    """Appends this start to the run's provenance: a list, one entry per start or resume.

    Args:
        folder: the run's.
        seed: its seed.
        command: the command line the user typed; a spawned worker's own is another.
        weights: the checkpoint the run starts from, which is hashed; None or "" for a random start.
        processes: over all machines.

    Raises:
        OSError: the weights are there but cannot be read, or the folder cannot be written.
    """
    start = provenance(seed, command, weights, processes)
    _began[folder, start["started"]] = time.monotonic()
    _write(folder, [*read_provenance(folder), start])


def note_hours(folder: Path) -> None:
    """Notes the hours since the last start: what a run that is killed later has taken so far.

    Raises:
        ValueError: no start was written to `folder`.
        OSError: the folder cannot be written.
    """
    *earlier, last = read_provenance(folder)
    began = _began.get((folder, last["started"]))
    if began is None:  # of another process, whose clock is the wall's
        elapsed = datetime.now(UTC) - datetime.fromisoformat(last["started"])
        seconds = max(elapsed.total_seconds(), 0.0)
    else:
        seconds = time.monotonic() - began
    _write(folder, [*earlier, {**last, "hours": round(seconds / 3600, 4)}])


def read_provenance(folder: Path) -> list[dict]:
    """The starts of the run in `folder`, oldest first; none where nothing was written."""
    path = folder / PROVENANCE_FILE
    return json.loads(path.read_text()) if path.exists() else []


def _weights(path: str | os.PathLike | None) -> dict | None:
    if not path:
        return None
    # A resumed run has no need of the file any more; its first start named the hash.
    digest = file_sha256(path) if Path(path).exists() else None
    return {"path": str(Path(path).resolve()), "sha256": digest}


def _write(folder: Path, starts: list[dict]) -> None:
    write_text_atomically(folder / PROVENANCE_FILE, json.dumps(starts, indent=2) + "\n")
