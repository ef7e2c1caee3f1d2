"""Values of another type than VISSL's defaults: made what they can only mean, or refused."""

import copy

import pytest
from vissl_runs import compose, resolve

from vissl_barlow.vissl_plugin.errors import ConfigError

DIGITS = "pretrain/vissl_barlow/digits_quickstart"


@pytest.fixture(scope="module")
def digits():
    return compose(DIGITS)


@pytest.fixture
def given(digits):
    """Sets a key of a config; gives the section it is in, and the config."""

    def given(key, value):
        cfg = copy.deepcopy(digits)
        *parents, name = key.split(".")
        section = cfg
        for part in parents:
            section = section[part]
        section[name] = value
        return cfg, section, name

    return given


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("METERS.accuracy_list_meter.topk_values", 5, [5]),
        ("METERS.names", "accuracy_list_meter", ["accuracy_list_meter"]),
        ("MODEL.WEIGHTS_INIT.SKIP_LAYERS", "heads", ["heads"]),
        ("MODEL.NON_TRAINABLE_PARAMS", "trunk", ["trunk"]),
        ("OPTIMIZER.non_regularized_parameters", "bias", ["bias"]),
        ("OPTIMIZER.param_schedulers.lr.milestones", 3, [3]),
        ("OPTIMIZER.param_schedulers.lr.schedulers", {"name": "linear"}, [{"name": "linear"}]),
        ("LOSS.swav_loss.num_prototypes", 300, [300]),
        ("SVM.costs.costs_list", 0.5, [0.5]),
        ("SVM.cls_list", None, []),
        ("SVM.class_names", "cat", ["cat"]),
        ("MODEL.HEAD.PARAMS", ["mlp", {"dims": [8, 8]}], [["mlp", {"dims": [8, 8]}]]),
        ("DATA.TEST.TRANSFORMS", {"name": "ToTensor"}, [{"name": "ToTensor"}]),
        ("DATA.TEST.TARGET_KEY_NAMES", "label", ["label"]),
        ("EXTRACT_FEATURES.OUTPUT_DIR", "~/features", "/home/somebody/features"),
    ],
)
def test_a_single_entry_is_a_list_of_one(given, monkeypatch, key, value, expected):
    from vissl_barlow.vissl_plugin.checks.value_types import check_types, complete_values

    monkeypatch.setenv("HOME", "/home/somebody")
    cfg, section, name = given(key, value)
    complete_values(cfg)
    check_types(cfg)
    assert section[name] == expected


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("CHECKPOINT.AUTO_RESUME", "no", "no: set true or false"),  # hydra's grammar knows no "no"
        ("MODEL.TRUNK.RESNETS.SMALL_STEM", "yes", "yes: set true or false"),
        ("OPTIMIZER.num_epochs", "ten", "ten: set a number"),
        ("DATA.TRAIN.BATCHSIZE_PER_REPLICA", [32], "[32]: set a number"),
        ("SEED_VALUE", None, "None: set a number"),
        ("OPTIMIZER.betas", 0.9, "0.9: set a list of 2 numbers, such as [0.9, 0.999]"),
        ("METERS.accuracy_list_meter.topk_values", ["one"], "set a list of numbers; one is none"),
        ("MODEL.HEAD.PARAMS", "mlp", "mlp: set a list of lists, [...]"),
        ("DATA.TRAIN.TRANSFORMS", "ToTensor", "ToTensor: set a list of sections, [...]"),
        ("MODEL.NON_TRAINABLE_PARAMS", [3], "3 is no text; quote what is meant: 'config.MODEL"),
        ("MODEL.WEIGHTS_INIT.PARAMS_FILE", ["a.pth"], "['a.pth']: set one text, without brackets"),
        ("CHECKPOINT.DIR", 2024, "quote what is meant: 'config.CHECKPOINT.DIR=\"2024\"'"),
        ("DATA.NUM_DATALOADER_WORKERS", -1, "-1: set a whole number of at least 0"),
        ("OPTIMIZER.num_epochs", 1.5, "1.5: set a whole number of at least 1"),
        ("OPTIMIZER.num_epochs", 0, "0: set a whole number of at least 1"),
        ("CHECKPOINT.CHECKPOINT_FREQUENCY", 0, "0: set a whole number of at least 1"),
        ("LOG_FREQUENCY", 0, "0: set a whole number of at least 1"),
        ("DATA.TEST.BATCHSIZE_PER_REPLICA", 0, "0: set a whole number of at least 1"),
        (
            "MODEL.HEAD.PARAMS",
            [["barlow_projector", {"in_dim": 8, "dims": []}]],
            "dims of barlow_projector is []; set a list of widths, such as [2048,2048,2048]",
        ),
        ("OPTIMIZER", "sgd", "sgd: this is a section, not one value; set its keys, config.OPT"),
    ],
)
def test_what_could_mean_anything_is_refused(given, key, value, line):
    from vissl_barlow.vissl_plugin.checks.value_types import check_types, complete_values

    cfg, _, _ = given(key, value)
    complete_values(cfg)
    with pytest.raises(ConfigError) as raised:
        check_types(cfg)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"config.{key}=") and line in str(raised.value)


def test_the_plugins_section_is_one(tmp_path):
    with pytest.raises(ConfigError, match=r"^config.BARLOW=3: this is a section, not one value"):
        resolve(tmp_path, DIGITS, "config.BARLOW=3")


def test_all_is_said_at_once(tmp_path):
    with pytest.raises(ConfigError) as raised:
        resolve(
            tmp_path,
            DIGITS,
            "config.DATA=here",
            "config.TEST_ONLY=no",
            "config.BARLOW.CHECK_IMAGES=all",
            "+config.LOSS.barlow_loss.lamda=1",
        )
    keys = [line.partition("=")[0] for line in str(raised.value).splitlines()]
    expected = ["TEST_ONLY", "DATA", "BARLOW.CHECK_IMAGES", "LOSS.barlow_loss.lamda"]
    assert keys == [f"config.{key}" for key in expected]


def test_what_is_to_be_quoted_is_what_was_typed(given):
    from vissl_barlow.vissl_plugin.checks.value_types import check_types

    cfg, _, _ = given("CHECKPOINT.DIR", 202406)
    cfg.BARLOW["COMMAND"] = ["config.CHECKPOINT.DIR=2024_06"]
    with pytest.raises(ConfigError) as raised:
        check_types(cfg)
    assert str(raised.value).endswith("meant: 'config.CHECKPOINT.DIR=\"2024_06\"'")
