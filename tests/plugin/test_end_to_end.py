"""Pretraining under VISSL's trainer: against Algorithm 1, and against itself after a kill."""

import math
import signal

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from traced_float64 import KILL_AFTER, TRACE_FILE
from vissl_runs import succeeded, train

N, R, D, STEPS, EPOCHS = 16, 64, 24, 20, 4
FINAL_CHECKPOINT = f"model_final_checkpoint_phase{EPOCHS - 1}.torch"
CONFIG = "pretrain/vissl_barlow/resnet50_in1k_1000ep"
# The paper's run made small; what the recipe says of loss, optimizer and schedule stays.
OVERRIDES = (
    f"config.OPTIMIZER.num_epochs={EPOCHS}",
    "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=1",
    f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={N}",
    f"config.DATA.TRAIN.DATA_LIMIT={N * STEPS // EPOCHS}",
    "config.DATA.TRAIN.DATA_SOURCES=[barlow_digits]",
    "config.DATA.TRAIN.DATASET_NAMES=[barlow_digits]",
    "config.DATA.TRAIN.TRANSFORMS=[{name:BarlowTwoViews,size:32},{name:TracedFloat64}]",
    "config.DATA.NUM_DATALOADER_WORKERS=0",
    "config.DATA.PIN_MEMORY=false",
    f"config.MODEL.TRUNK.RESNETS={{DEPTH:18,WIDTH_MULTIPLIER:{R / 512}}}",
    f"config.MODEL.HEAD.PARAMS=[[barlow_projector,{{in_dim:{R},dims:[{D},{D},{D}]}}]]",
    f"config.LOSS.barlow_loss.embedding_dim={D}",
    "config.MODEL.AMP_PARAMS.USE_AMP=false",
    "config.MACHINE.DEVICE=cpu",
    "config.DISTRIBUTED={BACKEND:gloo,NUM_NODES:1,NUM_PROC_PER_NODE:1}",
    "config.CHECKPOINT.CHECKPOINT_FREQUENCY=2",  # after the first epoch, the third and the last
)
# Relative to how far a parameter moved in 20 steps. The same operations in another order end up
# 1e-13 apart; the least of the recipe's numbers, the weight decay, is worth 1e-7.
RTOL = 1e-10
# Relative to the parameter itself: one that hardly moves is rounded in its last bit.
EPS = torch.finfo(torch.float64).eps


def pretrain(folder, *overrides, **env):
    return train(folder, CONFIG, *OVERRIDES, *overrides, components="traced_float64", env=env)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    succeeded(pretrain(folder))
    return folder


def load_final(folder):
    return torch.load(folder / FINAL_CHECKPOINT, weights_only=True)["classy_state_dict"]


def torchvision_names(weights):
    """One flat dictionary of VISSL's trunk and head weights under the reference's names."""
    trunk = {f"0.{k.removeprefix('_feature_blocks.')}": v for k, v in weights["trunk"].items()}
    heads = {f"1.{k.removeprefix('0.projector.')}": v for k, v in weights["heads"].items()}
    return trunk | heads


def algorithm_1(initial, inputs):
    """The network after Algorithm 1, with the recipe's numbers, on `inputs` from `initial`."""
    trunk = resnet18()
    trunk.fc = nn.Identity()
    projector = nn.Sequential(
        *(nn.Linear(512, D, bias=False), nn.BatchNorm1d(D), nn.ReLU()),
        *(nn.Linear(D, D, bias=False), nn.BatchNorm1d(D), nn.ReLU()),
        nn.Linear(D, D, bias=False),
    )
    f = nn.Sequential(trunk, projector)
    for name, tensor in initial.items():  # load_state_dict would insist on torchvision's width
        module, _, attribute = name.rpartition(".")
        is_parameter = attribute in ("weight", "bias")
        value = nn.Parameter(tensor.clone()) if is_parameter else tensor.clone()
        setattr(f.get_submodule(module), attribute, value)
    momenta = {p: torch.zeros_like(p) for p in f.parameters()}
    peak, warmup = 0.2 * N / 256, STEPS // EPOCHS
    off_diagonal = 1 - torch.eye(D, dtype=torch.float64)

    for step, (y_a, y_b) in enumerate(inputs):
        z_a, z_b = f(y_a), f(y_b)
        z_a_norm, z_b_norm = (
            (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z_a, z_b)
        )
        c = z_a_norm.T @ z_b_norm / N
        c_diff = (c - torch.eye(D, dtype=torch.float64)).square()
        loss = (c_diff * (1 - off_diagonal)).sum() + 5e-3 * (c_diff * off_diagonal).sum()
        f.zero_grad()
        (loss / 32).backward()  # the gradient of the released code on 32 processes

        if step < warmup:
            lr = peak * step / warmup
        else:
            cosine = math.cos(math.pi * (step - warmup) / (STEPS - warmup))
            lr = peak * (1e-3 + (1 - 1e-3) * (1 + cosine) / 2)
        with torch.no_grad():
            for p, momentum in momenta.items():
                if p.ndim == 1:
                    momentum.mul_(0.9).add_(p.grad)
                    p -= lr * 0.0048 / 0.2 * momentum
                else:
                    update = p.grad + 1.5e-6 * p
                    momentum.mul_(0.9).add_(update * (1e-3 * p.norm() / update.norm()))
                    p -= lr * momentum
    return f


def test_twenty_steps_are_algorithm_1s(uninterrupted):
    trace = torch.load(uninterrupted / TRACE_FILE, weights_only=True)
    initial = torchvision_names(trace["initial"])
    trained = torchvision_names(load_final(uninterrupted)["base_model"]["model"])
    assert len(trace["inputs"]) == STEPS
    expected = algorithm_1(initial, trace["inputs"]).state_dict()

    assert trained.keys() == expected.keys()
    for name, start in initial.items():
        if name.endswith("num_batches_tracked"):
            assert trained[name] == expected[name] == 2 * STEPS
            continue
        moved = (expected[name] - start).norm()
        error = (trained[name] - expected[name]).norm()
        assert moved > 0, name
        assert error <= RTOL * moved + EPS * start.norm(), f"{name}: {error / moved:.1e}"


def test_no_view_is_seen_twice(uninterrupted):
    """Every image has views of its own in every epoch: the run passes over its images four times."""
    inputs = torch.load(uninterrupted / TRACE_FILE, weights_only=True)["inputs"]
    views = [view.numpy().tobytes() for pair in inputs for batch in pair for view in batch]
    assert len(views) == 2 * N * STEPS
    assert len(set(views)) == len(views)


# Checkpoints after epochs only, or every three steps too: the second epoch is steps 6 to 10.
@pytest.mark.parametrize(("every_steps", "resumed_at"), [(-1, 5), (3, 6)])
def test_a_killed_run_resumes_to_the_same_weights(every_steps, resumed_at, uninterrupted, tmp_path):
    command = (tmp_path, f"config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY={every_steps}")
    killed = pretrain(*command, **{KILL_AFTER: "8"})
    # VISSL 0.1.6 trains in the process that was started, main beside it.
    assert killed.returncode == -signal.SIGKILL or "ended by SIGKILL" in killed.stderr
    assert not (tmp_path / FINAL_CHECKPOINT).exists()
    succeeded(pretrain(*command))

    inputs = torch.load(tmp_path / TRACE_FILE, weights_only=True)["inputs"]
    assert len(inputs) == STEPS - resumed_at
    once, twice = load_final(uninterrupted), load_final(tmp_path)
    for part in ("base_model", "optimizer"):
        torch.testing.assert_close(twice[part], once[part], rtol=0, atol=0)
