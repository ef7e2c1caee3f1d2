"""Where a result comes from: versions, revision, seed, command, weights and machine, beside it."""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

import torch

from vissl_barlow.libraries import checkout_commit, library_sources, library_versions
from vissl_barlow.paths import PACKAGE
from vissl_barlow.patient_files import read_bytes, read_json, replace
from vissl_barlow.run_files import CONFIG_FILE, NEXT_CONFIG_FILE
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
    seed: int,
    command: Sequence[str],
    weights: str | os.PathLike | None,
    processes: int,
    data: Mapping[str, Mapping[str, Any]],
    derived: Sequence[Mapping[str, Any]] = (),
) -> dict:
    """What makes a run, as plain data for JSON; the arguments are `write_provenance`'s."""
    own = {"python": platform.python_version(), "vissl_barlow": __version__}
    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "hours": None,
        "command": list(command),
        "weights": _weights(weights),
        "data": data,
        **({"derived": list(derived)} if derived else {}),
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
    data: Mapping[str, Mapping[str, Any]] | None = None,
    derived: Sequence[Mapping[str, Any]] = (),
    anew: bool | None = None,
) -> None:
    """Appends this start to the run's provenance: a list, one entry per start or resume.

    Earlier starts that left nothing, as far as it is known, are taken out.

    Args:
        folder: the run's.
        seed: its seed.
        command: the command line the user typed; a spawned worker's own is another.
        weights: the checkpoint the run starts from, which is hashed; None or "" for a random start.
        processes: over all machines.
        data: of each split, "train" or "test", how many `images` and `classes` (None without labels) it
            has, the `paths` of its folders or lists, and its `source`. Entries of older versions have
            no `data`, or of detection an empty one.
        derived: the values that nobody gave and that were chosen, each a `key`, a `value` and a
            `reason`; of no other runs is there such an entry.
        anew: whether it begins from nothing, where False is a resume: `note_left` is then to be called
            when the start has left something. None: nobody will tell.

    What cannot be written, on a full disk, is written when it can be (`patient_files`); a file that is
    damaged is set aside.

    Raises:
        OSError: the weights are there but cannot be read.
        FolderGone: there is no folder.
    """
    start = provenance(seed, command, weights, processes, data or {}, derived)
    if anew is not None:
        start |= {"anew": anew, "left": False}
    _noted[folder] = start, time.monotonic()
    _write(folder, [*filter(_left, _earlier_starts(folder)), start])


def note_left(folder: Path) -> None:
    """Notes that the last start has left a checkpoint or a result.

    If it began anew, these have taken the place of what earlier starts left, and it is the only one; so
    has its config.

    Raises:
        ValueError: no start was written to `folder`.
        FolderGone: there is no folder.
    """
    *earlier, last = _starts_so_far(folder)
    if not _left(last):
        _write(folder, [*([] if last["anew"] else earlier), {**last, "left": True}])
        config = folder / NEXT_CONFIG_FILE
        if (content := read_bytes(config)) is not None:
            replace(folder / CONFIG_FILE, content)
            config.unlink(missing_ok=True)


def has_left_something(folder: Path) -> bool:
    """Whether one of the starts in `folder` left a checkpoint or a result."""
    return any(map(_left, _earlier_starts(folder)))


def derived_values(folder: Path) -> tuple[dict[str, Any], int]:
    """What was chosen, by its key, where the run in `folder` was begun, and by how many processes it
    was; nothing and 0 if it has left nothing, or nothing was chosen."""
    for start in filter(_left, _earlier_starts(folder)):
        derived = start.get("derived")
        if _are_derived(derived):
            return {each["key"]: each["value"] for each in derived}, start["processes"]
        break
    return {}, 0


def _are_derived(value: object) -> TypeGuard[list[dict]]:
    return isinstance(value, list) and all(
        isinstance(each, dict) and isinstance(each.get("key"), str) and "value" in each
        for each in value
    )


def counted_starts(starts: Sequence[dict]) -> list[dict]:
    """Those that the content of the run's folder is of: not those that left nothing, but for the last
    where none left anything."""
    return [*filter(_left, starts)] or [*starts[-1:]]


def _left(start: dict) -> bool:
    """Whether a start left anything; those of earlier versions do not say, and may have."""
    return start.get("left", True)


def note_hours(folder: Path) -> None:
    """Notes the hours since the last start: what a run that is killed later has taken so far.

    Raises:
        ValueError: no start was written to `folder`.
        FolderGone: there is no folder.
    """
    own, began = _noted.get(folder, ({}, 0.0))
    *earlier, last = _starts_so_far(folder)
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


def _starts_so_far(folder: Path) -> list[dict]:
    """This process's own too, where the file is gone, or was damaged and is set aside."""
    own, _ = _noted.get(folder, ({}, 0.0))
    return _earlier_starts(folder) or ([own] if own else [])


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
