"""BYOL and SimSiam: their parts against references written here, and their models under VISSL."""

import copy
import math
import os
from types import SimpleNamespace

import pytest
import torch
from gloo import run_gloo
from torch import nn
from torch.nn import functional as F
from vissl_runs import resolve, run_engines, succeeded

from vissl_barlow.byol import (
    build_normalised_projector,
    byol_loss,
    simsiam_loss,
    target_momentum,
    update_target,
)

# Float64 against float64: what is left is the order of the sums.
EXACT = 1e-12
# Float32 networks, the same operations in the same order.
SINGLE = 1e-6
N, D = 10, 5


def _outputs():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(N, D, generator=g, dtype=torch.float64) for _ in range(4)]


def _byol_reference(p_a, p_b, target_a, target_b):
    """Equation 2 of Grill et al.: squared distance of unit vectors, both directions, mean over rows."""
    total = 0
    for p, target in ((p_a, target_b), (p_b, target_a)):
        for x, y in zip(p, target):
            total = total + ((x / x.norm() - y / y.norm()) ** 2).sum() / len(p)
    return total


def _simsiam_reference(p_a, p_b, target_a, target_b):
    """Algorithm 1 of Chen & He: D(p1, z2) / 2 + D(p2, z1) / 2, D the negative cosine."""
    forth, back = F.cosine_similarity(p_a, target_b), F.cosine_similarity(p_b, target_a)
    return -forth.mean() / 2 - back.mean() / 2


LOSSES = [(byol_loss, _byol_reference), (simsiam_loss, _simsiam_reference)]


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
def test_loss_is_the_reference_and_stops_at_the_targets(loss, reference):
    ours, theirs = ([x.clone().requires_grad_() for x in _outputs()] for _ in range(2))
    value, expected = loss(*ours).loss, reference(*theirs)
    torch.testing.assert_close(value, expected, rtol=EXACT, atol=EXACT)
    value.backward()
    gradients = torch.autograd.grad(expected, theirs[:2])
    for x, gradient in zip(ours, gradients):
        torch.testing.assert_close(x.grad, gradient, rtol=EXACT, atol=EXACT)
    assert ours[2].grad is None and ours[3].grad is None


def _on_own_rows(rank, shares):
    results = []
    for loss, _ in LOSSES:
        outputs = [x.split(shares)[rank].clone().requires_grad_() for x in _outputs()]
        value = loss(*outputs, reference_world_size=4).loss
        results.append((value.detach(), *torch.autograd.grad(value, outputs[:2])))
    return results


def test_two_processes_of_unequal_shares_compute_the_loss_of_one():
    on_each = run_gloo(_on_own_rows, 2, [7, 3])
    for index, (_, reference) in enumerate(LOSSES):
        outputs = [x.requires_grad_() for x in _outputs()]
        value = reference(*outputs)
        gradients = torch.autograd.grad(value, outputs[:2])
        for process in on_each:
            torch.testing.assert_close(process[index][0], value.detach(), rtol=EXACT, atol=EXACT)
        for view, gradient in enumerate(gradients, start=1):
            ours = torch.cat([process[index][view] for process in on_each]) / 2  # DDP's average
            torch.testing.assert_close(ours, gradient / 4, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 0.996), (0.25, 0.996585786437627), (0.5, 0.998), (1.0, 1.0)]
)
def test_target_momentum_rises_along_a_cosine(progress, expected):
    assert target_momentum(progress, base=0.996) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("progress", "base"), [(-0.1, 0.9), (1.1, 0.9), (0.5, 1.1), (0.5, -0.1)])
def test_target_momentum_refuses_what_is_out_of_range(progress, base):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        target_momentum(progress, base=base)


def test_the_target_averages_parameters_and_keeps_its_own_batch_statistics():
    online, target = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    online(torch.randn(8, 3))
    before = copy.deepcopy(target.state_dict())
    update_target(target, online, 0.9)
    for name, tensor in target.named_parameters():
        expected = 0.9 * before[name] + 0.1 * online.state_dict()[name]
        torch.testing.assert_close(tensor.detach(), expected, rtol=SINGLE, atol=SINGLE)
    for name, tensor in target.named_buffers():
        assert torch.equal(tensor, before[name])


def test_the_normalised_projector_ends_in_unit_variance():
    output = build_normalised_projector(6, [8, 4])(torch.randn(64, 6) * 5 + 3)
    torch.testing.assert_close(output.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.var(0, unbiased=False), torch.ones(4), rtol=0, atol=1e-2)


SMALL = (
    "config/pretrain/vissl_barlow=digits_quickstart",
    "config.DATA.TRAIN.TRANSFORMS.0.size=16",
    "config.BARLOW.PROBE.KIND=''",
    "config.LOG_FREQUENCY=1",
)
BYOL = (
    *SMALL,
    "config.MODEL.HEAD.PARAMS.0.1={in_dim:256,dims:[32,16]}",
    "config.MODEL.HEAD.PARAMS.1.1={in_dim:16,dims:[32,16]}",
    "config.LOSS.barlow_byol_loss.embedding_dim=16",
)
SIMSIAM = (
    *SMALL,
    "config.MODEL.HEAD.PARAMS.0.1={in_dim:256,dims:[32,16]}",
    "config.MODEL.HEAD.PARAMS.1.1={in_dim:16,dims:[8,16]}",
    "config.LOSS.barlow_simsiam_loss.embedding_dim=16",
)


