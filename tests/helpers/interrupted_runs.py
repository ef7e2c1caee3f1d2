"""Runs that are interrupted, and what they must have in common with one that is not."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from forked_runs import Run

from vissl_barlow.checkpoint import read_checkpoint

SOAK_STEPS = int(os.environ.get("FAULTS_SOAK_STEPS", "400"))  # of the long run
EVERY_STEPS = 3  # steps between checkpoints, beside those after epochs of 8
EPOCHS = 3
SHORT = (
    f"config.OPTIMIZER.num_epochs={EPOCHS}",
    f"config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY={EVERY_STEPS}",
)


def at_steps(first: int, second: int = -1) -> str:
    """Python for `RunServer.start`: `first()` and `second()` are called before these steps' updates."""
    return f"""
from vissl_barlow.lars import LARS
step, calls = LARS.step, []
def at_steps(*args, **kwargs):
    calls.append(1)
    if len(calls) == {first}:
        first()
    if len(calls) == {second}:
        second()
    return step(*args, **kwargs)
LARS.step = at_steps
"""


def final_state(folder: Path) -> dict:
    """The checkpoint of a finished training."""
    (path,) = folder.glob("model_final_checkpoint_phase*.torch")
    return read_checkpoint(path)


def assert_same_end(folder: Path, whole: Path) -> None:
    """Weights, optimizer, schedule and counters, bit for bit, and the losses on the way there."""
    ours, theirs = final_state(folder), final_state(whole)
    for state in (ours, theirs):
        state["classy_state_dict"].pop("losses")  # since the last start
        state.pop("iteration_num")  # VISSL's count of them
    ours, theirs = dict(leaves(ours)), dict(leaves(theirs))
    assert ours.keys() == theirs.keys()
    differing = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    assert not differing
    assert losses(folder) == losses(whole)


def leaves(state, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """What nested containers hold, as tensors; text by its characters."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        for key, value in items:
            yield from leaves(value, f"{name}.{key}")
    elif isinstance(state, torch.Tensor):
        yield name, state
    else:
        yield name, torch.tensor([ord(character) for character in repr(state)])


def losses(folder: Path) -> dict[int, float]:
    """The logged losses by step; of a step that was repeated, the last."""
    entries = map(json.loads, (folder / "barlow.jsonl").read_text().splitlines())
    return {entry["iteration"]: entry["loss"] for entry in entries}


def checkpoints(folder: Path) -> set[str]:
    """Names of the checkpoints in a folder, without the link to the newest."""
    return {path.name for path in folder.glob("model_*.torch")}


def last_line(run: Run) -> str:
    """What the plugin said last, or the end of the output if it said nothing."""
    lines = [line for line in run.output.splitlines() if line.startswith("vissl_barlow: ")]
    return lines[-1] if lines else run.output[-3000:]
