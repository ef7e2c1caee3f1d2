"""Kills, signals, dead processes, damaged files and full disks: a run loses what it may and no more.

Environment variables make the long tests as long as one likes: FAULTS_KILLS, FAULTS_SOAK_STEPS.
"""

import io
import json
import math
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked_runs import STEPS_PER_EPOCH, TWO_PROCESSES, RunServer, logged_steps
from PIL import Image

from vissl_barlow.checkpoint import read_checkpoint
from vissl_barlow.images import UnreadableImage, read_image
from vissl_barlow.vissl_plugin.hooks.finite import BarlowFiniteLoss

KILLS = int(os.environ.get("FAULTS_KILLS", "8"))
SOAK_STEPS = int(os.environ.get("FAULTS_SOAK_STEPS", "400"))
EVERY_STEPS = 3  # steps between checkpoints, beside those after epochs of 8
EPOCHS = 3
SHORT = (
    f"config.OPTIMIZER.num_epochs={EPOCHS}",
    f"config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY={EVERY_STEPS}",
)
LOADER_WORKERS = (
    "config.DATA.NUM_DATALOADER_WORKERS=1",
    "config.MULTI_PROCESSING_METHOD=fork",
)
# A run's limit, to end one that hangs; a soak run gets a fifth of a second more for each step.
SECONDS = 120
# Seconds instead of ten, twice, that the survivors of a run get to end by themselves.
SHORT_GRACE = "import vissl_barlow.vissl_plugin.run.processes as processes; processes.GRACE = 1\n"
# Megabytes by which the peak of resident memory may grow over three quarters of a soak run; 0.1
# were measured. One batch kept at each of 300 steps would be 59.
SOAK_GROWTH_MB = 4
STEPS_OF_ALL_DIGITS = 1437 // 8


@pytest.fixture(scope="module")
def server():
    with RunServer(SECONDS + SOAK_STEPS / 5) as server:
        yield server


@pytest.fixture(scope="module")
def uninterrupted(server, tmp_path_factory):
    """Folders of whole runs of `SHORT`, in one process and in two."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    server.finish(folder / "1", *SHORT)
    server.finish(folder / "2", *SHORT, *TWO_PROCESSES)
    return {1: folder / "1", 2: folder / "2"}


def final_state(folder: Path) -> dict:
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
    entries = map(json.loads, (folder / "barlow.jsonl").read_text().splitlines())
    return {entry["iteration"]: entry["loss"] for entry in entries}


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("model_*.torch")}


def last_line(run) -> str:
    lines = [line for line in run.output.splitlines() if line.startswith("vissl_barlow: ")]
    return lines[-1] if lines else run.output[-3000:]


# Kills.

DIE = "import os, signal\ndie = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
COUNT = """
calls = 0
def on_call(owner, name, number, before=lambda *a: None):
    original = getattr(owner, name)
    def counted(*args, **kwargs):
        global calls
        calls += 1
        if calls == number:
            before(*args)
            die()
        return original(*args, **kwargs)
    setattr(owner, name, counted)
