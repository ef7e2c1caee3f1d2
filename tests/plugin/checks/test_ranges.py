"""Values of VISSL's keys that are out of range, or of no kind there is."""

import pytest
from vissl_runs import compose, refused_by, resolve

from vissl_barlow.vissl_plugin.errors import ConfigError

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
CLIP, GROUPS = "MODEL.GRAD_CLIP", "MODEL.SYNC_BN_CONFIG"
THREE = {"DISTRIBUTED.NUM_PROC_PER_NODE": 3, f"{GROUPS}.CONVERT_BN_TO_SYNC_BN": True}


@pytest.fixture(scope="module")
def digits():
    return compose(DIGITS)


def refusals(config, given) -> list[str]:
    from vissl_barlow.vissl_plugin.checks.ranges import check_ranges

    return refused_by(check_ranges, config, given)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("SEED_VALUE", 2**32 // 40, "set at most 107374181"),
        ("OPTIMIZER.name", "lamb", "no such optimizer; it has adam, adamw"),
        ("OPTIMIZER.param_schedulers.lr.name", "cosin", "did you mean cosine?"),
        ("LOSS.name", "barlow_los", "did you mean barlow_loss"),
        ("MODEL.BASE_MODEL_NAME", "barlow_twin_model", "did you mean barlow_twins_model"),
    ],
)
def test_one_value(digits, key, value, remedy):
    (line,) = refusals(digits, {key: value})
    assert line.startswith(f"config.{key}={value}: ") and remedy in line


@pytest.mark.parametrize(
    ("given", "key", "remedy"),
    [
        ({f"{CLIP}.USE_GRAD_CLIP": True, f"{CLIP}.MAX_NORM": -1}, f"{CLIP}.MAX_NORM", "above 0"),
        ({f"{CLIP}.USE_GRAD_CLIP": True, f"{CLIP}.NORM_TYPE": "l2"}, f"{CLIP}.NORM_TYPE", "or inf"),
        ({**THREE, f"{GROUPS}.GROUP_SIZE": 2}, f"{GROUPS}.GROUP_SIZE", "no groups of 2"),
        (
            {**THREE, f"{GROUPS}.SYNC_BN_TYPE": "apex", "MACHINE.DEVICE": "gpu"},
            f"{GROUPS}.SYNC_BN_TYPE",
            "apex is not installed",
        ),
    ],
)
def test_what_hangs_on_another_key(digits, given, key, remedy):
    (line,) = refusals(digits, given)
    assert line.startswith(f"config.{key}={given[key]}: ") and remedy in line


def test_what_is_in_range(digits):
    assert refusals(digits, {"SEED_VALUE": 2**32 // 40 - 1}) == []
    assert refusals(digits, {f"{CLIP}.USE_GRAD_CLIP": True, f"{CLIP}.NORM_TYPE": "inf"}) == []
    for size in (-1, 0, 1, 3, 8):
        assert refusals(digits, {**THREE, f"{GROUPS}.GROUP_SIZE": size}) == []


def test_a_start_asks_for_them(tmp_path):
    with pytest.raises(ConfigError, match=r"SEED_VALUE=0\.5: set a whole number"):
        resolve(tmp_path, DIGITS, "config.SEED_VALUE=0.5")
    head = "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:256,dims:512}]]"
    sgd = ("config.OPTIMIZER.name=sgd", "config.OPTIMIZER.momentum=0")
    with pytest.raises(ConfigError, match=r"must contain a 'momentum' in \[0, 1\)"):
        resolve(tmp_path, DIGITS, *sgd)
    with pytest.raises(ConfigError, match=r"dims of barlow_projector is 512; set a list of widths"):
        resolve(tmp_path, DIGITS, head)
