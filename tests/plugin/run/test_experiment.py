"""A folder's run is one experiment: what it is refused, what may change, and more epochs on demand."""

import shutil
import signal
from pathlib import Path

import pytest
from forked_runs import STEPS_PER_EPOCH, TWO_PROCESSES, Run
from interrupted_runs import SHORT, assert_same_end, final_state, last_line
from PIL import Image

from vissl_barlow.checkpoint import read_checkpoint
from vissl_barlow.provenance import counted_starts, read_provenance

LAMBDA = "config.LOSS.barlow_loss.lambda_=0.1"
EXTEND = ("config.OPTIMIZER.num_epochs=5", "config.BARLOW.EXTEND=true")


@pytest.fixture(scope="module")
def finished(uninterrupted):
    """A folder whose run of 3 epochs of 8 steps, at a global batch of 8, has come to its end."""
    return uninterrupted[1]


@pytest.fixture
def interrupted(server, tmp_path):
    """The folder of such a run, killed in its second epoch."""
    folder = tmp_path / "interrupted"
    run = server.start(folder, *SHORT)
    run.wait_for_steps(STEPS_PER_EPOCH + 4)
    run.send(signal.SIGKILL)
    run.wait()
    return folder


def refused(run: Run) -> str:
    """The line in which a start was refused, without the start of its folder's name."""
    steps = run.steps()
    assert run.wait() == 1, run.output[-3000:]
    assert run.steps() == steps
    return last_line(run)


@pytest.mark.parametrize(
    ("overrides", "difference"),
    [
        ([LAMBDA], "LOSS.barlow_loss.lambda_ is 0.005 there and 0.1 now"),
        (
            ["config.OPTIMIZER.weight_decay=0.5"],
            "OPTIMIZER.weight_decay is 1.5e-06 there and 0.5 now",
        ),
        (["config.SEED_VALUE=3"], "SEED_VALUE is 0 there and 3 now"),
        (["config.BARLOW.PROBE.IMAGES=9"], "BARLOW.PROBE.IMAGES is none there and 9 now"),
        (["config.DATA.TRAIN.DATA_LIMIT=128"], "DATA.TRAIN.DATA_LIMIT is 64 there and 128 now"),
        (["config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16"], "processes) is 8 there and 16 now"),
        (["config.DISTRIBUTED.NUM_PROC_PER_NODE=2"], "processes) is 8 there and 16 now"),
        (["config.OPTIMIZER.num_epochs=5"], "OPTIMIZER.num_epochs is 3 there and 5 now"),
        (
            ["config.OPTIMIZER.num_epochs=2", "config.BARLOW.EXTEND=true"],
            "OPTIMIZER.num_epochs is 3 there and 2 now",
        ),
        ([*EXTEND, LAMBDA], "LOSS.barlow_loss.lambda_ is 0.005 there and 0.1 now"),
    ],
)
def test_a_finished_folder_refuses_another_experiment(server, finished, overrides, difference):
    before = (finished / "train_config.yaml").read_text()
    line = refused(server.start(finished, *SHORT, *overrides))
    assert f"config.CHECKPOINT.DIR={finished}: holds a finished run of another" in line
    assert difference in line and "name another folder" in line
    assert ("config.BARLOW.EXTEND=true" in line) == (overrides == ["config.OPTIMIZER.num_epochs=5"])
    assert (finished / "train_config.yaml").read_text() == before


def test_a_finished_folder_is_left_alone_by_its_own_experiment(server, finished):
    run = server.finish(finished, *SHORT, "config.DATA.NUM_DATALOADER_WORKERS=1", *TWO_PROCESSES)
    assert "Training already succeeded" in run.output


def test_an_unfinished_folder_refuses_another_experiment_and_goes_on_with_its_own(
    server, interrupted, uninterrupted
):
    line = refused(server.start(interrupted, *SHORT, LAMBDA))
    assert "an unfinished run" in line and "lambda_ is 0.005 there and 0.1 now" in line
    line = refused(server.start(interrupted, *SHORT, "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16"))
    assert "is 8 there and 16 now" in line
    server.finish(
        interrupted, *SHORT, "config.CHECKPOINT.CHECKPOINT_FREQUENCY=2", "config.LOG_FREQUENCY=1"
    )
    assert_same_end(interrupted, uninterrupted[1])