"""
# Each dies at the NUMBERth time it passes there.
PLACES = {
    "backward": "import torch; on_call(torch.Tensor, 'backward', NUMBER)",
    "update": "from vissl_barlow.lars import LARS; on_call(LARS, 'step', NUMBER)",
    "halfway through a checkpoint": (
        "import torch; on_call(torch, 'save', NUMBER, lambda state, file: (file.write(b'PK'), "
        "file.flush()))"
    ),
    # Two calls before it: the record of the start, and its folder.
    "checkpoint on its way to the disk": "on_call(os, 'fsync', 2 + NUMBER)",
    "checkpoint about to get its name": "on_call(os, 'replace', NUMBER)",
    "link about to be made": "on_call(os, 'symlink', NUMBER)",
    "old checkpoint about to go": "import pathlib; on_call(pathlib.Path, 'unlink', NUMBER)",
    "between two epochs": (
        "from vissl.trainer.train_task import SelfSupervisionTask as T; "
        "on_call(T, 'recreate_data_iterator', NUMBER)"
    ),
    "any moment": "",
}


def test_a_run_killed_anywhere_any_number_of_times_ends_the_same(server, tmp_path):
    rng = random.Random(0)
    epochs = KILLS + EPOCHS
    overrides = (SHORT[1], f"config.OPTIMIZER.num_epochs={epochs}")
    server.finish(tmp_path / "whole", *overrides)
    folder = tmp_path / "killed"
    kills = 0
    places = list(PLACES)
    while kills < KILLS:
        place = places[kills % len(places)] if kills < len(places) else rng.choice(places)
        # Between epochs it passes twice before the first step of a resumed run.
        number = rng.randint(3, 4) if place == "between two epochs" else rng.randint(1, 3)
        prepare = DIE + COUNT + PLACES[place].replace("NUMBER", str(number))
        known = logged_steps(folder)
        run = server.start(folder, *overrides, prepare=prepare)
        if place == "any moment":
            run.wait_for_steps(len(known) + rng.randint(0, 4))
            run.send(signal.SIGKILL)
        status = run.wait()
        assert status == -signal.SIGKILL, f"{place} {number}: {status} {run.output[-3000:]}"
        kills += 1
        for path in folder.glob("model_*.torch"):
            read_checkpoint(path)  # whole, whatever was under way
        steps = logged_steps(folder)[len(known) :]
        if known and steps:
            # The last logged step may have been killed before its checkpoint.
            saved = (known[-1] - 1) // EVERY_STEPS * EVERY_STEPS
            assert saved < steps[0] <= known[-1] + 1, f"{place}: {known[-1]} then {steps[0]}"
    server.finish(folder, *overrides)
    assert_same_end(folder, tmp_path / "whole")
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


# Signals.


@pytest.mark.parametrize(
    ("number", "processes", "receiver", "workers"),
    [
        (signal.SIGTERM, 1, "launcher", False),
        (signal.SIGUSR1, 2, "launcher", False),
        (signal.SIGTERM, 2, "everyone", True),
        (signal.SIGUSR2, 2, "rank 1", False),
    ],
)
def test_a_signal_loses_nothing(
    server, uninterrupted, tmp_path, number, processes, receiver, workers
):
    command = (
        f"config.OPTIMIZER.num_epochs={EPOCHS}",
        *(TWO_PROCESSES if processes == 2 else ()),
        *(LOADER_WORKERS if workers else ()),
    )
    run = server.start(tmp_path, *command)
    run.wait_for_steps(STEPS_PER_EPOCH + 2)
    if receiver == "everyone":
        run.send_to_all(number)
    else:
        run.send(number, run.ranks()[1] if receiver == "rank 1" else None)
    assert run.wait() == 128 + number, run.output[-3000:]
    last = run.steps()[-1]
    assert run.steps() == list(range(1, last + 1)) and last < EPOCHS * STEPS_PER_EPOCH
    assert f"stopped by {number.name} after step {last}, saved" in last_line(run)

    server.finish(tmp_path, *command)
    assert run.steps() == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert_same_end(tmp_path, uninterrupted[processes])


# As submitit sets a job up: SIGTERM is waved through, SIGUSR2 asks for a new submission.
SUBMITIT = """
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission
from vissl.utils.distributed_launcher import _ResumableSlurmJob

def requeue(countdown):
    saved = sorted(path.name for path in Path(".").glob("model_iteration*.torch"))
    Path("requeued").write_text(" ".join(saved))

delayed = DelayedSubmission(_ResumableSlurmJob("train", {"NAME": "x"}))
delayed.set_timeout(600, 3)
handler = SignalHandler(
    SimpleNamespace(global_rank=0, _requeue=requeue),
    SimpleNamespace(submitted_pickle=Path("submitted.pkl").absolute()),
    delayed,
)
signal.signal(signal.SIGTERM, handler.bypass)
signal.signal(signal.SIGUSR2, handler.checkpoint_and_try_requeue)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_preempted_slurm_job_is_saved_and_then_submitted_anew(
    server, uninterrupted, tmp_path, processes
):
    command = (
        f"config.OPTIMIZER.num_epochs={EPOCHS}",
        *(TWO_PROCESSES if processes == 2 else ()),
    )
    run = server.start(tmp_path, *command, prepare=SUBMITIT)
    run.wait_for_steps(2)
    run.send(signal.SIGTERM)
    run.wait_for_steps(5)
    run.send(signal.SIGUSR2)
    assert run.wait() == 255, run.output[-3000:]  # submitit's exit status
    assert (tmp_path / "requeued").read_text() == f"model_iteration{run.steps()[-1]}.torch"
    assert (tmp_path / "submitted.pkl").exists()
    server.finish(tmp_path, *command)
    assert_same_end(tmp_path, uninterrupted[processes])


