"""Keys that nothing in the run would read are refused where the user set them."""

import copy
from pathlib import Path

import pytest
from vissl_runs import compose, refused_by, resolve

from vissl_barlow.paths import config_folder
from vissl_barlow.vissl_plugin.errors import ConfigError

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
LINEAR = "benchmark/vissl_barlow/imagenet1k_linear"
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
    return {name: _composed(name) for name in (DIGITS, LINEAR)}


def refusals(config, command=(), **given) -> list[str]:
    """The lines for a config in which the keys `given` (with __ for dots) are set."""
    from vissl_barlow.vissl_plugin.checks.unread import check_unread

    given = {key.replace("__", "."): value for key, value in given.items()}
    return refused_by(lambda cfg: check_unread(cfg, ["TRAIN", "TEST"]), config, given, command)


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
        (DIGITS, "DATA__TRAIN__DATA_LIMIT_SAMPLING__SEED", 9, "all images are used"),
        (DIGITS, "DATA__TRAIN__BASE_DATASET", "webdataset", "a data set of its own"),
        (DIGITS, "OPTIMIZER__regularize_bn", True, "without weight decay (paper, 2.2)"),
        (DIGITS, "MODEL__AMP_PARAMS__AMP_ARGS__opt_level", "O2", "barlow_task has torch's"),
        (DIGITS, "MODEL__FEATURE_EVAL_SETTINGS__FREEZE_TRUNK_ONLY", True, "EVAL_MODE_ON=true"),
        (DIGITS, "MODEL__MULTI_INPUT_HEAD_MAPPING", [["data", ["res4"]]], "passes two views"),
        (DIGITS, "MODEL__SINGLE_PASS_EVERY_CROP", True, "passes two views, each on its own"),
        (DIGITS, "BARLOW__WEIGHTS_TRUNK", "teacher", "no checkpoint is named"),
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
        (DIGITS, "OPTIMIZER.param_schedulers.lr.values", "barlow_warmup_cosine has no values"),
        (LINEAR, "OPTIMIZER.param_schedulers.lr.warmup_epochs", "cosine has no warmup_epochs, it"),
        (LINEAR, "OPTIMIZER.bias_lr_scale", "sgd has no bias_lr_scale, barlow_lars has"),
        (LINEAR, "OPTIMIZER.dampening", "sgd has no dampening, it has larc_config, lr, momentum"),
        (DIGITS, "OPTIMIZER.head_optimizer_params.weight_decay", "use_different_wd=true"),
        (DIGITS, "LOSS.barlow_objective.lambda_", "config.LOSS.name=barlow_loss"),
        (DIGITS, "MODEL.AMP_PARAMS.AMP_TYPE", "barlow_task has torch's alone"),
        (DIGITS, "BARLOW.AMP_DTYPE", "set config.MODEL.AMP_PARAMS.USE_AMP=true"),
        (DIGITS, "MODEL.GRAD_CLIP.MAX_NORM", "set config.MODEL.GRAD_CLIP.USE_GRAD_CLIP=true"),
        (LINEAR, "MODEL.SYNC_BN_CONFIG.SYNC_BN_TYPE", "SYNC_BN_CONFIG.CONVERT_BN_TO_SYNC_BN=true"),
        (DIGITS, "MODEL.STOP_GRADIENT", "barlow_twins_model has none"),
        (DIGITS, "MODEL.TARGET_MOMENTUM", "barlow_twins_model has none"),
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


def test_of_a_rate_that_is_not_scaled_the_scaling_is_not_read(configs):
    config = copy.deepcopy(configs[DIGITS])
    scaling = "OPTIMIZER.param_schedulers.lr.auto_lr_scaling"
    config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.auto_scale = False
    command = [f"config.{scaling}.{key}=1" for key in ("auto_scale", "base_value")]
    (line,) = refusals(config, command)
    assert line.startswith(f"config.{scaling}.base_value=4.0: would not be read: the rate is not")


@pytest.mark.parametrize(
    ("name", "key"), [("linear", "end_value"), ("constant", "value"), ("multistep", "values")]
)
def test_where_the_scaled_rate_is_put_a_typed_one_is_not_read(configs, name, key):
    config = copy.deepcopy(configs[DIGITS])
    lr = config.OPTIMIZER.param_schedulers.lr
    lr.update(name=name, milestones=[10, 20])
    (line,) = refusals(config, [f"config.OPTIMIZER.param_schedulers.lr.{key}=1"])
    assert "the rate is config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value=4.0" in line


def test_a_schedule_that_vissl_does_not_take(configs):
    momentum = type(configs[DIGITS])({"name": "constant", "value": 0.5})
    (line,) = refusals(configs[DIGITS], OPTIMIZER__param_schedulers__momentum=momentum)
    assert line.startswith("config.OPTIMIZER.param_schedulers.momentum.name=constant: would not be")


def test_what_one_group_of_parameters_leaves_out(configs):
    given = {"OPTIMIZER__construct_single_param_group_only": True}
    given["OPTIMIZER__non_regularized_parameters"] = ["bn"]
    (line,) = refusals(configs[DIGITS], **given)
    assert "all parameters are one group (construct_single_param_group_only)" in line


def test_which_of_several_trunks_is_said_by_the_plugins_own_key(configs):
    given = {"MODEL__WEIGHTS_INIT__PARAMS_FILE": "dino.pth"}
    given["MODEL__WEIGHTS_INIT__STATE_DICT_KEY_NAME"] = "student"
    (line,) = refusals(configs[LINEAR], **given)
    assert line.endswith("to choose a trunk, config.BARLOW.WEIGHTS_TRUNK=student; else remove it")


def test_biases_that_are_to_decay_under_lars(configs):
    config = copy.deepcopy(configs[DIGITS])
    config.OPTIMIZER.regularize_bias = True  # VISSL's default, which others leave as it is
    (line,) = refusals(config, ["config.OPTIMIZER.regularize_bias=true"])
    assert "without weight decay (paper, 2.2)" in line
    config.OPTIMIZER.name = "sgd"
    assert refusals(config, ["config.OPTIMIZER.regularize_bias=true"]) == []


def test_what_holds_anyway_may_be_typed(configs):
    assert refusals(configs[DIGITS], ["config.OPTIMIZER.nesterov=false"]) == []


def test_a_runs_check_asks_for_them(tmp_path):
    with pytest.raises(ConfigError, match=r"RESNETS\.GROUPS=2: would not be read"):
        resolve(tmp_path, DIGITS, "config.MODEL.TRUNK.RESNETS.GROUPS=2")