def test_a_start_that_left_no_checkpoint_binds_nobody(server, finished, tmp_path):
    """Neither its own folder nor that of a run it was to replace: to the report, that is as it was."""
    die = "import os; from vissl_barlow.lars import LARS; LARS.step = lambda *a: os._exit(9)"
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "barlow_run.lock").unlink()
    anew = ("config.CHECKPOINT.AUTO_RESUME=false", "config.CHECKPOINT.OVERWRITE_EXISTING=true")
    kept = ("train_config.yaml", "metrics.json", "barlow.jsonl")
    before = {name: (folder / name).read_text() for name in kept}
    (of_the_run,) = read_provenance(folder)
    other = (*SHORT, LAMBDA, "+config.BARLOW.COMMAND=[other]")
    assert server.start(folder, *other, *anew, prepare=die).wait() == 9
    assert "lambda_: 0.1" in (folder / "train_config.next.yaml").read_text()
    assert before["train_config.yaml"] == (folder / "train_config.yaml").read_text()
    assert counted_starts(read_provenance(folder)) == [of_the_run]
    assert "Training already succeeded" in server.finish(folder, *SHORT).output
    assert server.start(tmp_path / "new", *other, prepare=die).wait() == 9
    server.finish(tmp_path / "new", *SHORT)
    (only,) = read_provenance(tmp_path / "new")
    assert only["command"] != ["other"] and only["left"]
    # One that saves has replaced the run, and all that belongs to it.
    server.finish(folder, *other, *anew)
    (only,) = read_provenance(folder)
    assert only["command"] == ["other"]
    assert "lambda_: 0.1" in (folder / "train_config.yaml").read_text()
    for name in kept[1:]:
        assert len((folder / name).read_text().splitlines()) == len(before[name].splitlines())
    assert (folder / "barlow.jsonl").read_text() != before["barlow.jsonl"]
    assert not (folder / "train_config.next.yaml").exists()


def test_a_run_trained_anew_over_a_longer_one_is_the_only_one_there(server, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "barlow_run.lock").unlink()
    (folder / "model_final_mine.torch.copy").touch()
    other = (*SHORT[1:], LAMBDA)
    anew = ("config.CHECKPOINT.AUTO_RESUME=false", "config.CHECKPOINT.OVERWRITE_EXISTING=true")
    server.finish(folder, *other, "config.OPTIMIZER.num_epochs=2", *anew)
    names = {path.name for path in folder.glob("model_final*")}
    own, before, mine = (
        "checkpoint_phase1.torch",
        "checkpoint_phase2.torch.replaced",
        "mine.torch.copy",
    )
    assert names == {f"model_final_{name}" for name in (own, before, mine)}
    # The final checkpoint of the run before passed for one of this experiment's, at so many epochs.
    steps = server.finish(folder, *other, "config.OPTIMIZER.num_epochs=3", EXTEND[1]).steps()
    assert steps[-STEPS_PER_EPOCH:] == list(range(2 * STEPS_PER_EPOCH + 1, 3 * STEPS_PER_EPOCH + 1))
    assert steps[-STEPS_PER_EPOCH - 1] == 2 * STEPS_PER_EPOCH


def test_more_epochs_on_demand_follow_the_longer_schedule(server, finished, tmp_path):
    """From the final checkpoint, at the rates that a run of 5 epochs has from there on."""
    server.finish(tmp_path / "long", *EXTEND)
    folder = tmp_path / "extended"
    shutil.copytree(finished, folder)
    (folder / "barlow_run.lock").unlink()
    run = server.start(folder, *SHORT[1:], *EXTEND)
    run.wait_for_steps(3 * STEPS_PER_EPOCH + 4)
    run.send(signal.SIGKILL)
    run.wait()
    # No longer finished, and the same command without the word goes on: it is the run's own now.
    assert not list(folder.glob("model_final*"))
    run = server.finish(folder, *SHORT[1:], EXTEND[0])
    steps = run.steps()
    assert steps[3 * STEPS_PER_EPOCH] == 3 * STEPS_PER_EPOCH + 1
    assert steps[-1] == 5 * STEPS_PER_EPOCH
    assert rates(folder)[3 * STEPS_PER_EPOCH + 1 :] == rates(tmp_path / "long")[25:]
    assert final_state(folder)["iteration"] == 5 * STEPS_PER_EPOCH
    line = refused(server.start(folder, *SHORT))
    assert "OPTIMIZER.num_epochs is 5 there and 3 now" in line


def rates(folder: Path) -> list[float]:
    """The learning rate of each logged step."""
    from vissl_barlow.run_files import read_history

    return [entry["lr"] for entry in read_history(folder)]


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", (32, 32), (index, 2 * index, 90)).save(folder / f"{index}.png")
    return folder


def test_moved_images_are_the_same_and_another_number_of_them_is_not(server, tmp_path):
    source = ("config.DATA.TRAIN.DATA_SOURCES=[barlow_folder]", "config.DATA.TRAIN.DATA_LIMIT=-1")

    def images(folder: Path) -> tuple[str, ...]:
        return (*source, f"config.DATA.TRAIN.DATA_PATHS=[{folder}]")

    here = write_images(tmp_path / "here", 16)
    run, epochs = tmp_path / "run", "config.OPTIMIZER.num_epochs=2"
    server.finish(run, *images(here), epochs)
    here.rename(tmp_path / "there")
    done = server.finish(run, *images(tmp_path / "there"), epochs)
    assert "Training already succeeded" in done.output
    line = refused(server.start(run, *images(write_images(tmp_path / "more", 24)), epochs))
    assert "images in DATA.TRAIN is 16 there and 24 now" in line