# One process of several.

FAIL_ON_RANK_1 = """
import vissl_barlow.vissl_plugin.components.train_step as step, os
normalize, calls = step._prepare, []
def fail(*args):
    calls.append(1)
    if len(calls) == 5 and os.environ["RANK"] == "1":
        raise ValueError("a mishap")
    return normalize(*args)
step._prepare = fail
"""


@pytest.mark.parametrize("way", ["killed", "raised", "silent"])
def test_a_dead_process_ends_the_others_and_is_named(server, uninterrupted, tmp_path, way):
    command = (*SHORT, *TWO_PROCESSES)
    prepare = SHORT_GRACE + (FAIL_ON_RANK_1 if way == "raised" else "")
    limit = ("config.BARLOW.TIMEOUT_MINUTES=0.05",) if way == "silent" else ()
    run = server.start(tmp_path, *command, *limit, prepare=prepare)
    run.wait_for_steps(4)
    ranks = run.ranks()
    if way == "killed":
        run.send(signal.SIGKILL, ranks[1])
    elif way == "silent":
        run.send(signal.SIGSTOP, ranks[1])
    assert run.wait() == 1
    ending = {
        "killed": f"rank 1 (pid {ranks[1]}) was ended by SIGKILL",
        "raised": f"rank 1 (pid {ranks[1]}) failed",
        "silent": f"rank 1 (pid {ranks[1]}) was ended by SIGKILL",
    }[way]
    assert ending in run.output, run.output[-3000:]
    assert ("ValueError: a mishap" in run.output) == (way == "raised")
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    server.finish(tmp_path, *command)
    assert_same_end(tmp_path, uninterrupted[2])


# Damaged files.


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


# The disk.

# From the checkpoint with number FIRST on, four in a row do not fit; the small records do.
FULL_DISK = """
import errno, os, stat
sync, calls = os.fsync, []
def full(descriptor):
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode) or status.st_size < 100_000:
        return sync(descriptor)
    calls.append(1)
    if FIRST <= len(calls) < FIRST + 4:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return sync(descriptor)
os.fsync = full
"""


def test_a_full_disk_is_reported_and_training_goes_on(server, uninterrupted, tmp_path):
    # The first is at step 3, the second at 6.
    run = server.start(tmp_path, *SHORT, prepare=FULL_DISK.replace("FIRST", "2"))
    run.wait_for_steps(12)
    assert "model_iteration3.torch" in checkpoints(tmp_path)  # the last good one
    assert run.wait() == 0, run.output[-3000:]
    failed = [line for line in run.output.splitlines() if "not saved" in line]
    assert ["of step 6 " in failed[0], "of step 8 " in failed[1]] == [True, True]
    assert len(failed) == 4 and "No space left on device" in failed[0]
    assert_same_end(tmp_path, uninterrupted[1])
    assert not list(tmp_path.glob(".unfinished-*"))


def test_a_final_checkpoint_that_does_not_fit_fails_and_the_next_start_writes_it(
    server, uninterrupted, tmp_path
):
    run = server.start(
        tmp_path, f"config.OPTIMIZER.num_epochs={EPOCHS}", prepare=FULL_DISK.replace("FIRST", "3")
    )
    assert run.wait() == 1
    assert "No space left on device" in run.output
    assert checkpoints(tmp_path) == {"model_phase0.torch", "model_phase1.torch"}
    server.finish(tmp_path, f"config.OPTIMIZER.num_epochs={EPOCHS}")
    assert_same_end(tmp_path, uninterrupted[1])


def test_logs_that_cannot_be_written_do_not_end_the_run(server, tmp_path):
    for name in ("barlow.jsonl", "metrics.json", "stdout.json"):
        (tmp_path / name).symlink_to("/dev/full")
    run = server.finish(tmp_path, *SHORT)
    assert "metrics not written" in run.output
    assert final_state(tmp_path)["iteration"] == EPOCHS * STEPS_PER_EPOCH


