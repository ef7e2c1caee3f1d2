"""Transforms that make something else than the two views a pretraining is of."""

import pytest
from vissl_runs import compose, refused_by, resolve

from vissl_barlow.vissl_plugin.errors import ConfigError

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
VIEWS = {"name": "BarlowTwoViews", "size": 32}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
TO_TENSOR, PICTURE = {"name": "ToTensor"}, {"name": "ToPILImage"}


@pytest.fixture(scope="module")
def digits():
    from vissl_barlow.vissl_plugin.settings import complete

    config = compose(DIGITS)
    complete(config.BARLOW)
    return config


def refusals(config, **given) -> list[str]:
    from vissl_barlow.vissl_plugin.checks.views import check_views

    given = {f"DATA.{key.replace('__', '.')}": value for key, value in given.items()}
    return refused_by(check_views, config, given)


@pytest.mark.parametrize(
    ("transforms", "remedy"),
    [
        ([TO_TENSOR], "they make 1 of an image"),
        ([PICTURE, {"name": "ImgReplicatePil", "num_times": 4}, TO_TENSOR], "they make 4 of an"),
        ([VIEWS, {"name": "Normalize", **HALF}], "normalises its views itself (mean, std)"),
    ],
)
def test_other_than_two_views(digits, transforms, remedy):
    (line,) = refusals(digits, TRAIN__TRANSFORMS=transforms)
    assert line.startswith("config.DATA.TRAIN.TRANSFORMS=") and remedy in line


def test_two_copies_under_vissls_transforms_are_two_views(digits):
    copies = [PICTURE, {"name": "ImgReplicatePil", "num_times": 2}, TO_TENSOR]
    assert refusals(digits, TRAIN__TRANSFORMS=copies) == []


def test_views_stacked_by_another_collator(digits):
    (line,) = refusals(digits, TRAIN__COLLATE_FUNCTION="simclr_collator")
    assert "barlow_twins_model takes the two views as barlow_collator stacks them" in line


def test_a_probe_of_images_normalised_otherwise(digits):
    (line,) = refusals(digits, TRAIN__TRANSFORMS=[{**VIEWS, **HALF}])
    normalize = "{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}"
    assert line.startswith("config.DATA.TEST.TRANSFORMS=") and normalize in line
    (line,) = refusals(digits, TEST__TRANSFORMS=[TO_TENSOR])
    assert "mean: [0.485, 0.456, 0.406]" in line
    given = {"TRAIN__TRANSFORMS": [{**VIEWS, **HALF}]}
    given["TEST__TRANSFORMS"] = [TO_TENSOR, {"name": "Normalize", **HALF}]
    assert refusals(digits, **given) == []


def test_a_start_asks_for_them(tmp_path):
    std = "+config.DATA.TRAIN.TRANSFORMS.0.std=[0.5,0.5,0.5]"
    with pytest.raises(ConfigError, match="normalised otherwise than the views"):
        resolve(tmp_path, DIGITS, std)
    resolve(tmp_path, DIGITS, std, "config.BARLOW.PROBE.KIND=none")
