"""What the monitor logs is what it says: each number of barlow.jsonl computed anew from the run."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from forked_runs import RunServer
from monitor_trace import SLEEP, TRACE_FILE
from vissl_runs import succeeded, train

from vissl_barlow.digits import digits

N, R, D, STEPS, EPOCHS = 16, 64, 24, 4, 4
UNREADABLE = 3  # of the images of an epoch
PEAK, WARMUP, BIAS_LR_SCALE, LAMBDA = 0.2 * N / 256, STEPS, 0.024, 5e-3
# Far from the default, so that it matters in every dimension.
EPS = 0.3
LOGGED = [1, *range(2, STEPS * EPOCHS + 1, 2)]
OVERRIDES = (
    f"config.OPTIMIZER.num_epochs={EPOCHS}",
    "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=1",
    f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={N}",
    "config.DATA.TRAIN.TRANSFORMS=[{name:BarlowTwoViews,size:32},{name:Sleepy}]",
    "config.DATA.NUM_DATALOADER_WORKERS=0",
    "config.DATA.PIN_MEMORY=false",
    "config.BARLOW.CHECK_IMAGES=0",  # some of them are unreadable, on purpose
    f"config.MODEL.TRUNK.RESNETS={{DEPTH:18,WIDTH_MULTIPLIER:{R / 512}}}",
    f"config.MODEL.HEAD.PARAMS=[[barlow_projector,{{in_dim:{R},dims:[{D},{D},{D}]}}]]",
    f"config.LOSS.barlow_loss={{embedding_dim:{D},eps:{EPS},lambda_:{LAMBDA},form:auto}}",
    "config.MODEL.AMP_PARAMS.USE_AMP=false",
    "config.MACHINE.DEVICE=cpu",
    "config.DISTRIBUTED={BACKEND:gloo,NUM_NODES:1,NUM_PROC_PER_NODE:1}",
    "config.LOG_FREQUENCY=2",
    "config.HOOKS.TENSORBOARD_SETUP.USE_TENSORBOARD=true",
)
# The run computes in float32, the tests in float64.
RTOL = 1e-4
LR_RTOL = 1e-9


def write_images(folder: Path, indices) -> None:
    folder.mkdir()
    for number, index in enumerate(indices):
        cv2.imwrite(str(folder / f"{number:03d}.png"), digits("train")[0][index])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and output of a pretraining with the paper's recipe, small, on a few files."""
    folder = tmp_path_factory.mktemp("monitored")
    images = folder / "images"
    write_images(images, range(N * STEPS - UNREADABLE))
    for number in range(UNREADABLE):
        (images / f"broken_{number}.png").write_bytes(b"no image")
    config = "pretrain/vissl_barlow/resnet50_in1k_1000ep"
    data = f"config.DATA.TRAIN.DATA_PATHS=[{images}]"
    done = train(folder, config, *OVERRIDES, data, components="monitor_trace")
    succeeded(done)
    return folder, done.stdout + done.stderr


@pytest.fixture(scope="module")
def steps(run) -> list[dict]:
    return torch.load(run[0] / TRACE_FILE, weights_only=True)


@pytest.fixture(scope="module")
def entries(run) -> list[dict]:
    return [json.loads(line) for line in (run[0] / "barlow.jsonl").read_text().splitlines()]


def array(tensor) -> np.ndarray:
    return tensor.double().numpy()


def normalised(z: np.ndarray) -> np.ndarray:
    """A view of equation 2: centred along the batch, divided by its biased standard deviation."""
    return (z - z.mean(0)) / np.sqrt(((z - z.mean(0)) ** 2).mean(0) + EPS)


def rank(z: np.ndarray) -> float:
    s = np.linalg.svd(z - z.mean(0), compute_uv=False)
    p = s[s > 0] / s.sum()
    return math.exp(-(p * np.log(p)).sum())


def test_it_logs_the_first_step_the_last_and_every_second(entries, steps):
    assert [entry["iteration"] for entry in entries] == LOGGED
    assert [entry["epoch"] for entry in entries] == [(i - 1) // STEPS for i in LOGGED]
    assert len(steps) == STEPS * EPOCHS


def test_terms_and_matrix_are_those_of_equations_1_and_2(entries, steps):
    for entry in entries:
        step = steps[entry["iteration"] - 1]
        a, b = (normalised(array(step[name])) for name in ("z_a", "z_b"))
        c = a.T @ b / N
        off_diagonal = c[~np.eye(D, dtype=bool)]
        invariance, redundancy = ((1 - np.diag(c)) ** 2).sum(), (off_diagonal**2).sum()
        expected = {
            "loss": invariance + LAMBDA * redundancy,
            "invariance": invariance,
            "redundancy": redundancy,
            "diagonal_mean": np.diag(c).mean(),
            "off_diagonal_rms": math.sqrt((off_diagonal**2).mean()),
        }
        assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=RTOL)


def test_spread_and_rank_are_those_of_the_second_view(entries, steps):
    for entry in entries:
        step = steps[entry["iteration"] - 1]
        z, representations = array(step["z_b"]), array(step["representations"])
        assert representations.shape == (N, R)
        std = np.sqrt(((z - z.mean(0)) ** 2).mean(0))
        expected = {
            "embedding_std_min": std.min(),
            "embedding_std_mean": std.mean(),
            "effective_rank_embedding": rank(z),
            "effective_rank_representation": rank(representations),
        }
        assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=RTOL)


