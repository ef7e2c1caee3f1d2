"""The checkpoints in a run's folder: which are whole, what they hold, and which of them stay."""

import functools
import heapq
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vissl_barlow.atomic_files import file_state
from vissl_barlow.checkpoint import CheckpointError, read_checkpoint
from vissl_barlow.vissl_plugin.run.saved_state import why_not_a_runs

_NAME = re.compile(r"model_(phase|iteration)(\d+)\.torch")
_FINAL_NAME = re.compile(r"model_final_checkpoint_phase\d+\.torch")
_KINDS = ("phase", "iteration")
# VISSL's link to the checkpoint it wrote last.
LINK = "checkpoint.torch"


class Inspection(NamedTuple):
    """What is asked of a checkpoint before its run resumes."""

    # Steps done.
    iteration: int
    # Of the trunk's and the heads' tensors, by their names.
    trunk: dict[str, tuple[int, ...]]
    heads: dict[str, tuple[int, ...]]
    # Of which experiment it is (`run/experiment.py`); None where the file does not say.
    experiment: dict[str, Any] | None = None


def inspect(path: str | os.PathLike) -> Inspection | None:
    """Reads a checkpoint in full, checksums included; None if it is damaged or holds what no run of
    this plugin has written (`saved_state.py`), which is reported.

    A file is read once per process, and again only if it has changed: a resume asks which checkpoint
    is whole when the config is validated, then for its shapes, and again which one at launch.
    """
    path = Path(path)
    try:
        state = file_state(path)
    except FileNotFoundError:
        return None
    return _inspect(path, state)


@functools.lru_cache(maxsize=64)
def _inspect(path: Path, state: tuple[int, ...]) -> Inspection | None:
    try:
        checkpoint = read_checkpoint(path)
        if reason := why_not_a_runs(checkpoint, path.resolve().name):
            raise CheckpointError(f"{path}: {reason}")
    except (CheckpointError, OSError) as error:
        logging.warning("checkpoint passed over: %s", error)
        return None
    saved = checkpoint["classy_state_dict"]
    trunk, heads = (
        {name: tuple(tensor.shape) for name, tensor in saved["base_model"]["model"][part].items()}
        for part in ("trunk", "heads")
    )
    return Inspection(checkpoint["iteration"], trunk, heads, saved.get("experiment"))


def final_checkpoints(folder: str | os.PathLike) -> list[Inspection]:
    """The whole checkpoints of finished trainings in `folder`, the one of most steps first."""
    return [inspection for inspection, _ in _finals(folder)]


def checkpoint_to_extend(folder: str | os.PathLike) -> tuple[int, bool, Path] | None:
    """The final checkpoint of most steps, as `whole_checkpoints` has others.

    None if there is none that says which experiment it is of.
    """
    known = [(i.iteration, True, path) for i, path in _finals(folder) if i.experiment is not None]
    return known[0] if known else None


def unmark_extended_checkpoints(folder: str | os.PathLike, iteration: int) -> None:
    """Renames final checkpoints of fewer than `iteration` steps to those of their epochs.

    To be called when a run with more epochs has its own checkpoint: it is not finished any more.
    """
    for inspection, path in _finals(folder):
        renamed = path.with_name(path.name.replace("model_final_checkpoint_", "model_"))
        if inspection.iteration < iteration and not renamed.exists():
            path.rename(renamed)


def _finals(folder: str | os.PathLike) -> list[tuple[Inspection, Path]]:
    paths = sorted(Path(folder).glob("*model_final*.torch"))
    found = [(inspection, path) for path in paths if (inspection := inspect(path)) is not None]
    return sorted(found, key=lambda each: each[0].iteration, reverse=True)


def written_checkpoints(folder: str | os.PathLike) -> dict[Path, tuple[int, ...]]:
    """What runs have written to `folder`, by the names they use, and the state of each file."""
    paths = [path for path in Path(folder).iterdir() if path.is_file()]
    own = [p for p in paths if _NAME.fullmatch(p.name) or _FINAL_NAME.fullmatch(p.name)]
    return {path: file_state(path) for path in own}


def set_replaced_checkpoints_aside(
    written: Mapping[Path, tuple[int, ...]], *, keep: str | os.PathLike
) -> None:
    """Renames the `written_checkpoints` of a run that another has replaced in its folder, to names that
    no run uses: NAME.replaced.

    To be called when that has its own first checkpoint. What it has written over stays, and so does
    `keep`, the weights it began with ("" for none).
    """
    for path, state in written.items():
        if path.exists() and file_state(path) == state and not _is_file_at(path, keep):
            path.rename(path.with_name(f"{path.name}.replaced"))


def _is_file_at(path: Path, other: str | os.PathLike) -> bool:
    return bool(other) and Path(other).exists() and path.samefile(other)


def has_numbered_checkpoints(folder: str | os.PathLike) -> bool:
    """Whether there is a checkpoint of an epoch or an iteration in `folder`, whole or not."""
    return any(_numbered(folder, kind) for kind in _KINDS)


def whole_checkpoints(folder: str | os.PathLike) -> Iterator[tuple[int, bool, Path]]:
    """The checkpoints in `folder` to resume from, newest first: (steps done, epoch done, path).

    Each is read when its turn comes; damaged ones are left out.
    """

    def whole(kind: str) -> Iterator[tuple[int, bool, Path]]:
        for _, path in _numbered(folder, kind):
            inspection = inspect(path)
            if inspection is not None:
                yield inspection.iteration, kind == "phase", path

    return heapq.merge(*map(whole, _KINDS), reverse=True)


def remove_old_checkpoints(
    folder: str | os.PathLike, keep: int, every_epochs: int, *, steps: int, steps_per_epoch: int
) -> None:
    """Leaves the last `keep` checkpoints of each kind, the final one and the milestones.

    Their order is that of the steps done, which the names tell; clocks of file servers run behind.
    Checkpoints of more steps than the run has done are of one that it was told not to resume, and go
    first. The newest and what `checkpoint.torch` leads to stay in any case.

    Args:
        folder: the run's checkpoint folder.
        keep: 0 keeps all.
        every_epochs: the checkpoint after every so many epochs is a milestone; 0: none is.
        steps: that the run has done, in all its epochs; a checkpoint was just written after them.
        steps_per_epoch: 1 or more.
    """
    if keep < 1:
        return
    linked = Path(folder, LINK).resolve().name
    # The number in the name of the last one that this run can have written.
    last = {"phase": steps // steps_per_epoch - 1, "iteration": steps}
    for kind in _KINDS:
        found = sorted(_numbered(folder, kind), key=lambda n: (n[0] <= last[kind], n[0]))
        for number, path in found[:-keep]:
            is_milestone = kind == "phase" and every_epochs and (number + 1) % every_epochs == 0
            if not is_milestone and path.name != linked:
                path.unlink(missing_ok=True)


def _numbered(folder: str | os.PathLike, kind: str) -> list[tuple[int, Path]]:
    """(number in the name, path) of the regular checkpoints of a kind, the largest number first."""
    names = (_NAME.fullmatch(path.name) for path in Path(folder).iterdir())
    found = [(int(m[2]), Path(folder, m[0])) for m in names if m is not None and m[1] == kind]
    return sorted(found, reverse=True)