def _model(folder, config, *overrides):
    from vissl.models import build_model

    resolved = resolve(folder, f"pretrain/vissl_barlow/ablations/{config}", *overrides)
    return build_model(resolved.MODEL, resolved.OPTIMIZER).train()


def _run(trunk, heads, view):
    output = trunk(view)[0]
    for head in heads:
        output = head(output)
    return output


def test_byol_predicts_one_view_from_the_other_networks_other_view(tmp_path):
    model = _model(tmp_path, "byol", *BYOL)
    for parameter in model.target.parameters():
        parameter.data.mul_(1.1)  # a target that is not the online network any more
    y_a, y_b = views = torch.randn(2, 6, 3, 16, 16)
    reference = copy.deepcopy(model)
    p_a, p_b, target_a, target_b = model(views)
    trunk, projector = reference.target
    torch.testing.assert_close(p_a, _run(reference.trunk, reference.heads, y_a))
    torch.testing.assert_close(p_b, _run(reference.trunk, reference.heads, y_b))
    torch.testing.assert_close(target_a, _run(trunk, [projector], y_a))
    torch.testing.assert_close(target_b, _run(trunk, [projector], y_b))
    assert not target_a.requires_grad and not target_b.requires_grad


def test_simsiam_takes_its_own_embeddings_for_targets(tmp_path):
    model = _model(tmp_path, "simsiam", *SIMSIAM)
    y_a, _ = views = torch.randn(2, 6, 3, 16, 16)
    reference = copy.deepcopy(model)
    p_a, _, target_a, target_b = model(views)
    embedding = _run(reference.trunk, reference.heads[:1], y_a)
    torch.testing.assert_close(target_a, embedding)
    torch.testing.assert_close(p_a, reference.heads[1](embedding))
    assert p_a.requires_grad and not target_a.requires_grad and not target_b.requires_grad


def test_outside_training_the_model_gives_embeddings(tmp_path):
    model = _model(tmp_path, "byol", *BYOL).eval()
    views = torch.randn(2, 3, 3, 16, 16)
    torch.testing.assert_close(model(views)[1], _run(model.trunk, model.heads[:1], views[1]))


def test_the_optimizer_never_sees_the_target(tmp_path):
    from vissl.optimizers import get_optimizer_param_groups

    resolved = resolve(tmp_path, "pretrain/vissl_barlow/ablations/byol", *BYOL)
    model = _model(tmp_path, "byol", *BYOL)
    schedulers = {"lr": None, "lr_head": None}
    groups = get_optimizer_param_groups(model, resolved.MODEL, resolved.OPTIMIZER, schedulers)
    optimized = {id(p) for group in groups for p in group["params"]}
    online = {id(p) for part in (model.trunk, model.heads) for p in part.parameters()}
    assert optimized == online


def test_the_hook_starts_from_the_online_network_and_follows_the_schedule(tmp_path):
    from vissl_barlow.vissl_plugin.hooks.target import BarlowTargetHook

    model = _model(tmp_path, "byol", *BYOL)
    online, target = (
        next(trunk.parameters()) for trunk in (model.trunk, model.target[0])
    )  # the first convolution
    hook = BarlowTargetHook(0.5)
    with torch.no_grad():
        online.add_(1.0)  # as weights loaded from a file would
    task = SimpleNamespace(base_model=model, iteration=0, train=True, where=1 / 3)
    hook.on_start(task)
    assert torch.equal(target, online)

    with torch.no_grad():
        online.add_(1.0)
    hook.on_update(task)
    momentum = 1 - 0.5 * (math.cos(math.pi / 3) + 1) / 2
    torch.testing.assert_close(target, online - momentum, rtol=SINGLE, atol=SINGLE)

    task.iteration, moved = 5, target.clone()
    hook.on_start(task)  # a resumed run keeps the target of its checkpoint
    assert torch.equal(target, moved)


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_interrupted(tmp_path):
    arguments = (
        "config=pretrain/vissl_barlow/ablations/byol",
        *BYOL,
        "config.OPTIMIZER.num_epochs=2",
        "config.CHECKPOINT.CHECKPOINT_FREQUENCY=1",
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    succeeded(run_engines(tmp_path, *arguments, f"config.CHECKPOINT.DIR={whole}"))
    resumed.mkdir()
    os.link(whole / "model_phase0.torch", resumed / "model_phase0.torch")
    (resumed / "checkpoint.torch").symlink_to("model_phase0.torch")
    succeeded(run_engines(tmp_path, *arguments, f"config.CHECKPOINT.DIR={resumed}"))
    final, again, half = (
        torch.load(folder / name, weights_only=True)["classy_state_dict"]["base_model"]["model"]
        for folder, name in (
            (whole, "model_final_checkpoint_phase1.torch"),
            (resumed, "model_final_checkpoint_phase1.torch"),
            (whole, "model_phase0.torch"),
        )
    )
    for part in ("trunk", "heads", "target"):
        for name, tensor in final[part].items():
            assert torch.equal(tensor, again[part][name]), (part, name)
    weight = "0._feature_blocks.conv1.weight"
    assert not torch.equal(final["target"][weight], half["target"][weight])
    online = final["trunk"][weight.removeprefix("0.")]
    assert not torch.equal(final["target"][weight], online)