def test_gradient_norm_and_rates_are_the_steps_own(entries, steps):
    for entry in entries:
        done = entry["iteration"] - 1  # steps before this one
        gradient = array(steps[done]["gradient"])
        assert entry["grad_norm"] == pytest.approx(math.sqrt((gradient**2).sum()), rel=RTOL)
        if done < WARMUP:
            lr = PEAK * done / WARMUP
        else:
            progress = (done - WARMUP) / (STEPS * EPOCHS - WARMUP)
            lr = PEAK * (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * progress)) / 2)
        assert entry["lr"] == pytest.approx(lr, rel=LR_RTOL)
        assert entry["lr_bias"] == pytest.approx(BIAS_LR_SCALE * lr, rel=LR_RTOL)


def test_throughput_and_waiting_are_the_windows(entries, steps):
    """Between two log steps, or from an epoch's start; the trace knows when to microseconds."""
    slow, quick = [], []
    for previous, entry in pairwise([0, *LOGGED]):
        measured = entries[LOGGED.index(entry)]
        window = steps[previous:entry]
        if previous % STEPS == 0:
            first, last = window[0]["before_epoch"], window[0]["epoch"]
        else:
            first, last = (steps[previous - 1][name] for name in ("before", "after"))
        shortest, longest = window[-1]["before"] - last, window[-1]["after"] - first
        images = N * (entry - previous)
        assert images / longest <= measured["images_per_second"] <= images / shortest
        waited = sum(step["data_wait"] for step in window)
        assert waited / longest <= measured["data_wait_share"] <= min(waited / shortest, 1)
        is_slow = (entry - 1) // STEPS % 2 == 1
        if is_slow:
            assert measured["images_per_second"] < 1 / (2 * SLEEP)
        (slow if is_slow else quick).append(measured["data_wait_share"])
    assert min(slow) > 0.5 and max(slow) <= 1
    assert np.mean(quick) < np.mean(slow)


def test_memory_and_unreadable_images_are_counted_so_far(entries, steps):
    unreadable = 0
    for index, step in enumerate(steps):
        unreadable += int((step["valid"] != 1).sum())
        if index + 1 in LOGGED:
            entry = entries[LOGGED.index(index + 1)]
            assert entry["unreadable_images"] == unreadable
            peak = entry["memory_gib"] * 2**30
            assert step["least_memory"] <= peak <= step["most_memory"]
    assert unreadable == UNREADABLE * EPOCHS


def test_peak_memory_is_not_that_of_the_process_which_started_this_one():
    child = (
        "import vissl.hooks, vissl_barlow, torch; vissl_barlow.register();"
        "from vissl_barlow.vissl_plugin.hooks.measure import peak_memory;"
        "print(peak_memory(torch.device('cpu')))"
    )
    parent = (
        "import subprocess, sys; held = b'x' * (2 << 30);"
        f"subprocess.run([sys.executable, '-W', 'ignore', '-c', {child!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 2**27 < int(done.stdout.split()[-1]) < 2 << 30


def test_tensorboard_gets_the_same_numbers(run, entries):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in run[0].rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    for name in entries[0]:
        scalars = events.Scalars(f"Barlow/{name}")
        assert [scalar.step for scalar in scalars] == LOGGED
        # TensorBoard keeps float32.
        expected = [entry[name] for entry in entries]
        assert [scalar.value for scalar in scalars] == pytest.approx(expected, rel=1e-6)


def test_nothing_is_said_of_a_collapse_while_there_is_none(run):
    assert "collapse at step" not in run[1]


STILL = (
    "{name:BarlowTwoViews,size:32,crop_scale:[1.0,1.0],crop_ratio:[1.0,1.0],flip_p:0.0,jitter_p:0.0,"
    "grayscale_p:0.0,blur_p:[0.0,0.0],solarize_p:[0.0,0.0]}"
)


@pytest.mark.parametrize(
    ("different", "problem", "rank"),
    [(1, "the embeddings are constant", 1.0), (2, "the embeddings lie on a line", 1.0)],
)
def test_a_collapse_is_said_once_in_plain_words(different, problem, rank, tmp_path):
    """For real: of one image, or two, without augmentation, there is nothing more to embed."""
    write_images(tmp_path / "images", [index for index in range(different)] * (16 // different))
    with RunServer() as server:
        run = server.finish(
            tmp_path / "run",
            "config.DATA.TRAIN.DATA_SOURCES=[barlow_folder]",
            f"config.DATA.TRAIN.DATA_PATHS=[{tmp_path}/images]",
            "config.DATA.TRAIN.DATA_LIMIT=-1",
            f"config.DATA.TRAIN.TRANSFORMS=[{STILL}]",
            "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16",
            "config.OPTIMIZER.num_epochs=2",
        )
    said = [line for line in run.output.splitlines() if "collapse at step" in line]
    assert len(said) == 1
    assert f"collapse at step 1: {problem} " in said[0]
    assert "Likely causes: a redundancy weight near 0" in said[0]
    assert "a batch of nearly equal images" in said[0]
    lines = (tmp_path / "run" / "barlow.jsonl").read_text().splitlines()
    entry = json.loads(lines[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert entry["effective_rank_embedding"] == pytest.approx(rank, abs=1e-3)
