"""Tables 1 to 3's configs: each number of the protocol."""

import math
import os

import pytest
import torch
from digits_on_disk import OVERLAY
from vissl_runs import compose

GROUP = "benchmark/vissl_barlow"


def learning_rates(config, name: str = "lr") -> list[float]:
    """The rate at each epoch's start, from VISSL's own scheduler."""
    from classy_vision.optim import build_optimizer_schedulers

    epochs = config.OPTIMIZER.num_epochs
    scheduler = build_optimizer_schedulers(config.OPTIMIZER)[name]
    return [scheduler(epoch / epochs) for epoch in range(epochs)]


def batch_size(config) -> int:
    distributed = config.DISTRIBUTED
    processes = distributed.NUM_NODES * distributed.NUM_PROC_PER_NODE
    return config.DATA.TRAIN.BATCHSIZE_PER_REPLICA * processes


def transforms(config, split: str) -> list[tuple]:
    return [(t["name"], t.get("size")) for t in config.DATA[split].TRANSFORMS[:2]]


TRAIN_VIEWS = [("RandomResizedCrop", 224), ("RandomHorizontalFlip", None)]
TEST_VIEW = [("Resize", 256), ("CenterCrop", 224)]
IMAGENET_HEAD = ["barlow_linear", {"in_dim": 2048, "num_classes": 1000}]
LISTS = {"1pct": "google-imagenet1k-per01", "10pct": "google-imagenet1k-per10"}


@pytest.mark.parametrize(
    ("name", "weight_decay", "head"),
    [
        ("imagenet1k_linear", 1e-6, IMAGENET_HEAD),
        ("imagenet1k_semi_1pct", 0.0, IMAGENET_HEAD),
        ("imagenet1k_semi_10pct", 0.0, IMAGENET_HEAD),
        ("imagenet1k_semi_1pct_released", 0.0, IMAGENET_HEAD),
        ("imagenet1k_semi_10pct_released", 0.0, IMAGENET_HEAD),
        ("places205_linear", 5e-4, ["eval_mlp", {"in_channels": 2048, "dims": [8192, 205]}]),
        ("inat18_linear", 5e-4, ["eval_mlp", {"in_channels": 2048, "dims": [8192, 8142]}]),
        ("places205_linear_2048d", 5e-4, ["eval_mlp", {"in_channels": 2048, "dims": [2048, 205]}]),
        ("inat18_linear_2048d", 5e-4, ["eval_mlp", {"in_channels": 2048, "dims": [2048, 8142]}]),
    ],
)
def test_every_classifier_trains_as_the_paper_says(name, weight_decay, head):
    config = compose(f"{GROUP}/{name}")
    optimizer = config.OPTIMIZER
    assert (optimizer.name, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.9, False)
    assert optimizer.weight_decay == weight_decay
    assert optimizer.head_optimizer_params.weight_decay == weight_decay
    assert batch_size(config) == 256
    assert config.MODEL.HEAD.PARAMS == [head]
    assert config.MODEL.TRUNK.NAME == "barlow_resnet"
    assert config.MODEL.TRUNK.RESNETS.DEPTH == 50
    assert transforms(config, "TRAIN") == TRAIN_VIEWS
    assert transforms(config, "TEST") == TEST_VIEW
    assert config.METERS.accuracy_list_meter.topk_values == [1, 5]


def test_linear_rate_is_the_cosine_of_100_epochs():
    expected = [0.15 * (1 + math.cos(math.pi * epoch / 100)) for epoch in range(100)]
    assert learning_rates(compose(f"{GROUP}/imagenet1k_linear")) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("name", ["imagenet1k_semi_1pct", "imagenet1k_semi_10pct"])
def test_fine_tuning_has_two_rates_and_steps_after_epochs_12_and_16(name):
    config = compose(f"{GROUP}/{name}")
    steps = [1.0] * 12 + [0.2] * 4 + [0.04] * 4
    assert learning_rates(config) == pytest.approx([0.002 * step for step in steps], rel=1e-6)
    assert learning_rates(config, "lr_head") == pytest.approx([0.5 * s for s in steps], rel=1e-6)
    assert not config.MODEL.FEATURE_EVAL_SETTINGS.EVAL_MODE_ON  # everything is trained
    assert config.DATA.TRAIN.DATASET_NAMES == [LISTS[name.rpartition("_")[2]]]
    assert config.DATA.TEST.DATASET_NAMES == ["imagenet1k_folder"]


@pytest.mark.parametrize("share", LISTS)
def test_released_fine_tuning_has_two_cosines(share):
    """Their command, 0.005 and 0.5, under evaluate.py's CosineAnnealingLR, stepped once an epoch."""
    from classy_vision.optim import build_optimizer_schedulers

    name = f"{GROUP}/imagenet1k_semi_{share}_released"
    config, paper = compose(name), compose(f"{GROUP}/imagenet1k_semi_{share}")
    assert config.OPTIMIZER.num_epochs == 20
    cosine = [0.5 * (1 + math.cos(math.pi * epoch / 20)) for epoch in range(20)]
    assert learning_rates(config) == pytest.approx([0.005 * c for c in cosine], rel=1e-12)
    assert learning_rates(config, "lr_head") == pytest.approx([0.5 * c for c in cosine], rel=1e-12)
    for scheduler in build_optimizer_schedulers(config.OPTIMIZER).values():
        assert scheduler.update_interval.value == "epoch"
    half = compose(name, "config.DISTRIBUTED.NUM_PROC_PER_NODE=4")
    assert learning_rates(half)[0] == pytest.approx(0.0025)
    # Nothing else differs from the paper's.
    assert config.DATA.TRAIN.DATASET_NAMES == [LISTS[share]]
    for each in (config, paper):
        del each.OPTIMIZER.param_schedulers, each.CHECKPOINT.DIR
    assert config == paper


