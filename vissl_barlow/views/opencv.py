"""The fast backend: a view by torch's resize and OpenCV, on uint8 arrays.

Each operation keeps Pillow's arithmetic, including the saturation and the rounding to 8 bits after
each step, so that a view differs from `pillow`'s by rounding, but in two places: `blur` at the border,
`shift_hue` on saturated colours.

Letters: H, W of the image; S the side of a view.
"""

import math
from functools import lru_cache

import cv2
import numpy as np
import torch
from PIL import Image

from vissl_barlow.images import rgb_on_white
from vissl_barlow.views.arguments import rgb_array
from vissl_barlow.views.parameters import ViewParameters

# ITU-R 601 luminance of red, green and blue, in Pillow's 16-bit fixed point.
LUMINANCE = (19595 / 65536, 38470 / 65536, 7471 / 65536)
# Pillow's blends truncate where cv2.transform rounds; half a level less a little, so that a value
# that is whole in exact arithmetic stays where it is.
TRUNCATE = -0.499
# sepFilter2D holds 8-bit kernels in 1/256: a smaller weight is 0 there.
SMALLEST_TAP = 1 / 512
# Of a blur's sigma, per pixel: rounding to them moves a weight by no more than OpenCV's own rounding.
SIGMA_STEPS = 256


def one_thread_per_process() -> None:
    """Keeps OpenCV to the calling thread: a loader has one worker per core, and a fork after
    OpenCV has started its threads can hang."""
    cv2.setNumThreads(0)


def to_rgb(image: Image.Image | np.ndarray) -> np.ndarray:
    """The image as `apply` takes it, from a PIL image of any mode (`rgb_on_white`) or a uint8 array
    (H, W, 3).

    Raises:
        ValueError: an array of another shape or type, or 32-bit pixels.
    """
    if isinstance(image, Image.Image):
        return np.asarray(rgb_on_white(image))
    return rgb_array(image)


def apply(
    image: np.ndarray,
    parameters: ViewParameters,
    *,
    size: int,
    interpolation: str,
    solarize_threshold: int,
) -> np.ndarray:
    """The view of an RGB image (H, W, 3) that `parameters` describe; the arguments are `TwoViews`'.

    Returns:
        uint8 array (S, S, 3), RGB, of its own memory.
    """
    view = crop_and_resize(image, parameters.crop, size, interpolation)
    if parameters.flip:
        view = cv2.flip(view, 1)
    for operation, factor in parameters.jitter:
        view = jitter(view, operation, factor)
    if parameters.grayscale:
        # One channel from here on: a third of the work for what follows.
        view = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
    if parameters.blur_sigma is not None:
        view = blur(view, parameters.blur_sigma)
    if parameters.solarize:
        view = cv2.LUT(view, _solarized_levels(solarize_threshold))
    return view if view.ndim == 3 else cv2.cvtColor(view, cv2.COLOR_GRAY2RGB)


def crop_and_resize(
    image: np.ndarray, crop: tuple[int, int, int, int] | None, size: int, interpolation: str
) -> np.ndarray:
    """The crop (top, left, height, width) of an (H, W, 3) array, antialiased to (size, size, 3)."""
    if crop is not None:
        top, left, height, width = crop
        image = image[top : top + height, left : left + width]
    # The batch dimension is made by view(), whose strides torch knows as channels_last; those of
    # unsqueeze() lead to a planar result, which every later step would have to interleave.
    pixels = torch.from_numpy(image.copy()).view(1, *image.shape).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        pixels, size=(size, size), mode=interpolation, antialias=True
    )
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def jitter(view: np.ndarray, operation: str, factor: float) -> np.ndarray:
    """One step of the colour jitter on an RGB view: see `ViewParameters.jitter`."""
    if operation == "hue":
        return shift_hue(view, factor)
    offset = TRUNCATE
    red = green = blue = 0.0
    if operation == "contrast":
        mean_luminance = sum(w * mean for w, mean in zip(LUMINANCE, cv2.mean(view)))
        offset += (1 - factor) * math.floor(mean_luminance + 0.5)
    elif operation == "saturation":
        red, green, blue = ((1 - factor) * w for w in LUMINANCE)
    matrix = np.array(
        [
            [red + factor, green, blue, offset],
            [red, green + factor, blue, offset],
            [red, green, blue + factor, offset],
        ]
    )
    return cv2.transform(view, matrix)


def shift_hue(view: np.ndarray, turns: float) -> np.ndarray:
    """The hue of an RGB view shifted through 8-bit HSV, as Pillow and torchvision do.

    OpenCV's hue has 256 levels, Pillow's 255. Where a colour is saturated a level of hue is several of
    red, green or blue: on pure red or green the mean difference is up to 2 levels.
    """
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
    # By whole rows, which numpy adds to several times as fast as to every third byte.
    rows = hsv.reshape(len(hsv), -1)
    # OpenCV rounds the hue to 256 levels, Pillow truncates it to 255: one level apart on average.
    rows += _hues_of_a_row(hsv.shape[1]) * np.uint8((int(turns * 255) - 1) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


@lru_cache(maxsize=16)
def _hues_of_a_row(width: int) -> np.ndarray:
    """1 where an HSV row has a hue, 0 elsewhere: uint8 (3 * width,)."""
    return np.tile(np.array([1, 0, 0], np.uint8), width)


def blur(view: np.ndarray, sigma: float) -> np.ndarray:
    """Pillow's Gaussian blur of an RGB or grey view.

    Pillow repeats the border's pixels before each of its three box filters, this once before their
    convolution. The six outermost pixels differ by up to 18 levels on photographs, by 41 where a white
    line lies along a black image's border.
    """
    kernel = gaussian_kernel(round(sigma * SIGMA_STEPS) / SIGMA_STEPS)
    return cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=16)
def _solarized_levels(threshold: int) -> np.ndarray:
    """What each of the 256 levels becomes: uint8 (256,)."""
    levels = np.arange(256, dtype=np.uint8)
    return np.where(levels < threshold, levels, 255 - levels)


@lru_cache(maxsize=1024)
def gaussian_kernel(sigma: float) -> np.ndarray:
    """Pillow's Gaussian in one dimension: three box filters with fractional ends, convolved.

    The boxes are those of Gwosdek et al., "Theoretical foundations of Gaussian convolution by
    extended box filtering" (2011): each has the variance sigma^2 / 3.
    """
    variance = sigma * sigma / 3
    radius = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    length = 2 * radius + 1
    fraction = length * (radius * (radius + 1) - 3 * variance)
    fraction /= 6 * (variance - (radius + 1) ** 2)
    box = np.full(length + 2, 1 / (length + 2 * fraction))
    box[[0, -1]] *= fraction
    kernel = np.convolve(np.convolve(box, box), box)
    # One neighbour on each side stays: OpenCV turns a single tap into a plain copy of another type.
    negligible = min(int(np.count_nonzero(kernel < SMALLEST_TAP)) // 2, len(kernel) // 2 - 1)
    kernel = kernel[negligible : len(kernel) - negligible]
    return (kernel / kernel.sum()).astype(np.float32)


def to_chw(view: np.ndarray) -> torch.Tensor:
    """An RGB (S, S, 3) view as a contiguous uint8 tensor (3, S, S)."""
    out = np.empty((3, *view.shape[:2]), np.uint8)
    cv2.split(view, list(out))
    return torch.from_numpy(out)
