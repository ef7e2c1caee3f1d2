"""The views by Pillow alone, as the authors' code makes them, and many draws of ours."""

import math
import random

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images

from vissl_barlow.views import TwoViews

CHINA, FLOWER = load_sample_images().images
S = 224
DRAWS = 10_000
# Five standard deviations of a frequency at p = 0.5 over DRAWS draws.
FREQUENCY_ATOL = 5 * 0.5 / math.sqrt(DRAWS)
# Kolmogorov-Smirnov with fixed seeds: far above what a wrong range or distribution gives.
KS_PVALUE = 1e-3
# Mean difference in grey levels of 256 between the fast backend and Pillow. The issue allows 2; the
# fast one keeps Pillow's arithmetic, so that on photographs rounding is nearly all that is left.
# Truncation instead of rounding alone would show as 0.5 per step.
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
    """The parameters of so many views of one image."""
    random.seed(seed)
    two_views = TwoViews(S, **options)
    return [two_views.sample_parameters(height, width, view) for _ in range(count)]
