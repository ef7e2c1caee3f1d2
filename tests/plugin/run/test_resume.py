"""Which checkpoint a start goes on from, and which of them are kept."""

import os
import signal
from pathlib import Path

import pytest
import torch
from interrupted_runs import SHORT, checkpoints
from saved_states import write_state
from vissl.config import AttrDict

import vissl_barlow
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.run.checkpoint_folder import remove_old_checkpoints


def save(folder: Path, *steps_by_name: str) -> None:
    """Writes checkpoints given as "NAME@STEPS", in this order, a second apart."""
    for second, text in enumerate(steps_by_name):
        name, _, steps = text.partition("@")
        path = write_state(folder, name, int(steps))
        os.utime(path, (second, second))


def resumed(folder: Path, **settings) -> str | None:
    """The name of the checkpoint that VISSL's launcher would go on from."""
    vissl_barlow.register()
    from vissl.utils.checkpoint import get_resume_checkpoint

    checkpoint = {"AUTO_RESUME": True, "LATEST_CHECKPOINT_RESUME_FILE_NUM": 1, **settings}
    path = get_resume_checkpoint(AttrDict({"BARLOW": {}, "CHECKPOINT": checkpoint}), str(folder))
    return path and Path(path).name


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["iteration6@6", "phase0@8"], "model_phase0.torch"),
        (["phase0@8", "iteration6@6"], "model_phase0.torch"),  # the file's age says nothing
        (["phase0@8", "iteration9@9"], "model_iteration9.torch"),
        (["iteration8@8", "phase0@8"], "model_phase0.torch"),  # its epoch is done
        (["iteration9@9", "iteration10@10"], "model_iteration10.torch"),
        (["phase9@80", "phase10@88", "iteration87@87"], "model_phase10.torch"),
        (["final_checkpoint_phase2@24"], None),
        ([], None),
    ],
)
def test_the_checkpoint_with_the_most_steps_is_gone_on_from(found, expected, tmp_path):
    save(tmp_path, *found)
    assert resumed(tmp_path) == expected


def test_an_earlier_one_or_none_on_demand(tmp_path):
    save(tmp_path, "phase0@8", "iteration12@12", "phase1@16")
    assert resumed(tmp_path, LATEST_CHECKPOINT_RESUME_FILE_NUM=2) == "model_iteration12.torch"
    assert resumed(tmp_path, LATEST_CHECKPOINT_RESUME_FILE_NUM=9) == "model_phase0.torch"
    assert resumed(tmp_path, AUTO_RESUME=False) is None


def test_a_link_to_resume_from_that_leads_to_a_damaged_one_is_left(server, tmp_path):
    server.finish(tmp_path, "config.OPTIMIZER.num_epochs=2")
    final = tmp_path / "model_final_checkpoint_phase1.torch"
    final.write_bytes(final.read_bytes()[:1000])
    run = server.finish(
        tmp_path,
        "config.OPTIMIZER.num_epochs=2",
        "config.CHECKPOINT.USE_SYMLINK_CHECKPOINT_FOR_RESUME=true",
    )
    assert f"checkpoint passed over: {tmp_path}/checkpoint.torch" in run.output
    assert run.steps() == [*range(1, 17), *range(9, 17)]


def test_damaged_ones_are_passed_over_and_nothing_but_damaged_ones_refused(tmp_path):
    save(tmp_path, "phase0@8", "iteration12@12")
    (tmp_path / "model_phase1.torch").write_bytes(b"")
    (tmp_path / "model_iteration12.torch").write_bytes(b"no checkpoint")
    assert resumed(tmp_path) == "model_phase0.torch"
    torch.save([1, 2], tmp_path / "model_phase0.torch")  # whole, but nothing of VISSL's
    with pytest.raises(ConfigError, match=r"CHECKPOINT\.DIR=.*every checkpoint there is damaged"):
        resumed(tmp_path)


def kept(folder: Path, keep: int, every_epochs: int, *, steps: int) -> set[str]:
    """Of what is in the folder after a checkpoint of so many steps; an epoch has 8."""
    remove_old_checkpoints(folder, keep, every_epochs, steps=steps, steps_per_epoch=8)
    return {path.stem.removeprefix("model_") for path in folder.iterdir()}


def test_the_last_written_of_each_kind_are_kept_whatever_their_numbers(tmp_path):
    """A run that was told not to resume counts from 0 beside an older run's larger numbers."""
    save(tmp_path, "phase7@64", "phase0@8", "iteration60@60", "iteration3@3", "iteration6@6")
    assert kept(tmp_path, 1, 0, steps=8) == {"phase0", "iteration6"}


@pytest.mark.parametrize("order", [1, -1])
def test_clocks_say_nothing_about_which_are_kept(order, tmp_path):
    """A file server's clock, or this machine's, runs hours behind what wrote the earlier ones."""
    names = ["iteration12@12", "phase1@16", "iteration18@18", "iteration21@21", "phase2@24"]
    save(tmp_path, *names[::order])
    assert kept(tmp_path, 1, 0, steps=24) == {"iteration21", "phase2"}


def test_what_the_link_leads_to_stays(tmp_path):
    save(tmp_path, "phase0@8", "phase1@16", "phase2@24")
    (tmp_path / "checkpoint.torch").symlink_to("model_phase0.torch")
    assert kept(tmp_path, 1, 0, steps=24) == {"phase0", "phase2", "checkpoint"}


def test_milestones_and_all_on_demand(tmp_path):
    names = [f"phase{epoch}@{epoch}" for epoch in range(5)]
    save(tmp_path, *names, "final_checkpoint_phase5@6")
    assert len(kept(tmp_path, 0, 0, steps=48)) == 6
    assert kept(tmp_path, 1, 2, steps=48) == {
        "phase1",
        "phase3",
        "phase4",
        "final_checkpoint_phase5",
    }
    assert kept(tmp_path, 1, 0, steps=48) == {"phase4", "final_checkpoint_phase5"}


def test_a_run_among_files_from_the_future_keeps_what_it_writes(server, tmp_path):
    """Its clock runs two hours behind that of the machine which wrote the earlier checkpoints."""
    run = server.start(tmp_path, *SHORT)
    run.wait_for_steps(10)
    run.send(signal.SIGKILL)
    run.wait()
    for path in tmp_path.glob("model_*.torch"):
        os.utime(path, (path.stat().st_mtime + 7200,) * 2)
    server.finish(tmp_path, *SHORT)
    assert checkpoints(tmp_path) == {
        "model_iteration21.torch",
        "model_iteration24.torch",
        "model_phase0.torch",
        "model_phase1.torch",
        "model_final_checkpoint_phase2.torch",
    }
