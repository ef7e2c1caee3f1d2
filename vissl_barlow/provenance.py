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

from vissl_barlow.libraries import checkout_commit, library_sources, library_versions
from vissl_barlow.paths import PACKAGE
from vissl_barlow.patient_files import read_json, replace
from vissl_barlow.version import __version__

PROVENANCE_FILE = "barlow_run.json"

# The starts that this process has noted, by folder, and when, in seconds of a clock that nobody sets.
_noted: dict[Path, tuple[dict, float]] = {}

# What is read of an entry, here and by the report.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "started": str,
    "hours": (int, float, type(None)),
    "command": list,
    "weights": (dict, type(None)),
    "seed": int,
    "processes": int,
    "hardware": str,
}


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

    What cannot be written, on a full disk, is written when it can be (`patient_files`); a file that is
    damaged is set aside.

    Raises:
        OSError: the weights are there but cannot be read.
        FolderGone: there is no folder.
    """
    start = provenance(seed, command, weights, processes)
    _noted[folder] = start, time.monotonic()
    _write(folder, [*_earlier_starts(folder), start])


def note_hours(folder: Path) -> None:
    """Notes the hours since the last start: what a run that is killed later has taken so far.

    Raises:
        ValueError: no start was written to `folder`.
        FolderGone: there is no folder.
    """
    own, began = _noted.get(folder, ({}, 0.0))
    *earlier, last = _earlier_starts(folder) or ([own] if own else [])
    if last["started"] != own.get("started"):  # of another process, whose clock is the wall's
        elapsed = datetime.now(UTC) - datetime.fromisoformat(last["started"])
        seconds = max(elapsed.total_seconds(), 0.0)
    else:
        seconds = time.monotonic() - began
    _write(folder, [*earlier, {**last, "hours": round(seconds / 3600, 4)}])


def read_provenance(folder: Path) -> list[dict]:
    """The starts of the run in `folder`, oldest first; none where nothing was written."""
    path = folder / PROVENANCE_FILE
    return json.loads(path.read_text()) if path.exists() else []


def _earlier_starts(folder: Path) -> list[dict]:
    return read_json(folder / PROVENANCE_FILE, _are_starts) or []


def _are_starts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(start, dict)
        and all(isinstance(start.get(key), kind) for key, kind in _TYPES.items())
        and all(isinstance(word, str) for word in start["command"])
        for start in value
    )


def _weights(path: str | os.PathLike | None) -> dict | None:
    if not path:
        return None
    # A resumed run has no need of the file any more; its first start named the hash.
    digest = file_sha256(path) if Path(path).exists() else None
    return {"path": str(Path(path).resolve()), "sha256": digest}


def _write(folder: Path, starts: list[dict]) -> None:
    replace(folder / PROVENANCE_FILE, json.dumps(starts, indent=2) + "\n")
