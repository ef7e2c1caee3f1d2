"""Damaged checkpoints are passed over; how many of the others stay."""

import os
import signal
from pathlib import Path

import pytest
from forked_runs import STEPS_PER_EPOCH
from interrupted_runs import EPOCHS, SHORT, assert_same_end, checkpoints, last_line

from vissl_barlow.checkpoint import read_checkpoint


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_newest_checkpoint_is_reported_and_the_previous_used(
    server, uninterrupted, tmp_path, damage
):
    run = server.start(tmp_path, *SHORT)
    run.wait_for_steps(2 * STEPS_PER_EPOCH)
    run.send(signal.SIGKILL)
    run.wait()
    numbers = {
        name: read_checkpoint(tmp_path / name)["iteration"] for name in checkpoints(tmp_path)
    }
    newest, previous = sorted(numbers, key=lambda name: (numbers[name], "phase" in name))[:-3:-1]
    damage(tmp_path / newest)
    before = len(run.steps())
    server.finish(tmp_path, *SHORT)
    assert f"checkpoint passed over: {tmp_path}/{newest}" in run.output
    assert run.steps()[before] == numbers[previous] + 1
    assert_same_end(tmp_path, uninterrupted[1])


def test_a_damaged_final_checkpoint_is_no_finished_training(server, uninterrupted, tmp_path):
    run = server.finish(tmp_path, *SHORT)
    truncate(tmp_path / f"model_final_checkpoint_phase{EPOCHS - 1}.torch")
    server.finish(tmp_path, *SHORT)
    assert "checkpoint passed over" in run.output
    assert_same_end(tmp_path, uninterrupted[1])
    steps = len(run.steps())
    server.finish(tmp_path, *SHORT)
    assert "Training already succeeded" in run.output and len(run.steps()) == steps


def test_nothing_whole_to_resume_from_is_said_not_overwritten(server, tmp_path):
    empty(tmp_path / "model_phase7.torch")
    run = server.start(tmp_path, *SHORT)
    assert run.wait() == 1
    assert "every checkpoint there is damaged" in last_line(run)
    assert checkpoints(tmp_path) == {"model_phase7.torch"}


def test_the_last_two_of_each_kind_and_the_milestones_stay(server, tmp_path):
    server.finish(
        tmp_path,
        "config.OPTIMIZER.num_epochs=6",
        SHORT[1],
        "config.BARLOW.KEEP_EVERY_EPOCHS=2",
    )
    assert checkpoints(tmp_path) == {
        "model_phase1.torch",  # after the second epoch
        "model_phase3.torch",
        "model_phase4.torch",
        "model_iteration45.torch",
        "model_iteration48.torch",
        "model_final_checkpoint_phase5.torch",
    }
    assert (tmp_path / "checkpoint.torch").resolve().name == "model_final_checkpoint_phase5.torch"
