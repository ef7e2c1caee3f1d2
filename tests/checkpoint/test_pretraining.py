"""What a checkpoint says of the views that it was pretrained on."""

import math
import re
from dataclasses import replace

import pytest

from vissl_barlow.checkpoint.pretraining import PAPERS_VIEWS, pretraining_views

VIEWS = "DATA.TRAIN.TRANSFORMS.1"


def saved(**options) -> dict:
    experiment = {"DATA.TRAIN.TRANSFORMS.0.mean.0": 0.1, f"{VIEWS}.name": "BarlowTwoViews"}
    experiment |= {
        f"{VIEWS}.{re.sub('_(?=[0-9])', '.', name)}": value for name, value in options.items()
    }
    return {"classy_state_dict": {"experiment": experiment}}


def test_the_views_are_read_and_the_transforms_own_values_where_they_are_not_noted():
    assert pretraining_views(saved(size=32)) == replace(PAPERS_VIEWS, size=32)
    numbers = {"mean_0": 0.5, "mean_1": 0, "mean_2": 1, "std_0": 0.25, "std_1": 1, "std_2": 0.5}
    other = pretraining_views(saved(flip_p=0, **numbers))
    assert (other.mean, other.std, other.flip_p) == ((0.5, 0.0, 1.0), (0.25, 1.0, 0.5), 0.0)


@pytest.mark.parametrize(
    "nonsense", [{"std_0": 0}, {"mean_2": math.nan}, {"std_1": "a"}, {"size": -1}, {"flip_p": 2}]
)
def test_nonsense_is_as_if_it_were_not_noted(nonsense):
    assert pretraining_views(saved(**nonsense)) == PAPERS_VIEWS


@pytest.mark.parametrize("checkpoint", [{}, [], {"classy_state_dict": {}}])
def test_what_says_nothing_is_not_known(checkpoint):
    assert pretraining_views(checkpoint) is None
