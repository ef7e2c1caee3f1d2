"""The folders below RUNS_DIR that hold runs, and which of their files may be read.

Whoever reads a report has not seen the tree of runs, which may have been sent or copied: nothing
outside it is read, nor what never ends, and what a run noted has the shape that this package writes.
"""

import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from vissl_barlow.provenance import PROVENANCE_FILE, counted_starts, read_provenance
from vissl_barlow.run_files import METRICS_FILE, read_history

CHECKPOINT = "checkpoint.torch"
# A run of a million steps logs about as much; more is none of ours.
MAX_BYTES = 1 << 30


class Refused(Exception):
    """Numbers that must not be reported, as something is wrong with them; the message says why."""


class LeftOut(Exception):
    """Numbers that are sound, and not the run's result; the message says what they are."""


def run_folders(
    root: Path, results: Iterable[str], left_out: Callable[[Path, str], None]
) -> Iterator[Path]:
    """The folders in and below `root` with provenance, and those with a result whether or not they have
    any, by path.

    Args:
        root: resolved.
        results: the results' files, below a run's folder; patterns where names depend on the config.
        left_out: called with what was not looked into, and why.
    """

    if not root.exists():
        return

    def unreadable(error: OSError) -> None:
        left_out(Path(error.filename), f"cannot be listed: {error.strerror}")

    found: set[Path] = set()
    names = {name: name.count("/") for name in (PROVENANCE_FILE, *results)}
    for place, folders, files in os.walk(root, onerror=unreadable):
        for entry in (*folders, *files):
            path = Path(place, entry)
            for name, depth in names.items():
                if path.match(name):
                    found.add(path.parents[depth])
        for entry in folders:
            path = Path(place, entry)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                left_out(path, "a link to a folder elsewhere, which is not followed")
    yield from sorted(found)


def check_files(folder: Path, root: Path, names: Iterable[str]) -> None:
    """Raises Refused unless those of these files of a run that are there may be read: regular files in
    `root`, which is resolved, and but for the checkpoint of at most `MAX_BYTES`.

    Args:
        names: below `folder`, or patterns of such.
    """
    patterns = {name for name in names if "*" in name}
    paths = [folder / name for name in names if name not in patterns]
    for path in (
        *paths,
        *(found for pattern in sorted(patterns) for found in folder.glob(pattern)),
    ):
        name = str(path.relative_to(folder))
        if not os.path.lexists(path):
            continue
        target = path.resolve()
        if not target.is_relative_to(root):
            raise Refused(f"{name} is a link to {target}: nothing outside {root} is read")
        if not target.exists():  # a link to a file that is gone
            continue
        if not os.access(target, os.R_OK):
            raise Refused(f"{name} may not be read")
        state = target.stat()
        if not stat.S_ISREG(state.st_mode):
            raise Refused(f"{name} is no regular file")
        if state.st_size > MAX_BYTES and name != CHECKPOINT:
            raise Refused(f"{name} has {state.st_size:,} bytes, more than any run writes")


def read_starts(folder: Path) -> tuple[dict[str, Any], ...]:
    """The provenance of the run in `folder`, as `write_provenance` writes it, without the starts that
    left nothing.

    Raises:
        Refused: there is none, or it is of another shape.
    """
    try:
        starts = read_provenance(folder)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{PROVENANCE_FILE} cannot be read: {error}") from error
    if starts == []:
        raise Refused(f"no {PROVENANCE_FILE}: nothing tells which run its numbers are of")
    if not isinstance(starts, list):
        raise Refused(f"{PROVENANCE_FILE} is no list of starts")
    for number, start in enumerate(starts, 1):
        problem = _problem(start)
        if problem:
            raise Refused(f"{PROVENANCE_FILE}, start {number}: {problem}")
    return tuple(counted_starts(starts))


def _problem(start: object) -> str | None:
    if not isinstance(start, dict):
        return "no mapping"
    for key, fits in _START.items():
        if key not in start:
            return f"it has no {key}"
        if not fits(start[key]):
            return f"its {key} has another shape"
    if not _is_data(start.get("data")):
        return "its data has another shape"
    return None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_weights(value: object) -> bool:
    return value is None or (
        isinstance(value, dict)
        and _is_text(value.get("path"))
        and (value.get("sha256") is None or _is_text(value["sha256"]))
    )


def _is_data(value: object) -> bool:
    return value is None or (
        isinstance(value, dict)
        and all(
            isinstance(split, dict)
            and isinstance(split.get("images"), int)
            and isinstance(split.get("classes"), int | None)
            for split in value.values()
        )
    )


_START: dict[str, Callable[[Any], bool]] = {
    "started": _is_text,
    "hours": lambda hours: hours is None or _is_number(hours),
    "command": lambda words: isinstance(words, list) and all(map(_is_text, words)),
    "weights": _is_weights,
    "seed": lambda seed: isinstance(seed, int),
    "versions": lambda versions: isinstance(versions, dict),
    "processes": lambda count: isinstance(count, int),
    "hardware": _is_text,
}


def read_resolved(path: Path) -> dict[str, Any]:
    """VISSL's resolved config.

    Raises:
        Refused: it is empty, cut or of another shape.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise Refused(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise Refused(f"{path.name} is empty, or no config")
    return content


def read_curves(folder: Path, keys: Iterable[str]) -> tuple[dict[str, Any], ...]:
    """The logged steps of a pretraining; none where it has no log.

    Args:
        keys: whose values must be numbers, where they are there.

    Raises:
        Refused: it has lines and no step, or a value that is no number.
    """
    try:
        history = read_history(folder)
    except FileNotFoundError:
        return ()
    if not history and (folder / METRICS_FILE).stat().st_size:
        raise Refused(f"{METRICS_FILE} cannot be read: none of its lines is a step's")
    for entry in history:
        for key in keys:
            if key in entry and not isinstance(entry[key], int | float):
                raise Refused(f"{METRICS_FILE}: {key} is no number at step {entry['iteration']}")
    return tuple(history)


def picture(folder: Path, name: str) -> Path | None:
    """The picture of this name that a pretraining drew, where it is a whole PNG."""
    path = folder / name
    if not path.exists():
        return None
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()
    except Exception:  # Pillow's are of many kinds
        return None
    return path
