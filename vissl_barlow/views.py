"""The two-view augmentation of Barlow Twins (paper 2.2; BYOL's parameters).

Sampling is kept apart from applying: `TwoViews.sample_parameters` draws a `ViewParameters`,
`TwoViews.apply` turns it into a view by either of two backends, which can therefore be compared
parameter for parameter. Shapes: H, W of the image; S the size of a view.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from vissl_barlow import views_fast

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BACKENDS = ("fast", "pil")
INTERPOLATIONS = ("bicubic", "bilinear")
CROP_ATTEMPTS = 10


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


def normalize(
    views: torch.Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """(views / 255 - mean) / std of uint8 views (..., 3, S, S), in float32 on the views' device.

    `out`, if given, receives the result: a collator can fill its batch without a copy in between.
    """
    if out is None:
        out = torch.empty_like(views, dtype=torch.float32)
    mean, std = tuple(mean), tuple(std)
    if views.is_cpu and views.is_contiguous() and out.is_contiguous():
        planes, targets = (x.view(-1, *x.shape[-2:]).numpy() for x in (views, out))
        views_fast.look_up(planes, _normalized_levels(mean, std), targets)
        return out
    scale, shift = _scale_and_shift(mean, std, views.device)
    return out.copy_(views).mul_(scale).add_(shift)


@lru_cache(maxsize=16)
def _normalized_levels(mean, std) -> np.ndarray:
    """What each of the 256 levels becomes, per channel: (3, 256) float32."""
    levels = np.arange(256) / 255
    return np.stack([(levels - m) / s for m, s in zip(mean, std)]).astype(np.float32)


@lru_cache(maxsize=16)
def _scale_and_shift(mean, std, device) -> tuple[torch.Tensor, torch.Tensor]:
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std)]
    return tuple(
        torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
        for values in (scale, shift)
    )


class TwoViews:
    """Two random views of an image (paper 2.2), as (3, S, S) float32 tensors.

    In this order: random resized crop, horizontal flip, colour jitter in random order, greyscale,
    Gaussian blur, solarisation, normalisation. Every draw comes from Python's `random`, which
    torch's DataLoader seeds in each worker and for each epoch from its own generator.

    Args:
        size: S, the side of a view in pixels.
        crop_scale: range of the crop's share of the image's area.
        crop_ratio: range of the crop's width / height, drawn uniformly in the logarithm.
        interpolation: "bicubic" or "bilinear", both antialiased.
        flip_p, jitter_p, grayscale_p: probabilities of these operations, the same for both views.
        brightness, contrast, saturation: the factor is drawn from [max(0, 1 - x), 1 + x].
        hue: the shift is drawn from [-hue, hue], in turns, at most 0.5. A strength of 0 leaves its
            operation out.
        blur_p, solarize_p: probabilities for view A and for view B.
        blur_sigma: range of the Gaussian's standard deviation, in pixels of the view.
        solarize_threshold: values at or above it are inverted, 0..256 (256: none).
        mean, std: of the normalisation, per channel, for values in [0, 1].
        backend: "fast", torch's resize and OpenCV on uint8 arrays, or "pil", torchvision's
            functions on PIL images as in the authors' code; for the same parameters their views
            differ by less than one grey level of 256 on average. "fast" keeps OpenCV to one thread
            in its process.
        normalize_on_device: leave the views uint8, for `normalize` to finish where they are used:
            a quarter of the bytes from worker to device.

    Raises:
        ValueError: a parameter is out of its range.
    """

    def __init__(
        self,
        size: int = 224,
        *,
        crop_scale: Sequence[float] = (0.08, 1.0),
        crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bicubic",
        flip_p: float = 0.5,
        jitter_p: float = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
        grayscale_p: float = 0.2,
        blur_p: Sequence[float] = (1.0, 0.1),
        blur_sigma: Sequence[float] = (0.1, 2.0),
        solarize_p: Sequence[float] = (0.0, 0.2),
        solarize_threshold: int = 128,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        backend: str = "fast",
        normalize_on_device: bool = False,
    ):
        self.size = _number("size", size, low=1, whole=True)
        self.crop_scale = _range("crop_scale", crop_scale, high=1, above=0)
        self.crop_ratio = _range("crop_ratio", crop_ratio, above=0)
        self.interpolation = _choice("interpolation", interpolation, INTERPOLATIONS)
        self.flip_p = _number("flip_p", flip_p, high=1)
        self.jitter_p = _number("jitter_p", jitter_p, high=1)
        self.brightness = _number("brightness", brightness)
        self.contrast = _number("contrast", contrast)
        self.saturation = _number("saturation", saturation)
        self.hue = _number("hue", hue, high=0.5)
        self.grayscale_p = _number("grayscale_p", grayscale_p, high=1)
        self.blur_p = _numbers("blur_p", blur_p, count=2, meaning="(view A, view B)", high=1)
        self.blur_sigma = _range("blur_sigma", blur_sigma, above=0)
        self.solarize_p = _numbers(
            "solarize_p", solarize_p, count=2, meaning="(view A, view B)", high=1
        )
        self.solarize_threshold = _number(
            "solarize_threshold", solarize_threshold, high=256, whole=True
        )
        self.mean = _numbers("mean", mean, count=3, meaning="(red, green, blue)")
        self.std = _numbers("std", std, count=3, meaning="(red, green, blue)", above=0)
        self.backend = _choice("backend", backend, BACKENDS)
        if not isinstance(normalize_on_device, bool):
            raise ValueError(f"normalize_on_device is {normalize_on_device!r}: give true or false")
        self.normalize_on_device = normalize_on_device
        self._log_ratio = tuple(map(math.log, self.crop_ratio))
        strengths = {
            "brightness": self.brightness,
            "contrast": self.contrast,
            "saturation": self.saturation,
        }
        self._jitter_ranges = [
            (name, max(0.0, 1 - strength), 1 + strength)
            for name, strength in strengths.items()
            if strength
        ]
        if self.hue:
            self._jitter_ranges.append(("hue", -self.hue, self.hue))
        values = np.arange(256, dtype=np.uint8)
        self._solarized = np.where(values < self.solarize_threshold, values, 255 - values)
        self._prepare_process()

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self._prepare_process()

    def _prepare_process(self) -> None:
        if self.backend == "fast":
            views_fast.one_thread_per_process()

    def __call__(self, image: Image.Image | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Views A and B of an RGB image.

        Args:
            image: a PIL image of any mode (converted to RGB) or a uint8 array (H, W, 3).

        Returns:
            Two tensors (3, S, S): float32 and normalised, or with `normalize_on_device` uint8 and in
            memory pixel by pixel, a channels_last image.

        Raises:
            ValueError: an array of another shape or type.
        """
        image = self._rgb(image)
        height, width = image.shape[:2] if self.backend == "fast" else (image.height, image.width)
        a = self.apply(image, self.sample_parameters(height, width, view=0))
        b = self.apply(image, self.sample_parameters(height, width, view=1))
        return a, b

    def sample_parameters(self, height: int, width: int, view: int) -> ViewParameters:
        """Draws the parameters of view A (`view` 0) or B (1) of an image of height x width."""
        draw = random.random
        return ViewParameters(
            crop=self._sample_crop(height, width),
            flip=draw() < self.flip_p,
            jitter=self._sample_jitter() if draw() < self.jitter_p else (),
            grayscale=draw() < self.grayscale_p,
            blur_sigma=random.uniform(*self.blur_sigma) if draw() < self.blur_p[view] else None,
            solarize=draw() < self.solarize_p[view],
        )

    def apply(self, image: Image.Image | np.ndarray, parameters: ViewParameters) -> torch.Tensor:
        """The view of `image` that `parameters` describe, (3, S, S); draws nothing."""
        apply = self._apply_fast if self.backend == "fast" else self._apply_pil
        pixels = apply(self._rgb(image), parameters)
        if self.normalize_on_device:
            return torch.from_numpy(pixels).permute(2, 0, 1)
        return normalize(views_fast.planes(pixels), self.mean, self.std)

    def _sample_crop(self, height: int, width: int) -> tuple[int, int, int, int]:
        area = height * width
        for _ in range(CROP_ATTEMPTS):
            target_area = area * random.uniform(*self.crop_scale)
            ratio = math.exp(random.uniform(*self._log_ratio))
            w = round(math.sqrt(target_area * ratio))
            h = round(math.sqrt(target_area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(random.random() * (height - h + 1))
                left = int(random.random() * (width - w + 1))
                return top, left, h, w
        # As torchvision: the largest central crop whose ratio is in range.
        w, h = width, height
        if width / height < self.crop_ratio[0]:
            h = round(width / self.crop_ratio[0])
        elif width / height > self.crop_ratio[1]:
            w = round(height * self.crop_ratio[1])
        return (height - h) // 2, (width - w) // 2, h, w

    def _sample_jitter(self) -> tuple[tuple[str, float], ...]:
        jitter = [(name, random.uniform(low, high)) for name, low, high in self._jitter_ranges]
        random.shuffle(jitter)
        return tuple(jitter)

    def _rgb(self, image) -> Image.Image | np.ndarray:
        """The image as the backend takes it: RGB, as an array or as a PIL image."""
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(
                    f"image is an array of shape {image.shape} and type {image.dtype}: "
                    "pass uint8 RGB of shape (H, W, 3), or a PIL image of any mode"
                )
            return image if self.backend == "fast" else Image.fromarray(image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        return np.asarray(image) if self.backend == "fast" else image

    def _apply_pil(self, image: Image.Image, parameters: ViewParameters) -> np.ndarray:
        top, left, height, width = parameters.crop or (0, 0, image.height, image.width)
        size = [self.size, self.size]
        interpolation = InterpolationMode(self.interpolation)
        view = F.resized_crop(image, top, left, height, width, size, interpolation)
        if parameters.flip:
            view = F.hflip(view)
        for operation, factor in parameters.jitter:
            view = _PIL_JITTER[operation](view, factor)
        if parameters.grayscale:
            view = F.rgb_to_grayscale(view, num_output_channels=3)
        if parameters.blur_sigma is not None:
            view = view.filter(ImageFilter.GaussianBlur(parameters.blur_sigma))
        if parameters.solarize:
            view = F.solarize(view, self.solarize_threshold)
        return np.array(view)

    def _apply_fast(self, image: np.ndarray, parameters: ViewParameters) -> np.ndarray:
        view = views_fast.crop_and_resize(image, parameters.crop, self.size, self.interpolation)
        if parameters.flip:
            view = cv2.flip(view, 1)
        for operation, factor in parameters.jitter:
            view = views_fast.jitter(view, operation, factor)
        if parameters.grayscale:
            view = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
        if parameters.blur_sigma is not None:
            view = views_fast.blur(view, parameters.blur_sigma)
        if parameters.solarize:
            view = cv2.LUT(view, self._solarized)
        return view if view.ndim == 3 else cv2.cvtColor(view, cv2.COLOR_GRAY2RGB)


_PIL_JITTER = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def _number(name, value, *, low=0.0, high=math.inf, above=-math.inf, whole=False):
    wanted = (int,) if whole else (int, float)
    in_range = (
        isinstance(value, wanted)
        and not isinstance(value, bool)
        and low <= value <= high
        and above < value < math.inf
    )
    if not in_range:
        kind = "a whole number" if whole else "a number"
        floor = f"above {above:g}" if above >= low else f"of at least {low:g}"
        limit = "" if high == math.inf else f" and at most {high:g}"
        raise ValueError(f"{name} is {value!r}: give {kind} {floor}{limit}")
    return value


def _numbers(name, values, *, count, meaning, **limits):
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != count:
        raise ValueError(f"{name} is {values!r}: give {count} numbers, {meaning}")
    return tuple(_number(f"{name}[{i}]", value, **limits) for i, value in enumerate(values))


def _range(name, values, **limits):
    low, high = _numbers(name, values, count=2, meaning="(lowest, highest)", **limits)
    if low > high:
        raise ValueError(f"{name} is {values!r}: give the lower end first")
    return low, high


def _choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
    return value
