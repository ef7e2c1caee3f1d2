"""The random choices behind one view, and how the structured ones among them are drawn."""

import math
import operator
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# As torchvision's RandomResizedCrop.
CROP_ATTEMPTS = 10


class Rng(Protocol):
    """Where the draws come from: a `random.Random`, or Python's module `random` itself."""

    def random(self) -> float:
        """A number in [0, 1)."""

    def uniform(self, a: float, b: float) -> float:
        """A number in [a, b]."""

    def shuffle(self, x: MutableSequence[Any]) -> None:
        """Puts `x` into random order, in place."""


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """One draw of every random choice behind one view; the defaults change nothing but the size.

    Attributes:
        crop: top, left, height and width in pixels of the image; None for the whole image.
        flip: mirror left and right.
        jitter: (operation, factor) in the order of application; the operations are "brightness",
            "contrast", "saturation" (factor 1: no change) and "hue" (a shift in [-0.5, 0.5] turns).
        grayscale: replace every channel by the luminance.
        blur_sigma: standard deviation of the Gaussian in pixels of the view; None for no blur.
        solarize: invert the values at or above the threshold.
    """

    crop: tuple[int, int, int, int] | None = None
    flip: bool = False
    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    blur_sigma: float | None = None
    solarize: bool = False


def view_seed(seed: int, epoch: int, index: int) -> int:
    """What an image's views are drawn from in an epoch: all three numbers, from 0, side by side.

    No two of (seed, epoch below 2^32, index below 2^48) share one.
    """
    # numpy's and torch's whole numbers have 64 bits, out of which a seed of theirs would be shifted.
    seed, epoch, index = map(operator.index, (seed, epoch, index))
    return (seed << 80) + (epoch << 48) + index


def sample_crop(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: Rng,
) -> tuple[int, int, int, int]:
    """A random crop of an image of height x width pixels, distributed as torchvision's.

    Args:
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's width / height, drawn uniformly in the logarithm.
        rng: the draws' source.

    Returns:
        Top, left, height and width in pixels. Where no draw of `CROP_ATTEMPTS` lies inside the
        image, the largest central crop whose ratio is in range.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        drawn_ratio = math.exp(rng.uniform(*log_ratio))
        w = round(math.sqrt(area * drawn_ratio))
        h = round(math.sqrt(area / drawn_ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.random() * (height - h + 1))
            left = int(rng.random() * (width - w + 1))
            return top, left, h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def sample_jitter(
    ranges: Sequence[tuple[str, float, float]], rng: Rng
) -> tuple[tuple[str, float], ...]:
    """A factor for each (operation, lowest, highest), in random order; see `ViewParameters`."""
    jitter = [(operation, rng.uniform(low, high)) for operation, low, high in ranges]
    rng.shuffle(jitter)
    return tuple(jitter)
