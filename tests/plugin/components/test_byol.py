"""BYOL's and SimSiam's models, heads and hook under VISSL."""

import copy
import math
import os
from types import SimpleNamespace

import torch
from vissl_runs import resolve, run_engines, succeeded

# Float32 networks, the same operations in the same order.
SINGLE = 1e-6
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


def test_simsiams_only_bias_of_a_linear_layer_is_that_of_the_prediction(tmp_path):
    """As in its released code, where the projector's last bias is frozen at 0 before normalisation."""
    model = _model(tmp_path, "simsiam", *SIMSIAM)
    linear = {n: m for n, m in model.heads.named_modules() if isinstance(m, torch.nn.Linear)}
    assert [name for name, layer in linear.items() if layer.bias is not None] == ["1.projector.3"]
    assert len(linear) == 4 and linear["1.projector.3"].out_features == 16


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


def test_heads_begin_with_draws_of_their_own(tmp_path):
    """VISSL seeds each head alike, and a predictor began as a copy of the projector's first layer."""
    from vissl_barlow.projector import build_projector

    simsiam = ("config.MODEL.HEAD.PARAMS.1.1={in_dim:16,dims:[32,16]}", "config.SEED_VALUE=3")
    model = _model(tmp_path, "simsiam", *SIMSIAM, *simsiam)
    first, second = (
        head.projector.get_parameter(name).flatten()
        for head, name in zip(model.heads, ("0.0.weight", "0.weight"))
    )
    both = torch.stack([first[: len(second)], second])
    assert abs(torch.corrcoef(both)[0, 1]) < 0.15  # of 512 pairs; three standard deviations
    # The only head of the paper's model keeps the run's seed.
    torch.manual_seed(3)
    assert torch.equal(first, build_projector(256, [32, 16])[0].weight.flatten())