# Two runs.


def test_a_second_run_in_the_folder_refuses_and_names_the_first(server, tmp_path):
    first = server.start(tmp_path, "config.OPTIMIZER.num_epochs=100")
    first.wait_for_steps(3)
    second = server.start(tmp_path, "config.OPTIMIZER.num_epochs=100", *TWO_PROCESSES)
    assert second.wait() == 1
    line = last_line(second)
    assert line.startswith(f"vissl_barlow: config.CHECKPOINT.DIR={tmp_path}: another run")
    assert f"pid {first.pid} on {os.uname().nodename}, started 20" in line
    steps = len(first.steps())
    first.wait_for_steps(steps + 2)
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    # Its lock is gone with it, though its file is not.
    assert (tmp_path / "barlow_run.lock").exists()
    third = server.start(tmp_path, "config.OPTIMIZER.num_epochs=100")
    third.wait_for_steps(len(first.steps()) + 2)
    third.send(signal.SIGKILL)
    third.wait()


# Numbers that are none.

NOT_FINITE = """
import torch
import vissl_barlow.vissl_plugin.components.train_step as step
prepare, calls = step._prepare, []
def broken(task, views):
    calls.append(1)
    views = prepare(task, views)
    if len(calls) == 11:
        if KIND == "gradient":
            weight = next(task.base_model.parameters())
            weight.register_hook(lambda gradient: gradient * float("nan"))
        else:
            views[0, 0, 0, 0, 0] = float(KIND)
    return views
step._prepare = broken
"""


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_stops_the_run_and_leaves_good_checkpoints(
    server, tmp_path, kind
):
    prepare = NOT_FINITE.replace("KIND", repr(kind))
    # Not a log step: the checkpoint of step 12, or 11 where it is due then, has to notice.
    every = 11 if kind == "gradient" else EVERY_STEPS
    run = server.start(
        tmp_path,
        SHORT[0],
        f"config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY={every}",
        "config.LOG_FREQUENCY=1000",
        prepare=prepare,
    )
    assert run.wait() == 1
    assert "FloatingPointError" in run.output and "saved so far are good" in run.output
    assert "Likely causes: a learning rate too high" in run.output
    newest = "model_phase0.torch" if kind == "gradient" else "model_iteration9.torch"
    assert newest in checkpoints(tmp_path)
    for name in checkpoints(tmp_path):
        state = read_checkpoint(tmp_path / name)
        assert state["iteration"] < 11
        model = state["classy_state_dict"]["base_model"]["model"]
        for tensor in [*model["trunk"].values(), *model["heads"].values()]:
            assert torch.isfinite(tensor).all()


@pytest.mark.parametrize(
    ("not_finite", "scaled", "stops"),
    [(0, False, False), (1, False, True), (9, True, False), (10, True, True)],
)
def test_loss_scaling_may_overflow_now_and_then(not_finite, scaled, stops):
    finite_loss = BarlowFiniteLoss()
    finite_loss.window_start, finite_loss.non_finite = 20, torch.tensor(not_finite)
    task = SimpleNamespace(iteration=29, amp_grad_scaler=object() if scaled else None)
    if stops:
        with pytest.raises(FloatingPointError, match=f"{not_finite} of the last 10 steps"):
            finite_loss.check(task)
    else:
        finite_loss.check(task)
    assert finite_loss.non_finite == 0


# Bad data.

