"""Learning rates that VISSL would make others of, and counts and names that nothing fits."""

import copy

import pytest
from vissl_runs import compose, refused_by, resolve

from vissl_barlow.vissl_plugin.errors import ConfigError

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
LR = "OPTIMIZER.param_schedulers.lr"
HEADS = "OPTIMIZER.head_optimizer_params"
WARMUP = {"name": "linear", "start_value": 0.1, "end_value": 4.0}
COSINE = {"name": "cosine", "start_value": 4.0, "end_value": 0.0}


@pytest.fixture(scope="module")
def digits():
    from vissl_barlow.vissl_plugin.settings import complete

    config = compose(DIGITS)
    complete(config.BARLOW)
    config.OPTIMIZER.param_schedulers.lr.update(start_value=4.0, end_value=0.004)  # before scaling
    return config


def rates(config, given, command=()) -> list[str]:
    from vissl_barlow.vissl_plugin.checks.rates import check_rates

    return refused_by(check_rates, config, given, command)


@pytest.mark.parametrize(
    ("given", "key", "remedy"),
    [
        ({f"{LR}.auto_lr_scaling.base_value": -2.0}, f"{LR}.auto_lr_scaling.base_value", "above 0"),
        (
            {f"{LR}.auto_lr_scaling.base_lr_batch_size": 0},
            f"{LR}.auto_lr_scaling.base_lr_batch_size",
            "above 0",
        ),
        (
            {f"{LR}.auto_lr_scaling.scaling_type": "cubic"},
            f"{LR}.auto_lr_scaling.scaling_type",
            "set linear or sqrt",
        ),
        (
            {f"{LR}.name": "multistep", f"{LR}.values": [0.4, 0.2, 0.05]},
            f"{LR}.values",
            "one ratio",
        ),
        (
            {f"{LR}.name": "composite", f"{LR}.schedulers": [WARMUP, COSINE]},
            f"{LR}.auto_lr_scaling.auto_scale",
            "on one node leave it out",
        ),
        (
            {"OPTIMIZER.param_schedulers.weight_decay": COSINE},
            "OPTIMIZER.param_schedulers.weight_decay",
            "give config.OPTIMIZER.param_schedulers.weight_decay_head too",
        ),
    ],
)
def test_what_vissl_would_make_something_else_of(digits, given, key, remedy):
    (line,) = rates(digits, given)
    assert line.startswith(f"config.{key}=") and remedy in line


def test_a_last_rate_is_a_share_of_the_peak_it_stands_beside(digits):
    given = {f"{LR}.auto_lr_scaling.base_value": 8.0, f"{LR}.end_value": 0.008}
    command = [f"config.{key}={value}" for key, value in given.items()]
    (line,) = rates(digits, given, command)
    assert line.startswith(f"config.{LR}.end_value=0.008: the peak rate is config.{LR}.auto_lr_sc")
    # The peak alone takes the shipped ratio with it; all three say the same.
    assert rates(digits, {f"{LR}.auto_lr_scaling.base_value": 8.0}, command[:1]) == []
    assert rates(digits, {**given, f"{LR}.start_value": 8.0}, command) == []


def test_rates_of_one_ratio_and_rates_that_are_not_scaled(digits):
    steps = {f"{LR}.name": "multistep", f"{LR}.values": [0.4, 0.2, 0.1]}
    assert rates(digits, steps) == []
    unscaled = {f"{LR}.auto_lr_scaling.auto_scale": False}
    assert rates(digits, {**steps, f"{LR}.values": [0.4, 0.2, 0.05], **unscaled}) == []
    composite = {f"{LR}.name": "composite", f"{LR}.schedulers": [WARMUP, COSINE]}
    assert rates(digits, {**composite, **unscaled}) == []


def test_a_rate_of_the_heads_that_nobody_gave(tmp_path):
    with pytest.raises(ConfigError, match=r"lr_head is VISSL's default, multistep; set its name"):
        resolve(tmp_path, DIGITS, f"config.{HEADS}.use_different_lr=true")


def test_the_heads_schedule_is_looked_at_like_the_trunks(digits):
    lr = copy.deepcopy(digits.OPTIMIZER.param_schedulers.lr)
    lr.warmup_epochs = 40
    given = {f"{HEADS}.use_different_lr": True, "OPTIMIZER.param_schedulers.lr_head": lr}
    (line,) = rates(digits, given)
    assert line.startswith("config.OPTIMIZER.param_schedulers.lr_head.warmup_epochs=40")


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("OPTIMIZER.num_epochs", 1.5, "whole number of at least 1"),
        ("OPTIMIZER.num_epochs", 0, "whole number of at least 1"),
        ("DATA.TRAIN.DATA_LIMIT", 0.1, "whole number of at least -1"),
        ("DATA.TRAIN.BATCHSIZE_PER_REPLICA", 12.5, "whole number of at least 1"),
        ("SEED_VALUE", -1, "whole number of at least 0"),
        ("SEED_VALUE", 2**32 // 40, "set at most 107374181"),
    ],
)
def test_counts(digits, key, value, remedy):
    from vissl_barlow.vissl_plugin.checks.counts import check_counts

    (line,) = refused_by(check_counts, digits, {key: value})
    assert line.startswith(f"config.{key}={value}: ") and remedy in line
    assert refused_by(check_counts, digits, {"SEED_VALUE": 2**32 // 40 - 1}) == []


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        (
            "MODEL.NON_TRAINABLE_PARAMS",
            ["trunk._feature_blocks.conv1.weight", "trunk._feature_blocks.conv1"],
            "each is named in full: trunk._feature_blocks.conv1.weight",
        ),
        ("MODEL.NON_TRAINABLE_PARAMS", ["stem"], "stem is no parameter's name; they are such as"),
        (
            "MODEL.TEMP_FROZEN_PARAMS_ITER_MAP",
            [["trunk._feature_blocks.conv1.weight", 10]],
            "in full: module.trunk._feature_blocks.conv1.weight",
        ),
        ("OPTIMIZER.non_regularized_parameters", ["pos_embed"], "pos_embed is no parameter's name"),
    ],
)
def test_names_of_parameters_that_the_model_has_not(digits, key, value, remedy):
    from vissl_barlow.vissl_plugin.checks.parameter_names import check_parameter_names

    (line,) = refused_by(check_parameter_names, digits, {key: value})
    assert line.startswith(f"config.{key}={value}: ") and remedy in line


def test_names_of_parameters_that_it_has(digits):
    from vissl_barlow.vissl_plugin.checks.parameter_names import check_parameter_names

    conv = "trunk._feature_blocks.conv1.weight"
    given = {
        "MODEL.NON_TRAINABLE_PARAMS": [conv],
        "MODEL.TEMP_FROZEN_PARAMS_ITER_MAP": [[f"module.{conv}", 10]],
        "OPTIMIZER.non_regularized_parameters": ["conv1"],
    }
    assert refused_by(check_parameter_names, digits, given) == []


def test_a_start_asks_for_all_of_them(tmp_path):
    with pytest.raises(ConfigError, match=r"SEED_VALUE=0\.5: set a whole number"):
        resolve(tmp_path, DIGITS, "config.SEED_VALUE=0.5")
    rate = f"config.{LR}.auto_lr_scaling.base_value=-1"
    with pytest.raises(ConfigError) as raised:
        resolve(tmp_path, DIGITS, rate, "config.MODEL.NON_TRAINABLE_PARAMS=[trunk]")
    assert len(str(raised.value).splitlines()) == 2
