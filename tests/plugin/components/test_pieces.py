"""Steps in pieces under VISSL: what they compute, against ordinary steps and against plain autograd."""

import copy
from types import SimpleNamespace

import pytest
import torch
from forked_runs import TWO_PROCESSES
from interrupted_runs import assert_same_end, at_steps, final_state, leaves
from torch import nn
from vissl_runs import compose

import vissl_barlow
from vissl_barlow.paths import config_folder

vissl_barlow.register()

from classy_vision.losses import build_loss  # noqa: E402
from vissl.models import build_model  # noqa: E402

from vissl_barlow.vissl_plugin.components.pieces import step_in_pieces  # noqa: E402

N, CHUNK, D = 8, 3, 6  # pieces of 3, 3 and 2
RTOL = 1e-10
# A gradient that is 0 but for rounding: what batch norm takes away of a bias.
EPS = 1e-13
GROUP = config_folder("configs") / "config/pretrain/vissl_barlow"
# One for each model; losses know nothing of stages, so that whole views may be their pieces.
OF_MODELS = (
    *("resnet50_in1k_300ep", "ablations/stop_gradient_predictor", "ablations/stop_gradient"),
    *("ablations/predictor", "ablations/simsiam"),
)
OF_LOSSES = (
    *("ablations/byol", "ablations/cross_entropy", "ablations/feature_normalisation"),
    "ablations/no_bn_no_normalisation",
    *(f"objectives/{path.stem}" for path in sorted((GROUP / "objectives").glob("*.yaml"))),
)


def small(name: str):
    """The config `name` of the paper's sizes, for a small network."""
    config = compose(f"pretrain/vissl_barlow/{name}")
    config.MODEL.TRUNK.RESNETS = {"DEPTH": 18, "WIDTH_MULTIPLIER": 0.0625, "SMALL_STEM": True}
    in_dim = 32
    for _, options in config.MODEL.HEAD.PARAMS:
        options.update(in_dim=in_dim, dims=[D] * len(options["dims"]))
        in_dim = D
    section = config.LOSS[config.LOSS.name]
    if "sub_batch_size" in section:
        section.update(sub_batch_size=N, eps=0.1)
    return config


def model_and_loss(config) -> tuple[nn.Module, nn.Module]:
    config.MODEL["_MODEL_INIT_SEED"] = 0
    torch.manual_seed(0)
    model = build_model(config.MODEL, config.OPTIMIZER).double().train()
    return model, build_loss({"name": config.LOSS.name, **config.LOSS[config.LOSS.name]})


def step(model, views, loss, chunk_size: int, mode: str):
    """The outputs that the loss was given, after a step in pieces."""
    barlow = SimpleNamespace(CHUNK_SIZE=chunk_size, CHUNK_BATCH_NORM=mode)
    task = SimpleNamespace(config=SimpleNamespace(BARLOW=barlow), base_model=model, model=model)
    given = []

    def compute(outputs):
        given.extend(outputs)
        return loss(outputs, None)

    step_in_pieces(task).backward(views, compute, None)
    return given


def gradients(model) -> dict:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def buffers(model) -> dict:
    # A predictor's are of no use: nothing but training calls it. In pieces it sees both views.
    return {n: b for n, b in model.named_buffers() if not n.startswith("heads.1.")}


@pytest.mark.parametrize(
    ("name", "chunk_size", "mode"),
    [
        *((name, CHUNK, "exact") for name in OF_MODELS),
        *((name, 0, "per_view") for name in OF_LOSSES),
    ],
)
def test_the_update_of_every_objective_is_the_ordinary_one(name, chunk_size, mode):
    """And what hooks see of it: outputs, representations, running statistics."""
    model, loss = model_and_loss(small(name))
    views = torch.randn(2, N, 3, 8, 8, dtype=torch.float64)
    expected = copy.deepcopy(model)
    outputs = expected(views)
    loss(outputs, None).backward()
    given = step(model, views, loss, chunk_size, mode)
    torch.testing.assert_close(given, outputs, rtol=RTOL, atol=RTOL)
    assert [z.requires_grad for z in given] == [z.requires_grad for z in outputs]
    torch.testing.assert_close(model.representations, expected.representations)
    for found, wanted in ((gradients, gradients), (buffers, buffers)):
        found, wanted = found(model), wanted(expected)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            error = (found[key] - value).double().norm()
            assert error <= RTOL * value.double().norm() + EPS, key


