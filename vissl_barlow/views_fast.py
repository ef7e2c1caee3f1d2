"""The operations behind one view on uint8 arrays, with torch's resize and OpenCV for the rest.

Each operation keeps Pillow's arithmetic, including the saturation and the rounding to 8 bits after
each step, so that a view differs from `backend="pil"` by rounding only. None is an approximation.
"""

import itertools
import math

import cv2
import numpy as np
import torch

# ITU-R 601 luminance of red, green and blue, in Pillow's 16-bit fixed point.
LUMINANCE = (19595 / 65536, 38470 / 65536, 7471 / 65536)
# Pillow's blends truncate where cv2.transform rounds; half a level less a little, so that a value
# that is whole in exact arithmetic stays where it is.
TRUNCATE = -0.499
# sepFilter2D holds 8-bit kernels in 1/256: a smaller weight is 0 there.
SMALLEST_TAP = 1 / 512


def one_thread_per_process() -> None:
    """Keeps OpenCV to the calling thread: a loader has one worker per core, and a fork after
    OpenCV has started its threads can hang."""
    cv2.setNumThreads(0)


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
    """The hue of an RGB view shifted through 8-bit HSV, as Pillow and torchvision do."""
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
    # OpenCV rounds the hue to 256 levels, Pillow truncates it to 255: one level apart on average.
    shift = np.array([(int(turns * 255) - 1) % 256, 0, 0], np.uint8)
    # By whole rows, which numpy adds to several times as fast as to every third byte.
    rows = hsv.reshape(len(hsv), -1)
    rows += np.tile(shift, hsv.shape[1])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def blur(view: np.ndarray, sigma: float) -> np.ndarray:
    """Pillow's Gaussian blur of an RGB or grey view."""
    kernel = gaussian_kernel(sigma)
    return cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


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
    negligible = min(np.count_nonzero(kernel < SMALLEST_TAP) // 2, len(kernel) // 2 - 1)
    kernel = kernel[negligible : len(kernel) - negligible]
    return (kernel / kernel.sum()).astype(np.float32)


def planes(view: np.ndarray) -> torch.Tensor:
    """An RGB (S, S, 3) view as a contiguous uint8 tensor (3, S, S)."""
    out = np.empty((3, *view.shape[:2]), np.uint8)
    cv2.split(view, list(out))
    return torch.from_numpy(out)


def look_up(planes: np.ndarray, tables: np.ndarray, out: np.ndarray) -> None:
    """out[i] = tables[i % channels][planes[i]] for uint8 `planes` (N, S, S), in one pass.

    A pass for each step of the arithmetic is as fast on an idle machine, but not where all cores
    share the memory, as a loader's workers do.
    """
    for plane, table, target in zip(planes, itertools.cycle(tables), out):
        cv2.LUT(plane, table, dst=target)
