"""The keys of the training step, in runs under VISSL's trainer, and what a step waits for."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from step_trace import TRACE_FILE
from vissl_runs import succeeded, train

from vissl_barlow.views import IMAGENET_MEAN, IMAGENET_STD, TwoViews

STEPS, N = 8, 32
OVERRIDES = (
    "config.OPTIMIZER.num_epochs=1",
    "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
    f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={N}",
    f"config.DATA.TRAIN.DATA_LIMIT={STEPS * N}",
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:64,dims:[64,64,64]}]]",
    "config.LOSS.barlow_loss.embedding_dim=64",
    "config.BARLOW.PROBE.KIND=",
    "config.LOG_FREQUENCY=1000",
)
TRANSFORMS = "config.DATA.TRAIN.TRANSFORMS"
TWO_VIEWS = "{name:BarlowTwoViews,size:32}"
FLOAT64 = (f"{TRANSFORMS}=[{TWO_VIEWS},{{name:TracedFloat64}}]",)
FLOAT32 = (f"{TRANSFORMS}=[{TWO_VIEWS}]",)
BFLOAT16 = (*FLOAT32, "config.MODEL.AMP_PARAMS.USE_AMP=true")
# Sums in another order, at a learning rate that trains: float64 grows 1e-10 apart in these steps.
RTOL = 1e-7
# Of the first step: eight bits of mantissa through twenty layers, and back, are 0.04 of the gradient.
BFLOAT16_RTOL = 0.1


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory):
    """Trains with overrides, once for each set; the folder of the run."""
    folders = {}

    def run(*overrides):
        if overrides not in folders:
            folder = tmp_path_factory.mktemp("run")
            config = "pretrain/vissl_barlow/digits_quickstart"
            succeeded(train(folder, config, *OVERRIDES, *overrides, components="step_trace"))
            folders[overrides] = folder
        return folders[overrides]

    return run


def trace(folder):
    return json.loads((folder / TRACE_FILE).read_text())


def first_logged(folder):
    return json.loads((folder / "barlow.jsonl").read_text().partition("\n")[0])


def final_weights(folder):
    checkpoint = torch.load(folder / "model_final_checkpoint_phase0.torch", weights_only=True)
    return checkpoint["classy_state_dict"]["base_model"]["model"]


@pytest.mark.parametrize("precision", [FLOAT64, BFLOAT16], ids=["float64", "bfloat16"])
def test_the_host_reads_no_tensor_between_log_steps(pretrain, precision):
    reads = trace(pretrain(*precision))["reads"]
    assert len(reads) == STEPS
    # The monitor logs the first step and the last; VISSL's own hook the first two and every fifth of
    # the first hundred.
    assert {step for step, readers in enumerate(reads) if readers} == {0, 1, 5, STEPS - 1}
    assert set(reads[1]) == set(reads[5]) == {"log_hooks.py:on_update"}


def test_bfloat16_is_for_the_network_alone(pretrain):
    assert trace(pretrain(*BFLOAT16))["dtypes"] == {
        "embeddings": "torch.bfloat16",
        "loss": "torch.float32",
        "weights": "torch.float32",
    }
    found, expected = (first_logged(pretrain(*precision)) for precision in (BFLOAT16, FLOAT32))
    for name in ("loss", "invariance", "redundancy", "grad_norm"):
        assert found[name] == pytest.approx(expected[name], rel=BFLOAT16_RTOL)


@pytest.mark.parametrize("backend", ["fast", "pil"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bytes_reach_the_trunk_normalised_and_in_its_memory_format(memory_format, backend):
    from vissl_barlow.vissl_plugin.components.train_step import _prepare
    from vissl_barlow.vissl_plugin.components.views import barlow_collator

    n, s = 3, 16
    two_views = TwoViews(s, backend=backend, normalize_on_device=True)
    images = np.random.default_rng(0).integers(0, 256, (n, 20, 24, 3), np.uint8)
    pairs = [list(two_views(image)) for image in images]
    samples = [
        {"data": pair, "label": [i, i], "data_valid": [1, 1], "data_idx": [i, i]}
        for i, pair in enumerate(pairs)
    ]
    batch = barlow_collator(samples)
    (views,) = batch["data"]
    assert views.dtype == torch.uint8 and views.shape == (2, n, 3, s, s)
    assert all(torch.equal(views[v, i], pairs[i][v]) for v in (0, 1) for i in range(n))
    assert views.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)  # as they came
    assert batch["label"][0].tolist() == [0, 1, 2]

    channels_last = memory_format == torch.channels_last
    config = SimpleNamespace(BARLOW=SimpleNamespace(CHANNELS_LAST=channels_last))
    task = SimpleNamespace(config=config, normalization=(IMAGENET_MEAN, IMAGENET_STD))
    prepared = _prepare(task, views)
    assert prepared.flatten(0, 1).is_contiguous(memory_format=memory_format)
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in task.normalization)
    expected = (views.double() / 255 - mean) / std
    torch.testing.assert_close(prepared.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", ["CHANNELS_LAST", "COMPILE"])
def test_memory_format_and_compilation_change_speed_only(pretrain, key):
    plain, other = pretrain(*FLOAT64), pretrain(*FLOAT64, f"config.BARLOW.{key}=true")
    traced = trace(other)
    assert traced["channels_last"] == (key == "CHANNELS_LAST")
    assert traced["graphs"] >= (2 if key == "COMPILE" else 0)  # the trunk's and the head's
    expected, weights = final_weights(plain), final_weights(other)
    for part in ("trunk", "heads"):
        torch.testing.assert_close(weights[part], expected[part], rtol=RTOL, atol=RTOL)


def test_what_a_step_draws_depends_on_its_number_and_the_seed_alone():
    """So that a trunk with dropout, such as VISSL's xcit, resumes to the same bits."""
    from vissl_barlow.vissl_plugin.components.train_step import barlow_train_step

    def dropped(seed, step, drawn_before):
        torch.rand(drawn_before)
        model = torch.nn.Dropout(0.5)
        views = torch.ones(2, 4, 3, 8, 8)
        task = SimpleNamespace(
            perf_stats=None,
            data_iterator=iter([{"data": [views], "label": [torch.zeros(4)]}]),
            data_and_label_keys={"input": ["data"], "target": ["label"]},
            config=SimpleNamespace(SEED_VALUE=seed, BARLOW=SimpleNamespace(CHANNELS_LAST=False)),
            train=True,
            iteration=step,
            device=torch.device("cpu"),
            pieces=None,
            autocast=contextlib.nullcontext,
            model=model,
            loss=lambda output, target: output.sum().requires_grad_(),
            losses=[],
            run_hooks=lambda name: None,
            optimizer=SimpleNamespace(zero_grad=lambda: None, step=lambda where: None),
            where=0.0,
            amp_grad_scaler=None,
            num_updates=0,
            get_global_batchsize=lambda: 4,
        )
        barlow_train_step(task)
        return task.last_batch.model_output

    first = dropped(0, 5, drawn_before=1)
    assert torch.equal(dropped(0, 5, drawn_before=2), first)
    for seed, step in ((0, 6), (1, 5)):
        assert not torch.equal(dropped(seed, step, drawn_before=1), first)
