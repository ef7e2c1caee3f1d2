"""The two views against the authors' pipeline: the same distributions, the same images."""

import math
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from repeated_image import RepeatedImage
from scipy import stats
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision import transforms

from vissl_barlow.views import IMAGENET_MEAN, IMAGENET_STD, TwoViews, ViewParameters, normalize

CHINA, FLOWER = load_sample_images().images
S = 224
DRAWS = 10_000
# Five standard deviations of a frequency at p = 0.5 over DRAWS draws.
FREQUENCY_ATOL = 5 * 0.5 / math.sqrt(DRAWS)
# Kolmogorov-Smirnov with fixed seeds: far above what a wrong range or distribution gives.
KS_PVALUE = 1e-3
# Mean difference in grey levels of 256 between the fast backend and Pillow. The issue allows 2; the
# fast one keeps Pillow's arithmetic, so only rounding is left. Truncation instead of rounding alone
# would show as 0.5 per step.
STAGE_ATOL = 0.45
VIEW_ATOL = 1.0
# Normalised values reach 2.7: two roundings in float32, another order than torchvision's.
NORMALIZED_ATOL = 1e-6


def reference(image, p, threshold=128, interpolation=Image.Resampling.BICUBIC):
    """One view by Pillow alone, as the authors' code does it; uint8 (S, S, 3)."""
    image = Image.fromarray(image)
    top, left, height, width = p.crop or (0, 0, image.height, image.width)
    image = image.crop((left, top, left + width, top + height)).resize((S, S), interpolation)
    if p.flip:
        image = ImageOps.mirror(image)
    for operation, factor in p.jitter:
        if operation == "hue":
            h, s, v = image.convert("HSV").split()
            h = h.point(lambda level, shift=int(factor * 255): (level + shift) % 256)
            image = Image.merge("HSV", (h, s, v)).convert("RGB")
        else:
            enhance = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color"}
            image = getattr(ImageEnhance, enhance[operation])(image).enhance(factor)
    if p.grayscale:
        image = image.convert("L").convert("RGB")
    if p.blur_sigma is not None:
        image = image.filter(ImageFilter.GaussianBlur(p.blur_sigma))
    if p.solarize:
        image = image.point(lambda level: 255 - level if level >= threshold else level)
    return np.asarray(image)


def view_of(backend, image, parameters, **options):
    """The view as (S, S, 3) integers."""
    two_views = TwoViews(S, backend=backend, normalize_on_device=True, **options)
    view = two_views.apply(image, parameters)
    assert view.shape == (3, S, S) and view.dtype == torch.uint8
    pixels = view.permute(1, 2, 0)
    assert pixels.is_contiguous()
    return pixels.numpy().astype(int)


def draws(count=DRAWS, view=0, seed=0, height=427, width=640, **options):
    random.seed(seed)
    two_views = TwoViews(S, **options)
    return [two_views.sample_parameters(height, width, view) for _ in range(count)]


STAGES = {
    "nothing": ViewParameters(),
    "small crop": ViewParameters(crop=(31, 57, 120, 97)),
    "large crop": ViewParameters(crop=(3, 100, 420, 500)),
    "one pixel": ViewParameters(crop=(200, 300, 1, 1)),
    "flip": ViewParameters(flip=True),
    "darker": ViewParameters(jitter=(("brightness", 0.6),)),
    "brighter": ViewParameters(jitter=(("brightness", 1.4),)),
    "flatter": ViewParameters(jitter=(("contrast", 0.6),)),
    "steeper": ViewParameters(jitter=(("contrast", 1.4),)),
    "paler": ViewParameters(jitter=(("saturation", 0.8),)),
    "richer": ViewParameters(jitter=(("saturation", 1.2),)),
    "hue down": ViewParameters(jitter=(("hue", -0.1),)),
    "hue up": ViewParameters(jitter=(("hue", 0.1),)),
    "hue round": ViewParameters(jitter=(("hue", 0.5),)),
    "greyscale": ViewParameters(grayscale=True),
    "least blur": ViewParameters(blur_sigma=0.1),
    "slight blur": ViewParameters(blur_sigma=0.4),
    "blur": ViewParameters(blur_sigma=1.0),
    "most blur": ViewParameters(blur_sigma=2.0),
    "wide blur": ViewParameters(blur_sigma=6.0),
    "solarise": ViewParameters(solarize=True),
}


@pytest.mark.parametrize("image", [CHINA, FLOWER], ids=["china", "flower"])
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_pillows(stage, image):
    expected = reference(image, STAGES[stage])
    np.testing.assert_array_equal(view_of("pil", image, STAGES[stage]), expected)
    difference = np.abs(view_of("fast", image, STAGES[stage]) - expected)
    assert difference.mean() < STAGE_ATOL
    if stage not in ("nothing", "least blur"):
        # The reference itself must show the stage, or its absence would pass as well.
        without = reference(image, ViewParameters()).astype(int)
        assert np.abs(without - expected).mean() > STAGE_ATOL