TABLE_3 = {"places205_linear": 14, "inat18_linear": 84}
EPOCHS = [*TABLE_3.items(), *((f"{name}_2048d", epochs) for name, epochs in TABLE_3.items())]


@pytest.mark.parametrize(("name", "epochs"), EPOCHS)
def test_pirls_rate_falls_at_two_equally_spaced_points(name, epochs):
    from classy_vision.optim import build_optimizer_schedulers

    config = compose(f"{GROUP}/{name}")
    scheduler = build_optimizer_schedulers(config.OPTIMIZER)["lr"]
    assert config.OPTIMIZER.num_epochs == epochs
    assert scheduler.update_interval.value == "step"
    rates = [scheduler(where) for where in (0, 0.333, 0.334, 0.666, 0.667, 0.999)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001], rel=1e-6)


def test_the_rates_follow_the_batch():
    half = compose(f"{GROUP}/imagenet1k_semi_1pct", "config.DISTRIBUTED.NUM_PROC_PER_NODE=4")
    assert learning_rates(half)[0] == pytest.approx(0.001)
    assert learning_rates(half, "lr_head")[0] == pytest.approx(0.25)


def corners(layer4):
    """PIRL's features: means over the 6 x 6 places at each corner of 7 x 7."""
    means = [layer4[:, :, y : y + 6, x : x + 6].mean((2, 3)) for y in (0, 1) for x in (0, 1)]
    return torch.stack(means, dim=2)


@pytest.mark.parametrize("name", ["voc07_svm", "places205_linear", "inat18_linear"])
@pytest.mark.parametrize(
    ("variant", "pooled", "count"),
    [("", corners, 8192), ("_2048d", lambda layer4: layer4.mean((2, 3)), 2048)],
)
def test_table_3_has_pirls_features_and_the_output_as_a_variant(name, variant, pooled, count):
    from vissl.models import build_model

    config = compose(f"{GROUP}/{name}{variant}")
    config.MODEL["_MODEL_INIT_SEED"] = 0
    os.environ.setdefault("LOCAL_RANK", "0")
    model = build_model(config.MODEL, config.OPTIMIZER).eval()
    [(layer, _)] = config.MODEL.FEATURE_EVAL_SETTINGS.LINEAR_EVAL_FEAT_POOL_OPS_MAP
    with torch.no_grad():
        layer4 = images = torch.randn(1, 3, 224, 224)
        for block in list(model.trunk.base_model._feature_blocks.values())[:-2]:
            layer4 = block(layer4)
        [features] = model.trunk(images, [layer])
        classes = [head(features).shape[1] for head in model.heads]
    assert layer4.shape == (1, 2048, 7, 7)
    assert features.numel() == count
    torch.testing.assert_close(features.flatten(), pooled(layer4).flatten())
    assert classes == {"voc07_svm": [], "places205_linear": [205], "inat18_linear": [8142]}[name]


@pytest.mark.parametrize("name", ["voc07_svm", "voc07_svm_2048d"])
def test_voc07_svms(name):
    config = compose(f"{GROUP}/{name}")
    assert config.SVM.costs.costs_list == [0.01, 0.1, 1.0, 2, 5, 10, 15, 20, 50, 100, 1000]
    assert (config.SVM.cross_val_folds, config.SVM.normalize) == (3, True)
    assert (config.SVM.loss, config.SVM.penalty, config.SVM.dual) == ("squared_hinge", "l2", True)
    assert len(config.SVM.class_names) == 20
    assert config.SVM.class_names == sorted(config.SVM.class_names)
    assert transforms(config, "TEST") == [("Resize", 256), ("Resize", [224, 224])]


def test_frozen_trunk_and_two_rates_reach_the_optimizer(tmp_path, digits_on_disk):
    from classy_vision.optim import build_optimizer_schedulers
    from vissl.models import build_model
    from vissl.optimizers import get_optimizer_param_groups

    config = compose(f"{GROUP}/imagenet1k_semi_1pct", OVERLAY)
    config.MODEL["_MODEL_INIT_SEED"] = 0
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("RANK", "0")
    model = build_model(config.MODEL, config.OPTIMIZER)
    groups = get_optimizer_param_groups(
        model, config.MODEL, config.OPTIMIZER, build_optimizer_schedulers(config.OPTIMIZER)
    )
    rates = {id(p): group["lr"](0) for group in groups for p in group["params"]}
    # Batch 64: a quarter of the paper's.
    for name, parameter in model.named_parameters():
        expected = 0.5 / 4 if name.startswith("heads") else 0.002 / 4
        assert rates[id(parameter)] == pytest.approx(expected), name
    head = model.heads[0].linear
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)  # 2560 draws: 1.4% at 1 sigma
    assert not head.bias.any()
