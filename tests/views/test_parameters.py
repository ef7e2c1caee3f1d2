"""The draws: the paper's probabilities and ranges, torchvision's distributions."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms
from views_reference import FREQUENCY_ATOL, KS_PVALUE, S, draws

from vissl_barlow.views import TwoViews, ViewParameters, view_seed
from vissl_barlow.views.parameters import sample_crop

RANDOM_OPERATIONS = {
    "flip_p": lambda p: p.flip,
    "jitter_p": lambda p: p.jitter != (),
    "grayscale_p": lambda p: p.grayscale,
    "blur_p": lambda p: p.blur_sigma is not None,
    "solarize_p": lambda p: p.solarize,
}


@pytest.mark.parametrize("key", RANDOM_OPERATIONS)
@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probability_of_each_operation(key, view, probability):
    pair = [0.5, 0.5]
    pair[view] = probability
    value = pair if key in ("blur_p", "solarize_p") else probability
    happened = [RANDOM_OPERATIONS[key](p) for p in draws(view=view, **{key: value})]
    if probability in (0.0, 1.0):
        assert set(happened) == {bool(probability)}
    else:
        assert np.mean(happened) == pytest.approx(probability, abs=FREQUENCY_ATOL)


@pytest.mark.parametrize("view", [0, 1])
def test_the_defaults_are_the_papers(view):
    expected = {
        "flip_p": 0.5,
        "jitter_p": 0.8,
        "grayscale_p": 0.2,
        "blur_p": (1.0, 0.1)[view],
        "solarize_p": (0.0, 0.2)[view],
    }
    parameters = draws(view=view, seed=3)
    for key, happened in RANDOM_OPERATIONS.items():
        frequency = np.mean([happened(p) for p in parameters])
        assert frequency == pytest.approx(expected[key], abs=FREQUENCY_ATOL), key
    factors = {name: [] for name in ("brightness", "contrast", "saturation", "hue")}
    for p in parameters:
        for name, factor in p.jitter:
            factors[name].append(factor)
    ranges = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    for name, strength in ranges.items():
        centre = 0 if name == "hue" else 1
        uniform = stats.uniform(centre - strength, 2 * strength)
        assert stats.kstest(factors[name], uniform.cdf).pvalue > KS_PVALUE, name
    sigmas = [p.blur_sigma for p in parameters if p.blur_sigma is not None]
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > KS_PVALUE


def test_view_a_and_view_b_take_their_own_probability():
    always_and_never = TwoViews(
        S, blur_p=(1, 0), solarize_p=(0, 1), jitter_p=0, normalize_on_device=True
    )
    image = np.full((50, 60, 3), 200, np.uint8)
    a, b = always_and_never(image)
    assert (a == 200).all() and (b == 55).all()
    for _ in range(20):
        p = always_and_never.sample_parameters(50, 60, view=0)
        q = always_and_never.sample_parameters(50, 60, view=1)
        assert p.blur_sigma is not None and q.blur_sigma is None
        assert q.solarize and not p.solarize


@pytest.mark.parametrize(
    ("height", "width"), [(427, 640), (375, 500), (32, 32), (20, 400), (400, 20), (1, 1), (2, 3)]
)
def test_crops_are_distributed_as_torchvisions(height, width):
    count = 2000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    crop = transforms.RandomResizedCrop(S)
    theirs = np.array([crop.get_params(image, crop.scale, crop.ratio) for _ in range(count)])
    ours = np.array([p.crop for p in draws(count, height=height, width=width)])
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= (height, width)).all()
    for name, a, b in zip(("top", "left", "height", "width"), ours.T, theirs.T):
        assert stats.ks_2samp(a, b).pvalue > KS_PVALUE, name
    area = stats.ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert area.pvalue > KS_PVALUE


def test_the_crops_ratio_is_uniform_in_its_logarithm():
    # A share of the area so small that no crop is refused; several hundred pixels a side.
    crops = [
        p.crop
        for p in draws(2000, height=5000, width=5000, crop_scale=(0.01, 0.01), crop_ratio=(0.25, 4))
    ]
    log_ratios = [math.log(width / height, 4) for _, _, height, width in crops]
    assert stats.kstest(log_ratios, stats.uniform(-1, 2).cdf).pvalue > KS_PVALUE


def test_the_jitter_is_distributed_as_torchvisions():
    strengths = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.2, "hue": 0.1}
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(**strengths)
    names = list(strengths)
    order_and_factors = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(5000)
    ]
    ours = [dict(p.jitter) for p in draws(5000, jitter_p=1, **strengths)]
    for i, name in enumerate(names):
        theirs = [factors[i] for _, *factors in order_and_factors]
        assert stats.ks_2samp([p[name] for p in ours], theirs).pvalue > KS_PVALUE, name
    orders = Counter(tuple(p) for p in ours)
    assert len(orders) == math.factorial(4)
    assert stats.chisquare(list(orders.values())).pvalue > KS_PVALUE


def test_a_strength_of_zero_leaves_its_operation_out():
    for p in draws(50, jitter_p=1, brightness=0, saturation=0, hue=0):
        assert [name for name, _ in p.jitter] == ["contrast"]
    assert draws(1, jitter_p=1, brightness=0, contrast=0, saturation=0, hue=0)[0].jitter == ()


def test_crop_keys_reach_the_crop():
    for p in draws(300, crop_scale=(0.25, 0.25), crop_ratio=(1.5, 1.5)):
        height, width = p.crop[2:]
        assert height * width == pytest.approx(0.25 * 427 * 640, rel=0.01)
        assert width / height == pytest.approx(1.5, rel=0.01)


# For 32-pixel images under the seed that VISSL's run with seed 0 gives image 7 of epoch 1: what was
# drawn when these numbers were first released. A change of any would change every run's result.
RELEASED_SEED = (1 << 48) + 7
RELEASED = (
    ViewParameters(
        crop=(0, 6, 29, 36),
        flip=True,
        jitter=(),
        grayscale=False,
        blur_sigma=0.15209230712905897,
        solarize=False,
    ),
    ViewParameters(
        crop=(18, 34, 14, 12),
        flip=True,
        jitter=(
            ("saturation", 1.0862871653798547),
            ("hue", 0.0181357616852994),
            ("contrast", 1.3117069210670562),
            ("brightness", 0.9596386988294922),
        ),
        grayscale=False,
        blur_sigma=None,
        solarize=True,
    ),
    ViewParameters(
        crop=(4, 17, 28, 26),
        flip=True,
        jitter=(
            ("hue", 0.02126959757798448),
            ("brightness", 0.6293927453130084),
            ("contrast", 1.0459923039052013),
            ("saturation", 0.9607557777325566),
        ),
        grayscale=False,
        blur_sigma=0.4155867000330963,
        solarize=False,
    ),
    ViewParameters(
        crop=(1, 15, 29, 30),
        flip=False,
        jitter=(
            ("hue", -0.011788524528329597),
            ("saturation", 1.0444168430496543),
            ("contrast", 1.0986720217746166),
            ("brightness", 0.8733075911257245),
        ),
        grayscale=False,
        blur_sigma=None,
        solarize=False,
    ),
)


def test_the_draws_of_a_seed_stay_what_they_were_released_as():
    two_views = TwoViews(S)
    rng = random.Random(RELEASED_SEED)
    drawn = [two_views.sample_parameters(32, 48, view, rng) for view in (0, 1, 0, 1)]
    assert tuple(drawn) == RELEASED


class Highest:
    """Draws the upper end each time, so that the crop's width is what its range allows at most."""

    def __init__(self):
        self.draws = 0

    def random(self):
        return 1.0

    def uniform(self, a, b):
        self.draws += 1
        return b


@pytest.mark.parametrize(
    ("height", "width", "ratio", "expected"),
    [
        (30, 400, (3 / 4, 4 / 3), (0, 180, 30, 40)),  # too wide: full height, the highest ratio
        (400, 30, (3 / 4, 4 / 3), (180, 0, 40, 30)),  # too tall: full width, the lowest ratio
        (100, 101, (3 / 4, 4 / 3), (0, 0, 100, 101)),  # in range: all of it
    ],
)
def test_where_no_crop_fits_the_largest_central_one_is_taken(height, width, ratio, expected):
    rng = Highest()
    assert sample_crop(height, width, (1.0, 1.0), ratio, rng) == expected
    assert rng.draws == 2 * 10  # of the area and of the ratio, ten times as torchvision


@pytest.mark.parametrize("whole", [np.int64, np.int32, torch.tensor])
def test_a_seed_is_the_same_whatever_holds_the_numbers(whole):
    expected = (5 << 80) + (40_000 << 48) + 7
    assert view_seed(whole(5), whole(40_000), whole(7)) == expected
