"""The overlays of sections 4 and 5: what each changes, on ImageNet and on the digits."""

import copy

import pytest
import torch
from torch.nn import functional as F
from vissl_runs import ANYWHERE, resolve

from vissl_barlow.paths import config_folder
from vissl_barlow.reproduce.studies import DIGITS_EPOCHS, Experiment, pretraining
from vissl_barlow.vissl_plugin.errors import ConfigError

PRETRAIN = "pretrain/vissl_barlow"

HEADS = "MODEL.HEAD.PARAMS"

LR = "OPTIMIZER.param_schedulers.lr"

PROJECTOR = {"in_dim": 2048, "dims": [8192, 8192, 8192]}

NO_BN = {HEADS: [["barlow_projector", {**PROJECTOR, "use_bn": False}]]}

PREDICTOR = [
    ["barlow_projector", PROJECTOR],
    ["barlow_predictor", {"in_dim": 8192, "dims": [8192, 8192]}],
]


def _objective(name, world=32, **options):
    section = {
        "objective": name,
        **options,
        "reference_world_size": world,
    }
    prefixed = {f"LOSS.barlow_objective.{key}": value for key, value in section.items()}
    return {"LOSS.name": "barlow_objective", **prefixed}


BYOL = {
    "DATA.TRAIN.BATCHSIZE_PER_REPLICA": 128,
    "MODEL.BASE_MODEL_NAME": "barlow_byol_model",
    "MODEL.TARGET_MOMENTUM": 0.99,
    HEADS: [
        ["barlow_projector", {"in_dim": 2048, "dims": [4096, 256]}],
        ["barlow_predictor", {"in_dim": 256, "dims": [4096, 256]}],
    ],
    "LOSS.name": "barlow_byol_loss",
    "LOSS.barlow_byol_loss.reference_world_size": 1,
    "OPTIMIZER.bias_lr_scale": 1.0,
    "OPTIMIZER.weight_decay": 1.0e-6,
    f"{LR}.auto_lr_scaling.base_value": 0.3,
    f"{LR}.start_value": 0.3,
    f"{LR}.end_value": 0.0,
}

# What each overlay changes in the 300-epoch baseline, the checkpoints' folder aside.
CHANGES = {
    "ablations/only_invariance": {"LOSS.barlow_loss.lambda_": 0.0},
    "ablations/only_redundancy": _objective("weighted_terms", invariance_weight=0.0, lambda_=0.005),
    "ablations/feature_normalisation": _objective("feature_normalised", radius=1.0, lambda_=0.005),
    "ablations/no_bn": NO_BN,
    "ablations/no_bn_no_normalisation": {**NO_BN, **_objective("cross_covariance", lambda_=0.005)},
    "ablations/cross_entropy": _objective("cross_entropy", temperature=0.1, lambda_=1.0),
    "ablations/stop_gradient": {
        "MODEL.BASE_MODEL_NAME": "barlow_asymmetric_twins_model",
        "MODEL.STOP_GRADIENT": True,
    },
    "ablations/predictor": {
        "MODEL.BASE_MODEL_NAME": "barlow_asymmetric_twins_model",
        "MODEL.STOP_GRADIENT": False,
        HEADS: PREDICTOR,
    },
    "ablations/stop_gradient_predictor": {
        "MODEL.BASE_MODEL_NAME": "barlow_asymmetric_twins_model",
        "MODEL.STOP_GRADIENT": True,
        HEADS: PREDICTOR,
    },
    "ablations/byol": BYOL,
    # Learning rate and weight decay are then those of Barlow Twins.
    "ablations/byol_1000ep": {
        **{
            key: BYOL[key]
            for key in BYOL
            if not key.endswith(("decay", "base_value", "start_value"))
        },
        "MODEL.TARGET_MOMENTUM": 0.996,
        "OPTIMIZER.num_epochs": 1000,
    },
    "ablations/simsiam": {
        "DATA.TRAIN.BATCHSIZE_PER_REPLICA": 16,
        "MODEL.BASE_MODEL_NAME": "barlow_simsiam_model",
        HEADS: [
            ["barlow_normalised_projector", {"in_dim": 2048, "dims": [2048, 2048, 2048]}],
            ["barlow_predictor", {"in_dim": 2048, "dims": [512, 2048], "output_bias": True}],
        ],
        "LOSS.name": "barlow_simsiam_loss",
        "LOSS.barlow_simsiam_loss.reference_world_size": 1,
        "OPTIMIZER.name": "sgd",
        "OPTIMIZER.weight_decay": 1.0e-4,
        "OPTIMIZER.regularize_bn": True,
        "OPTIMIZER.regularize_bias": True,
        f"{LR}.auto_lr_scaling.base_value": 0.05,
        f"{LR}.start_value": 0.05,
        f"{LR}.end_value": 0.0,
        f"{LR}.warmup_epochs": 0,
    },
    "objectives/auto_correlation": _objective("auto_correlation", lambda_=0.005),
    "objectives/cross_covariance": _objective("cross_covariance", lambda_=0.005),
    "objectives/hsic": _objective("hsic", lambda_=1 / 8192),
    "objectives/info_nce": _objective("info_nce", world=1, temperature=0.1),
    "objectives/cosine": _objective("cosine", world=1),
    "objectives/imax": _objective("imax", world=1, eps=0.001),
    "objectives/vicreg": _objective(
        "vicreg",
        world=1,
        invariance_weight=25.0,
        variance_weight=25.0,
        covariance_weight=1.0,
    ),
    "objectives/w_mse": {
        HEADS: [["barlow_projector", {"in_dim": 2048, "dims": [8192, 8192, 512]}]],
        **_objective("w_mse", world=1, sub_batch_size=1024),
    },
}