@pytest.mark.parametrize("name", ["resnet50_in1k_300ep", "ablations/byol", "ablations/simsiam"])
def test_pieces_with_statistics_of_their_own_are_small_batches_under_one_loss(name):
    model, loss = model_and_loss(small(name))
    views = torch.randn(2, N, 3, 8, 8, dtype=torch.float64)
    expected = copy.deepcopy(model)
    of_pieces = zip(*(expected(piece) for piece in views.split(CHUNK, 1)))
    loss([torch.cat(each) for each in of_pieces], None).backward()
    step(model, views, loss, CHUNK, "per_piece")
    torch.testing.assert_close(gradients(model), gradients(expected), rtol=RTOL, atol=RTOL)


@pytest.mark.parametrize("mode", ["per_piece", "exact"])
def test_the_pieces_of_autocast_are_whole_for_the_loss(mode):
    model, loss = model_and_loss(small("resnet50_in1k_300ep"))
    model.float()
    views = torch.randn(2, N, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        given = step(model, views, loss, CHUNK, mode)
    assert [(z.dtype, len(z)) for z in given] == [(torch.bfloat16, N)] * 2
    assert all(g.isfinite().all() for g in gradients(model).values())


def test_a_trunk_that_names_no_stages_is_one(monkeypatch):
    model, loss = model_and_loss(small("resnet50_in1k_300ep"))
    expected = copy.deepcopy(model)
    views = torch.randn(2, N, 3, 8, 8, dtype=torch.float64)
    loss(expected(views), None).backward()
    monkeypatch.delattr(type(model.trunk), "stages")
    step(model, views, loss, CHUNK, "exact")
    torch.testing.assert_close(gradients(model), gradients(expected), rtol=RTOL, atol=RTOL)


FLOAT64 = "import torch, traced_float64; torch.set_default_dtype(torch.float64)\n"
SHORT_RUN = (
    "config.OPTIMIZER.num_epochs=1",
    "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
    "config.DATA.TRAIN.DATA_LIMIT=24",  # 3 steps of 8
    "config.DATA.TRAIN.TRANSFORMS=[{name:BarlowTwoViews,size:16},{name:TracedFloat64}]",
)
EXACT = (f"config.BARLOW.CHUNK_SIZE={CHUNK}", "config.BARLOW.CHUNK_BATCH_NORM=exact")
SYNCHRONISED = "config.MODEL.SYNC_BN_CONFIG={CONVERT_BN_TO_SYNC_BN:true,GROUP_SIZE:0}"


def weights(run) -> dict[str, torch.Tensor]:
    model = final_state(run.folder)["classy_state_dict"]["base_model"]["model"]
    return dict(leaves({part: model[part] for part in ("trunk", "heads")}))


def test_runs_in_pieces_end_with_the_weights_of_a_run_without(server, tmp_path):
    def finish(name, *overrides):
        run = server.finish(tmp_path / name, *SHORT_RUN, *overrides, prepare=FLOAT64)
        return weights(run)

    whole = finish("whole")
    found = {
        "pieces of 3, 3 and 2": finish("exact", *EXACT),
        "one view at a time": finish("view", "config.BARLOW.CHUNK_BATCH_NORM=per_view"),
        "two processes, of 3 and 1": finish("two", *TWO_PROCESSES, SYNCHRONISED, *EXACT),
    }
    for name, trained in found.items():
        assert trained.keys() == whole.keys()
        for key, value in whole.items():
            error = torch.linalg.vector_norm((trained[key] - value).double())
            assert error <= RTOL * torch.linalg.vector_norm(value.double()), (name, key)
    own = finish("own", f"config.BARLOW.CHUNK_SIZE={CHUNK}")
    assert any((own[key] - value).double().norm() > 1e-6 for key, value in whole.items())


def test_a_run_in_pieces_resumes_in_the_middle_of_an_epoch_to_the_same_bits(server, tmp_path):
    options = (
        "config.OPTIMIZER.num_epochs=2",
        "config.DATA.TRAIN.DATA_LIMIT=32",
        "config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY=3",
        f"config.BARLOW.CHUNK_SIZE={CHUNK}",
    )
    whole = server.finish(tmp_path / "whole", *options)
    die = "import os, signal\nfirst = second = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
    killed = server.start(tmp_path / "killed", *options, prepare=die + at_steps(4))
    assert killed.wait() < 0
    server.finish(tmp_path / "killed", *options)
    assert_same_end(tmp_path / "killed", whole.folder)
