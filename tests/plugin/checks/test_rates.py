"""Learning rates and weight decays that VISSL would make others of."""

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
        # Of these VISSL made 0.4, 0, 0.
        ({f"{LR}.name": "multistep", f"{LR}.values": [0.4, 0, 0.1]}, f"{LR}.values", "one ratio"),
        ({f"{LR}.name": "polynomial"}, f"{LR}.auto_lr_scaling.auto_scale", "does not scale"),
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


def test_a_start_asks_for_them_and_for_names(tmp_path):
    rate = f"config.{LR}.auto_lr_scaling.base_value=-1"
    with pytest.raises(ConfigError) as raised:
        resolve(tmp_path, DIGITS, rate, "config.MODEL.NON_TRAINABLE_PARAMS=[trunk]")
    assert len(str(raised.value).splitlines()) == 2