def _flat(section, prefix=""):
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _composed(name):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(config_folder("configs")), version_base="1.3"):
        config = compose(f"config/{PRETRAIN}/{name}").config
    return dict(_flat(OmegaConf.to_container(config)))


def test_every_overlay_is_listed_here():
    folder = config_folder("configs") / "config" / PRETRAIN
    files = [*folder.glob("ablations/*.yaml"), *folder.glob("objectives/*.yaml")]
    assert {f"{path.parent.name}/{path.stem}" for path in files} == set(CHANGES)


@pytest.mark.parametrize("overlay", CHANGES)
def test_overlay_changes_what_the_paper_says_and_nothing_else(overlay):
    base, changed = _composed("resnet50_in1k_300ep"), _composed(overlay)
    assert not set(base) - set(changed)
    different = {key: value for key, value in changed.items() if base.get(key) != value}
    assert different.pop("CHECKPOINT.DIR") == f"checkpoints/{overlay}"
    assert different == CHANGES[overlay]


def test_the_released_config_has_the_released_codes_values_and_changes_nothing_else():
    name = "resnet50_in1k_1000ep_released"
    base, changed = _composed("resnet50_in1k_1000ep"), _composed(name)
    assert {key: value for key, value in changed.items() if base[key] != value} == {
        "LOSS.barlow_loss.lambda_": 0.0051,
        "LOSS.barlow_loss.reference_world_size": 16,
        "OPTIMIZER.weight_decay": 1.0e-6,
        "DISTRIBUTED.NUM_NODES": 2,
        "DATA.TRAIN.BATCHSIZE_PER_REPLICA": 128,
        "DATA.TRAIN.DROP_LAST": False,
        "CHECKPOINT.DIR": f"checkpoints/{name}",
    }


def _on_digits(folder, overlay, *overrides):
    experiment = Experiment("", "", overlay)
    config, *rest = pretraining(experiment, "digits", folder)
    return resolve(folder, config.removeprefix("config="), *rest, *overrides)


@pytest.mark.parametrize("overlay", CHANGES)
def test_overlay_trains_on_the_digits_base_too(overlay, tmp_path):
    """One step of its model and loss: the trunk learns from both views, or from one behind a stop."""
    from classy_vision.losses import build_loss
    from vissl.models import build_model

    config = _on_digits(tmp_path, overlay)
    assert config.DATA.TRAIN.DATA_SOURCES == ["barlow_digits"]
    assert config.OPTIMIZER.num_epochs == DIGITS_EPOCHS
    model = build_model(config.MODEL, config.OPTIMIZER).train()
    section = config.LOSS[config.LOSS.name]
    loss = build_loss({"name": config.LOSS.name, **section})
    rows = section.get("sub_batch_size") or 8
    value = loss(model(torch.randn(2, rows, 3, 32, 32)), None)
    value.backward()
    assert torch.isfinite(value)
    assert torch.stack(list(loss.terms)).isfinite().all()
    for parameter in model.trunk.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("overlay", "predicts", "stops"),
    [
        ("stop_gradient", False, True),
        ("predictor", True, False),
        ("stop_gradient_predictor", True, True),
    ],
)
def test_table_6_predicts_on_one_branch_and_stops_on_the_other(overlay, predicts, stops, tmp_path):
    from vissl.models import build_model

    config = _on_digits(tmp_path, f"ablations/{overlay}")
    model = build_model(config.MODEL, config.OPTIMIZER).train()
    views = torch.randn(2, 6, 3, 32, 32)
    reference = copy.deepcopy(model)
    embeddings = []
    for view in views:
        embeddings.append(reference.heads[0](reference.trunk(view)[0]))
    out_a, out_b = model(views)
    if predicts:
        linear, bn, _, last = reference.heads[1].projector
        embeddings[0] = last(F.relu(bn(linear(embeddings[0]))))
    torch.testing.assert_close(out_a, embeddings[0])
    torch.testing.assert_close(out_b, embeddings[1])
    assert out_a.requires_grad and out_b.requires_grad != stops
    torch.testing.assert_close(model.eval()(views)[0], model.heads[0](model.trunk(views[0])[0]))


