"""Names of parameters that the model has not: nothing would be frozen, or kept from decaying."""

import pytest
from vissl_runs import compose, refused_by

DIGITS = "pretrain/vissl_barlow/digits_quickstart"


@pytest.fixture(scope="module")
def digits():
    return compose(DIGITS)


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
