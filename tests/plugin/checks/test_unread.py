"""Keys that nothing in the run would read are refused where the user set them."""

import copy
from pathlib import Path

import pytest
from vissl_runs import compose, resolve

from vissl_barlow.paths import config_folder
from vissl_barlow.vissl_plugin.errors import ConfigError

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
LINEAR = "benchmark/vissl_barlow/imagenet1k_linear"
SEMI = "benchmark/vissl_barlow/imagenet1k_semi_1pct"
SHIPPED = sorted(
    str(path.relative_to(folder / "config").with_suffix(""))
    for folder in (config_folder("configs"), config_folder("benchmark_configs"))
    for path in Path(folder).glob("config/*/vissl_barlow/**/*.yaml")
    if "overlays" not in path.parts
)


# What VISSL computes with, of those that are chosen where there are images.
_RATES = "config.OPTIMIZER.param_schedulers.lr"
OPEN = {
    "pretrain/vissl_barlow/own_images": (
        *("config.DISTRIBUTED.NUM_PROC_PER_NODE=1", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=128"),
        f"{_RATES}.auto_lr_scaling.base_value=0.7",
        *(f"{_RATES}.start_value=0.7", f"{_RATES}.end_value=0.0007"),
    )
}


def _composed(name):
    from vissl_barlow.vissl_plugin.settings import complete

    config = compose(name, *OPEN.get(name, ()))
    complete(config.BARLOW)
    return config


@pytest.fixture(scope="module")
def configs():
    return {name: _composed(name) for name in (DIGITS, LINEAR, SEMI)}


def refusals(config, command=(), **given) -> list[str]:
    """The lines for a config in which the keys `given` (with __ for dots) are set."""
    from vissl_barlow.vissl_plugin.checks.unread import check_unread

    config = copy.deepcopy(config)
    config.BARLOW.COMMAND = list(command)
    for key, value in given.items():
        *parents, name = key.split("__")
        section = config
        for part in parents:
            section = section[part]
        section[name] = value
    try:
        check_unread(config, ["TRAIN", "TEST"])
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_config_sets_what_is_not_read(name):
    assert refusals(_composed(name)) == []


@pytest.mark.parametrize(
    ("name", "key", "value", "remedy"),
    [
        (
            DIGITS,
            "DATA__TRAIN__USE_DEBUGGING_SAMPLER",
            True,
            "barlow_task has a sampler of its own",
        ),
        (LINEAR, "DATA__TEST__USE_STATEFUL_DISTRIBUTED_SAMPLER", True, "a sampler of its own"),
        (LINEAR, "DATA__TEST__DROP_LAST", True, "each test image counts once"),
        (DIGITS, "DATA__TRAIN__DATA_LIMIT_SAMPLING__SKIP_NUM_SAMPLES", 9, "all images are used"),
        (DIGITS, "MODEL__TRUNK__RESNETS__GROUPS", 32, "barlow_resnet has DEPTH, SMALL_STEM, WIDTH"),
        (DIGITS, "MODEL__TRUNK__RESNETS__NORM", "LayerNorm", "barlow_resnet has DEPTH"),
        (DIGITS, "MODEL__TRUNK__XCIT__NUM_LAYERS", 24, "name another trunk"),
        (LINEAR, "MODEL__HEAD__PARAMS_MULTIPLIER", 2.0, "heads have torch's defaults"),
        (LINEAR, "MODEL__WEIGHTS_INIT__SKIP_LAYERS", ["layer4"], "all of the trunk is loaded"),
        (DIGITS, "OPTIMIZER__nesterov", True, "barlow_lars has no nesterov, sgd has"),
        (LINEAR, "OPTIMIZER__betas", [0.5, 0.9], "sgd has no betas, adam or adamw has"),
        (
            DIGITS,
            "LOSS__barlow_twins_loss__lambda_",
            0.1,
            "set config.LOSS.barlow_loss, or the name",
        ),
        (DIGITS, "METERS__names", ["accuracy_list_meter"], "no labels to measure with"),
        (DIGITS, "DISTRIBUTED__MANUAL_GRADIENT_REDUCTION", True, "leaves the gradients to torch"),
        (LINEAR, "BARLOW__PROBE__KIND", "knn", "this is no pretraining"),
        (LINEAR, "BARLOW__COMPILE", True, "barlow_evaluation_task has none"),
    ],
)
def test_a_key_that_nothing_reads(configs, name, key, value, remedy):
    (line,) = refusals(configs[name], **{key: value})
    assert line.startswith(f"config.{key.replace('__', '.')}={value}: would not be read: ")
    assert remedy in line


@pytest.mark.parametrize(
    ("name", "word", "remedy"),
    [
        (LINEAR, "OPTIMIZER.param_schedulers.lr.milestones", "cosine has no milestones, multistep"),
        (LINEAR, "OPTIMIZER.param_schedulers.lr_head.start_value", "use_different_lr=true"),
        (DIGITS, "OPTIMIZER.param_schedulers.lr.start_value", "lr.auto_lr_scaling.base_value=4.0"),
        (DIGITS, "LOSS.barlow_objective.lambda_", "config.LOSS.name=barlow_loss"),
    ],
)
def test_what_a_base_config_may_leave_behind_is_refused_where_it_was_typed(
    configs, name, word, remedy
):
    config = copy.deepcopy(configs[name])
    config.LOSS.barlow_objective = type(config.LOSS)({"lambda_": 0.1})
    assert refusals(config) == []
    (line,) = refusals(config, [f"+config.{word}=1"])
    assert line.startswith(f"config.{word}=") and remedy in line


def test_a_rate_and_its_base_may_be_typed_together(configs):
    lr = "config.OPTIMIZER.param_schedulers.lr"
    command = [f"{lr}.start_value=1.0", f"{lr}.auto_lr_scaling.base_value=1.0"]
    section = "OPTIMIZER__param_schedulers__lr"
    base = f"{section}__auto_lr_scaling__base_value"
    alike = {f"{section}__start_value": 1.0, base: 1.0}
    assert refusals(configs[DIGITS], command, **alike) == []
    (line,) = refusals(configs[DIGITS], command, **{**alike, base: 0.5})
    assert line.startswith(f"{lr}.start_value=1.0: ") and "base_value=0.5, scaled" in line


def test_the_values_of_a_scaled_rate_are_its_bases_and_fall_evenly(configs):
    """VISSL makes base_value times powers of values[1] / values[0] of them."""
    lr = "config.OPTIMIZER.param_schedulers.lr_head"
    section = "OPTIMIZER__param_schedulers__lr_head"
    base = f"{section}__auto_lr_scaling__base_value"
    typed = [f"{lr}.values=[1,0.2,0.04]"]
    (line,) = refusals(configs[SEMI], typed, **{f"{section}__values": [1, 0.2, 0.04]})
    assert (
        "the rate is config.OPTIMIZER.param_schedulers.lr_head.auto_lr_scaling.base_value" in line
    )
    typed.append(f"{lr}.auto_lr_scaling.base_value=1")
    alike = {f"{section}__values": [1, 0.2, 0.04], base: 1}
    assert refusals(configs[SEMI], typed, **alike) == []
    uneven = {**alike, f"{section}__values": [1, 0.2, 0.1]}
    (line,) = refusals(configs[SEMI], typed, **uneven)
    assert "falls by values[1] / values[0] each time" in line
    fixed = {f"{section}__auto_lr_scaling__auto_scale": False}
    assert refusals(configs[SEMI], typed[:1], **uneven, **fixed) == []


def test_the_base_of_a_rate_that_is_not_scaled(configs):
    scaling = "config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling"
    typed = [f"{scaling}.base_value=0.1", f"{scaling}.auto_scale=false"]
    assert refusals(configs[LINEAR], typed) == []
    off = {"OPTIMIZER__param_schedulers__lr__auto_lr_scaling__auto_scale": False}
    (line,) = refusals(configs[LINEAR], typed, **off)
    assert line.startswith(f"{scaling}.base_value=") and "the rate is not scaled" in line


def test_what_holds_anyway_may_be_typed(configs):
    assert refusals(configs[DIGITS], ["config.OPTIMIZER.nesterov=false"]) == []


def test_a_runs_check_asks_for_them(tmp_path):
    with pytest.raises(ConfigError, match=r"RESNETS\.GROUPS=2: would not be read"):
        resolve(tmp_path, DIGITS, "config.MODEL.TRUNK.RESNETS.GROUPS=2")
