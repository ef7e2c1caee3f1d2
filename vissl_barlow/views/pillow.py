"""The plain backend: a view by torchvision's functions on PIL images, as in the authors' code.

Letters: H, W of the image; S the side of a view.
"""

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from vissl_barlow.images import rgb_on_white
from vissl_barlow.views.arguments import rgb_array
from vissl_barlow.views.parameters import ViewParameters

_JITTER = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """The image as `apply` takes it, from a PIL image of any mode (`rgb_on_white`) or a uint8 array
    (H, W, 3).

    Raises:
        ValueError: an array of another shape or type, or 32-bit pixels.
    """
    if isinstance(image, Image.Image):
        return rgb_on_white(image)
    return Image.fromarray(rgb_array(image))


def apply(
    image: Image.Image,
    parameters: ViewParameters,
    *,
    size: int,
    interpolation: str,
    solarize_threshold: int,
) -> np.ndarray:
    """The view of an RGB image that `parameters` describe; the arguments are `TwoViews`'.

    Returns:
        uint8 array (S, S, 3), RGB, of its own memory.
    """
    top, left, height, width = parameters.crop or (0, 0, image.height, image.width)
    mode = InterpolationMode(interpolation)
    view = F.resized_crop(image, top, left, height, width, [size, size], mode)
    if parameters.flip:
        view = F.hflip(view)
    for operation, factor in parameters.jitter:
        view = _JITTER[operation](view, factor)
    if parameters.grayscale:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    if parameters.blur_sigma is not None:
        view = view.filter(ImageFilter.GaussianBlur(parameters.blur_sigma))
    if parameters.solarize:
        view = F.solarize(view, solarize_threshold)
    return np.array(view)
