"""`TwoViews` as a whole: seeds, loader workers, pickling, and what it refuses."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from repeated_image import RepeatedImage
from torch.utils.data import DataLoader
from views_reference import CHINA, FLOWER, S, draws

from vissl_barlow.views import TwoViews


@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_the_seed_decides_the_views(backend):
    two_views = TwoViews(32, backend=backend)
    results = []
    for seed in (0, 0, 1):
        random.seed(seed)
        results.append(two_views(FLOWER))
    assert all(torch.equal(x, y) for x, y in zip(results[0], results[1]))
    assert not any(torch.equal(x, y) for x, y in zip(results[0], results[2]))
    assert not torch.equal(*results[0])


def test_workers_and_epochs_draw_differently_and_a_seed_repeats_them():
    def two_epochs(seed, **options):
        torch.manual_seed(seed)
        loader = DataLoader(RepeatedImage(TwoViews(16)), batch_size=2, num_workers=2, **options)
        return torch.cat([batch for _ in range(2) for batch in loader])

    forked = two_epochs(0)
    assert torch.equal(forked, two_epochs(0))
    assert not torch.equal(forked, two_epochs(1))
    # Workers that unpickle the transform, and go on to the next epoch without a new seed.
    persistent = two_epochs(0, multiprocessing_context="forkserver", persistent_workers=True)
    assert torch.equal(persistent[:4], forked[:4])
    for views in (forked, persistent):
        assert views.shape == (8, 2, 3, 16, 16)
        assert len({view.numpy().tobytes() for view in views.flatten(0, 1)}) == 16


def test_pickling_keeps_every_setting():
    two_views = TwoViews(20, blur_p=(0.5, 0.5), mean=(0, 0, 0), solarize_threshold=10)
    copy = pickle.loads(pickle.dumps(two_views))
    for views in (two_views, copy):
        random.seed(0)
        views.result = torch.stack(views(CHINA))
    assert torch.equal(two_views.result, copy.result)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("size", 0, "whole number of at least 1"),
        ("size", 224.0, "whole number"),
        ("crop_scale", (0, 1), r"crop_scale\[0\] is 0: give a number above 0 and at most 1"),
        ("crop_scale", (0.5, 0.1), "lower end first"),
        ("crop_scale", 0.5, r"2 numbers, \(lowest, highest\)"),
        ("crop_ratio", (0.0, 1.0), "above 0"),
        ("interpolation", "lanczos", "bicubic, bilinear"),
        ("flip_p", 1.1, "at most 1"),
        ("flip_p", True, "number"),
        ("jitter_p", -0.1, "at least 0"),
        ("brightness", -1, "at least 0"),
        ("contrast", float("nan"), "number"),
        ("saturation", float("inf"), "number"),
        ("hue", 0.6, "at most 0.5"),
        ("grayscale_p", "0.2", "number"),
        ("blur_p", 0.5, r"2 numbers, \(view A, view B\)"),
        ("blur_p", (0.5, 1.5), r"blur_p\[1\] is 1.5"),
        ("blur_sigma", (0.0, 1.0), "above 0"),
        ("solarize_p", (0.0, 0.1, 0.2), "2 numbers"),
        ("solarize_threshold", 257, "at most 256"),
        ("mean", (0.5, 0.5), "3 numbers"),
        ("mean", (123.7, 116.3, 103.5), r"mean\[0\] is 123.7: .* at most 1"),
        ("std", (0.5, 0.5, 0), r"std\[2\] is 0: give a number above 0"),
        ("std", (58.4, 57.1, 57.4), r"std\[0\] is 58.4: .* at most 1"),
        ("backend", "cuda", "fast, pil"),
        ("normalize_on_device", "no", "true or false"),
    ],
)
def test_a_wrong_key_is_named_with_its_remedy(key, value, remedy):
    with pytest.raises(ValueError, match=remedy) as error:
        TwoViews(**{key: value})
    assert str(error.value).startswith(key)


@pytest.mark.parametrize("backend", ["fast", "pil"])
@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8)),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
    ],
    ids=["grey", "alpha", "float", "tensor"],
)
def test_an_array_that_is_not_uint8_rgb_is_refused(array, backend):
    with pytest.raises(ValueError, match=r"(shape \(8, 8|is a Tensor).*pass uint8 RGB"):
        TwoViews(backend=backend)(array)


@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_a_generator_draws_what_pythons_own_would_and_leaves_that_alone(backend):
    two_views = TwoViews(16, backend=backend)
    for seed in range(20):
        random.seed(seed)
        expected = two_views(FLOWER)
        after = random.getstate()
        rng = random.Random(seed)
        views = two_views(FLOWER, rng)
        assert random.getstate() == after == rng.getstate()
        assert all(torch.equal(x, y) for x, y in zip(views, expected))


def test_one_draw_serves_both_backends():
    """Views A and B of `__call__` are the parameters drawn for A, then for B, applied."""
    height, width = FLOWER.shape[:2]
    for backend in ("fast", "pil"):
        two_views = TwoViews(16, backend=backend)
        rng = random.Random(4)
        a, b = (two_views.sample_parameters(height, width, view, rng) for view in (0, 1))
        expected = two_views.apply(FLOWER, a), two_views.apply(FLOWER, b)
        views = two_views(FLOWER, random.Random(4))
        assert all(torch.equal(x, y) for x, y in zip(views, expected))


@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_pil_images_of_16_bits_are_scaled_by_their_range(backend):
    levels = CHINA[..., 0]
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    (p,) = draws(1)
    two_views = TwoViews(S, backend=backend)
    assert torch.equal(two_views.apply(deep, p), two_views.apply(Image.fromarray(levels), p))
    with pytest.raises(ValueError, match=r"mode I.*16 bits"):
        two_views(Image.fromarray(levels.astype(np.int32)))