BAD = [
    (
        "ablations/byol",
        ["config.LOSS.name=barlow_loss"],
        "config.MODEL.BASE_MODEL_NAME=barlow_byol_model: config.LOSS.name=barlow_loss takes",
    ),
    (
        "ablations/predictor",
        ["config.MODEL.BASE_MODEL_NAME=barlow_twins_model"],
        "barlow_twins_model has no predictor",
    ),
    (
        "resnet50_in1k_300ep",
        ["config.MODEL.BASE_MODEL_NAME=barlow_asymmetric_twins_model"],
        "config.MODEL.STOP_GRADIENT=None: set it to true or false",
    ),
    (
        "ablations/stop_gradient",
        ["config.MODEL.STOP_GRADIENT=false"],
        "barlow_asymmetric_twins_model takes a projector, then one barlow_predictor",
    ),
    (
        "ablations/byol",
        ["config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:2048,dims:[256]}]]"],
        "barlow_byol_model takes a projector, then one barlow_predictor",
    ),
    (
        "ablations/predictor",
        ["config.MODEL.HEAD.PARAMS.0.1.dims=[8192,8192,512]"],
        "the projector's embeddings have 512 dimensions; set barlow_predictor's",
    ),
    (
        "ablations/byol",
        ["config.MODEL.TARGET_MOMENTUM=1.5"],
        "config.MODEL.TARGET_MOMENTUM=1.5: set the share in [0, 1]",
    ),
    (
        "objectives/w_mse",
        ["config.LOSS.barlow_objective.sub_batch_size=512"],
        "config.LOSS.barlow_objective.sub_batch_size=512: W-MSE whitens sub-batches with more rows",
    ),
    (
        "objectives/w_mse",
        ["config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=48"],
        "set a divisor of 1536 above 512",
    ),
    (
        "objectives/hsic",
        ["config.LOSS.barlow_objective.objective=hsci"],
        "objective=hsci must be one of weighted_terms",
    ),
    (
        "objectives/info_nce",
        ["+config.LOSS.barlow_objective.tau=0.1"],
        "info_nce_loss has no tau; it has reference_world_size, temperature",
    ),
    (
        "objectives/info_nce",
        ["config.LOSS.barlow_objective.temperature=0"],
        "temperature=0 must be above 0",
    ),
    (
        "objectives/vicreg",
        [
            "config.MODEL.HEAD.PARAMS.0.1.dims=[512]",
            "config.LOSS.barlow_objective.embedding_dim=8192",
        ],
        "config.LOSS.barlow_objective.embedding_dim=8192",
    ),
    (
        "ablations/simsiam",
        ["config/pretrain/vissl_barlow=digits_quickstart"],
        "set barlow_normalised_projector's in_dim to 256",
    ),
]


@pytest.mark.parametrize(("overlay", "overrides", "message"), BAD)
def test_an_overlay_that_does_not_fit_says_so_in_one_line(overlay, overrides, message, tmp_path):
    with pytest.raises(ConfigError) as refused:
        resolve(tmp_path, f"{PRETRAIN}/{overlay}", *ANYWHERE, *overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_our_losses_on_a_config_of_vissl_say_what_they_need(tmp_path):
    with pytest.raises(ConfigError, match="takes the outputs of barlow_twins_model or"):
        resolve(
            tmp_path,
            "test/integration_test/quick_simclr",
            "config.LOSS.name=barlow_objective",
            "+config.LOSS.barlow_objective.objective=vicreg",
        )
