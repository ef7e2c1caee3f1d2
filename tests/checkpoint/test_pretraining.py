"""What a checkpoint says of the images that it was pretrained on."""

import math

import pytest

from vissl_barlow.checkpoint.pretraining import normalization_of

VIEWS = "DATA.TRAIN.TRANSFORMS.1"
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def saved(**options) -> dict:
    experiment = {"DATA.TRAIN.TRANSFORMS.0.mean.0": 0.1, f"{VIEWS}.name": "BarlowTwoViews"}
    experiment |= {f"{VIEWS}.{name.replace('_', '.')}": value for name, value in options.items()}
    return {"classy_state_dict": {"experiment": experiment}}


def test_the_views_normalization_is_read_and_the_transforms_own_where_it_is_not_noted():
    assert normalization_of(saved(size=32)) == IMAGENET
    other = saved(mean_0=0.5, mean_1=0, mean_2=1, std_0=0.25, std_1=1, std_2=0.5)
    assert normalization_of(other) == ([0.5, 0.0, 1.0], [0.25, 1.0, 0.5])


@pytest.mark.parametrize(
    "checkpoint",
    [{}, [], {"classy_state_dict": {}}, saved(std_0=0), saved(mean_2=math.nan), saved(std_1="a")],
)
def test_what_says_nothing_or_nonsense_is_not_known(checkpoint):
    assert normalization_of(checkpoint) is None