@pytest.mark.parametrize("view", [0, 1])
def test_whole_views_are_pillows(view):
    errors = []
    for image in (CHINA, FLOWER):
        for p in draws(25, view, seed=view):
            expected = reference(image, p)
            np.testing.assert_array_equal(view_of("pil", image, p), expected)
            errors.append(np.abs(view_of("fast", image, p) - expected).mean())
    assert max(errors) < VIEW_ATOL and np.mean(errors) < STAGE_ATOL


@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_bilinear_interpolation(backend):
    p = ViewParameters(crop=(3, 100, 420, 500))
    bilinear = view_of(backend, CHINA, p, interpolation="bilinear")
    expected = reference(CHINA, p, interpolation=Image.Resampling.BILINEAR)
    assert np.abs(bilinear - expected).mean() < STAGE_ATOL
    assert np.abs(bilinear - reference(CHINA, p)).mean() > 2 * STAGE_ATOL


@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_the_order_of_operations(backend):
    # Each pair would give a clearly different image in the other order.
    steeper_then_brighter = (("contrast", 1.4), ("brightness", 1.4))
    for p in (
        ViewParameters(jitter=steeper_then_brighter),
        ViewParameters(jitter=steeper_then_brighter[::-1]),
        ViewParameters(jitter=(("saturation", 1.2),), grayscale=True),
        ViewParameters(jitter=(("hue", 0.1),), grayscale=True, blur_sigma=2.0, solarize=True),
        ViewParameters(blur_sigma=2.0, solarize=True),
    ):
        assert np.abs(view_of(backend, FLOWER, p) - reference(FLOWER, p)).mean() < VIEW_ATOL


@pytest.mark.parametrize("backend", ["fast", "pil"])
@pytest.mark.parametrize("threshold", [0, 1, 128, 255, 256])
def test_solarisation_inverts_exactly_from_the_threshold_on(backend, threshold):
    levels = np.arange(256, dtype=np.uint8)
    image = np.zeros((S, S, 3), np.uint8)
    image[:128] = np.resize(levels, (128, S))[..., None]
    solarized = view_of(backend, image, ViewParameters(solarize=True), solarize_threshold=threshold)
    expected = np.where(image >= threshold, 255 - image, image)
    np.testing.assert_array_equal(solarized, expected)


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


@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_floats_are_normalised(backend):
    p = draws(1, seed=5)[0]
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    for options, expected_mean, expected_std in (
        ({}, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ({"mean": mean, "std": std}, mean, std),
    ):
        pixels = view_of(backend, CHINA, p)
        view = TwoViews(S, backend=backend, **options).apply(CHINA, p)
        expected = ((pixels / 255 - expected_mean) / expected_std).transpose(2, 0, 1)
        assert view.dtype == torch.float32
        np.testing.assert_allclose(view.numpy(), expected, rtol=0, atol=NORMALIZED_ATOL)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalising_on_the_device_ends_where_normalising_at_once_does(memory_format):
    p, q = draws(2)
    expected = torch.stack([TwoViews(S).apply(FLOWER, each) for each in (p, q)])
    late = TwoViews(S, normalize_on_device=True)
    views = torch.stack([late.apply(FLOWER, each) for each in (p, q)])
    views = views.to(memory_format=memory_format)
    returned = normalize(views)
    assert returned.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(returned, expected, rtol=0, atol=NORMALIZED_ATOL)
    batch = torch.zeros(2, 2, 3, S, S)
    assert normalize(views, IMAGENET_MEAN, IMAGENET_STD, out=batch[1]) is not None
    torch.testing.assert_close(batch[1], expected, rtol=0, atol=NORMALIZED_ATOL)
    assert not batch[0].any()


@pytest.mark.parametrize("backend", ["fast", "pil"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_arrays_and_pil_images_of_any_mode_agree(backend, mode):
    image = Image.fromarray(CHINA).convert(mode)
    two_views = TwoViews(S, backend=backend)
    random.seed(0)
    from_pil = two_views(image)
    random.seed(0)
    from_array = two_views(np.array(image.convert("RGB")))
    for a, b in zip(from_pil, from_array):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_the_image_is_left_alone(backend):
    image = CHINA.copy()
    image.flags.writeable = False
    two_views = TwoViews(S, backend=backend, normalize_on_device=True)
    whole = two_views.apply(image, ViewParameters(grayscale=True, solarize=True))
    whole += 1
    np.testing.assert_array_equal(image, CHINA)
    # A crop of another memory layout, as a mirrored or transposed array has.
    mirrored = two_views.apply(image[:, ::-1], ViewParameters())
    np.testing.assert_array_equal(
        mirrored, two_views.apply(image[:, ::-1].copy(), ViewParameters())
    )


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
        ("std", (0.5, 0.5, 0), r"std\[2\] is 0: give a number above 0"),
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
    [np.zeros((8, 8)), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
    ids=["grey", "alpha", "float"],
)
def test_an_array_that_is_not_uint8_rgb_is_refused(array, backend):
    with pytest.raises(ValueError, match=r"shape \(8, 8.*pass uint8 RGB"):
        TwoViews(backend=backend)(array)