def test_another_number_of_processes_goes_on_where_the_run_stood(
    server, interrupted, uninterrupted
):
    """The same images in each step, to the end of the same schedule."""
    run = server.finish(interrupted, *SHORT, *TWO_PROCESSES, prepare=NOTE_IMAGES)
    whole = interrupted.parent / "whole"
    server.finish(whole, *SHORT, prepare=NOTE_IMAGES)
    resumed, expected = noted_images(interrupted), noted_images(whole)
    assert set(expected) == set(range(3 * STEPS_PER_EPOCH))
    assert min(resumed) in range(STEPS_PER_EPOCH, STEPS_PER_EPOCH + 4)
    assert min(resumed) % STEPS_PER_EPOCH  # in the middle of an epoch
    assert max(resumed) == max(expected)
    assert resumed == {step: images for step, images in expected.items() if step in resumed}
    assert rates(interrupted) == rates(whole) == rates(uninterrupted[2])
    assert "goes on on 2: the images of each step stay the same" in run.output


# The images of each step, a line per process and step.
NOTE_IMAGES = """
import torch
from vissl.trainer.train_task import SelfSupervisionTask as Task
from classy_vision.generic.distributed_util import get_rank
run_hooks = Task.run_hooks
def noting(task, name):
    if name == "on_forward" and task.train:
        with open(f"images{get_rank()}.txt", "a") as file:
            indices = torch.as_tensor(task.last_batch.sample["data_idx"]).flatten().tolist()
            file.write(" ".join(map(str, [task.iteration, *indices])) + "\\n")
    run_hooks(task, name)
Task.run_hooks = noting
"""


def noted_images(folder: Path) -> dict[int, list[int]]:
    """By step, from 0: the images of all processes, sorted."""
    found: dict[int, list[int]] = {}
    for path in folder.glob("images*.txt"):
        for line in path.read_text().splitlines():
            step, *images = map(int, line.split())
            found[step] = sorted([*found.get(step, []), *images])
    return found


def test_a_checkpoint_says_which_experiment_it_is_of(finished):
    (path,) = finished.glob("model_final*")
    experiment = read_checkpoint(path)["classy_state_dict"]["experiment"]
    assert experiment["LOSS.barlow_loss.lambda_"] == 0.005
    assert experiment["images in DATA.TRAIN"] == 1437
    assert not [key for key in experiment if key.startswith(("CHECKPOINT.", "DISTRIBUTED."))]


def test_a_default_of_the_views_is_the_same_spelt_out_or_not():
    """Else a run goes on no more when its config comes to name what it was trained with."""
    from vissl_barlow.vissl_plugin.run.experiment import _differences

    views = "DATA.TRAIN.TRANSFORMS.0"
    bare = {f"{views}.name": "BarlowTwoViews"}
    named = bare | {f"{views}.jitter_p": 0.8, f"{views}.blur_p.0": 1.0, f"{views}.blur_p.1": 0.1}
    assert _differences(bare, named, False) == _differences(named, bare, False) == []
    other = named | {f"{views}.jitter_p": 0.0}
    assert _differences(bare, other, False) == [(f"{views}.jitter_p", 0.8, 0.0)]
    resize = {f"{views}.name": "Resize"}
    assert _differences(resize, resize | {f"{views}.size": 224}, False) != []


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({}, "statistics per process (config.MODEL.SYNC_BN_CONFIG.CONVERT_BN_TO_SYNC_BN=false)"),
        ({"GROUP_SIZE": 8}, "per group of processes (config.MODEL.SYNC_BN_CONFIG.GROUP_SIZE=8)"),
        ({"GROUP_SIZE": -1}, "per group of processes (config.MODEL.SYNC_BN_CONFIG.GROUP_SIZE=-1)"),
        ({"GROUP_SIZE": 0}, ""),
    ],
)
def test_whose_statistics_change_with_the_number_of_processes(settings, warning, caplog):
    from vissl_barlow.vissl_plugin.run.experiment import warn_of_batch_norm

    section = "MODEL.SYNC_BN_CONFIG"
    now = {f"{section}.{key}": value for key, value in settings.items()}
    now |= {f"{section}.CONVERT_BN_TO_SYNC_BN": bool(settings), "processes": 16}
    warn_of_batch_norm({**now, "processes": 32}, now)
    assert (warning in caplog.text) and bool(caplog.text) == bool(warning)
    caplog.clear()
    warn_of_batch_norm(now, now)
    assert not caplog.text