CORPUS = 16  # files of each kind; the kinds make a corpus of more than 200


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def bad_files(rng: np.random.Generator) -> dict[str, tuple[bytes, bool]]:
    """A file of each kind: its content, and whether it is an image after all."""
    side = int(rng.integers(20, 60))
    photo = Image.fromarray(rng.integers(0, 256, (side, side + 3, 3), dtype=np.uint8))
    jpeg, png = encoded(photo, "JPEG"), encoded(photo, "PNG")
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(2, 9))  # orientation
    levels = Image.fromarray(rng.integers(0, 65536, (side, side), dtype=np.uint16))
    return {
        "cmyk.jpg": (encoded(photo.convert("CMYK"), "JPEG"), True),
        "palette.png": (encoded(photo.convert("P"), "PNG"), True),
        "sixteen_bit.png": (encoded(levels, "PNG"), True),
        "grey_alpha.png": (encoded(photo.convert("LA"), "PNG"), True),
        "rotated.jpg": (encoded(photo, "JPEG", exif=exif), True),
        "pixel.png": (encoded(photo.resize((1, 1)), "PNG"), True),
        "line.png": (encoded(photo.resize((20_000, 1)), "PNG"), True),
        "png_by_name_only.jpg": (png, True),
        "truncated.jpg": (jpeg[: int(rng.integers(4, len(jpeg) - 2))], False),
        "truncated.png": (png[: int(rng.integers(8, len(png) // 2))], False),
        "empty.jpg": (b"", False),
        "page.jpg": (b"<html>404</html>" * side, False),
        "noise.png": (rng.bytes(500), False),
    }


VANISH = """
import os
from pathlib import Path
from vissl_barlow.vissl_plugin.components.data import BarlowImageFolder
init = BarlowImageFolder.__init__
def listed(source, *args, **kwargs):
    init(source, *args, **kwargs)
    for path in Path(os.environ["IMAGES"]).glob("vanishing*.jpg"):
        path.unlink()
BarlowImageFolder.__init__ = listed
"""


def test_a_corpus_of_bad_files_is_converted_or_skipped_and_counted(server, tmp_path):
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    readable = {}
    for index in range(CORPUS):
        for name, (content, is_image) in bad_files(rng).items():
            (images / f"{index}_{name}").write_bytes(content)
            readable[f"{index}_{name}"] = is_image
    for index in range(4):
        (images / f"vanishing_{index}.jpg").write_bytes((images / "0_rotated.jpg").read_bytes())
        (images / f"folder_{index}.jpg").mkdir()
        (images / f"dangling_{index}.jpg").symlink_to("nowhere")
    assert len(list(images.iterdir())) > 200
    for name, is_image in readable.items():
        try:
            image = read_image(images / name)
        except UnreadableImage as error:
            assert not is_image, f"{name}: {error}"
        else:
            assert is_image and image.ndim == 3 and image.shape[2] == 3, name

    bad = sum(not is_image for is_image in readable.values()) + 8  # vanished, dangling
    run = server.finish(
        tmp_path / "run",
        "config.DATA.TRAIN.DATA_SOURCES=[barlow_folder]",
        f"config.DATA.TRAIN.DATA_PATHS=[{images}]",
        "config.DATA.TRAIN.DATA_LIMIT=-1",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
        "config.BARLOW.CHECK_IMAGES=0",
        "config.OPTIMIZER.num_epochs=2",
        prepare=VANISH,
        IMAGES=str(images),
    )
    total = len(readable) + 8
    assert total % 4 == 0  # or the last batch, dropped, would take some of them along
    entries = [json.loads(line) for line in (run.folder / "barlow.jsonl").read_text().splitlines()]
    assert len(entries) == 2 * total // 4
    assert entries[-1]["unreadable_images"] == 2 * bad
    assert f"{2 * bad} unreadable images so far were replaced by their neighbours" in run.output
    assert all(math.isfinite(entry["loss"]) for entry in entries)
    for name in ("0_empty.jpg", "0_noise.png", "vanishing_0.jpg", "dangling_0.jpg"):
        assert f"{images}/{name}: " in run.output


# A long run.


def test_memory_stays_flat(server, tmp_path):
    server.finish(
        tmp_path,
        "config.DATA.TRAIN.DATA_LIMIT=-1",
        f"config.OPTIMIZER.num_epochs={math.ceil(SOAK_STEPS / STEPS_OF_ALL_DIGITS)}",
        f"config.LOG_FREQUENCY={SOAK_STEPS // 50}",
        "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
    )
    entries = [json.loads(line) for line in (tmp_path / "barlow.jsonl").read_text().splitlines()]
    assert entries[-1]["iteration"] >= SOAK_STEPS
    memory = [entry["memory_gib"] * 1024 for entry in entries]
    assert memory[-1] - memory[len(memory) // 4] < SOAK_GROWTH_MB
