"""`TwoViews`: one image in, two randomly distorted views of it out (paper 2.2, Algorithm 1).

Drawing is kept apart from applying: `TwoViews.sample_parameters` draws a `ViewParameters`,
`TwoViews.apply` turns it into a view by either of two backends, which can therefore be compared
parameter for parameter. Letters: H, W of the image; S the side of a view.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

import vissl_barlow.views.opencv as opencv
import vissl_barlow.views.pillow as pillow
from vissl_barlow.views.arguments import choice, interval, mean_and_std, number, numbers
from vissl_barlow.views.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize
from vissl_barlow.views.parameters import Rng, ViewParameters, sample_crop, sample_jitter

BACKENDS = ("fast", "pil")
INTERPOLATIONS = ("bicubic", "bilinear")


class TwoViews:
    """Two random views of an image (paper 2.2), as (3, S, S) float32 tensors.

    In this order: random resized crop, horizontal flip, colour jitter in random order, greyscale,
    Gaussian blur, solarisation, normalisation.

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
        mean, std: of the normalisation, per channel, for values in [0, 1]; at most 1.
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
        self.size = number("size", size, low=1, whole=True)
        self.crop_scale = interval("crop_scale", crop_scale, high=1, above=0)
        self.crop_ratio = interval("crop_ratio", crop_ratio, above=0)
        self.interpolation = choice("interpolation", interpolation, INTERPOLATIONS)
        self.flip_p = number("flip_p", flip_p, high=1)
        self.jitter_p = number("jitter_p", jitter_p, high=1)
        self.brightness = number("brightness", brightness)
        self.contrast = number("contrast", contrast)
        self.saturation = number("saturation", saturation)
        self.hue = number("hue", hue, high=0.5)
        self.grayscale_p = number("grayscale_p", grayscale_p, high=1)
        self.blur_p = numbers("blur_p", blur_p, count=2, meaning="(view A, view B)", high=1)
        self.blur_sigma = interval("blur_sigma", blur_sigma, above=0)
        self.solarize_p = numbers(
            "solarize_p", solarize_p, count=2, meaning="(view A, view B)", high=1
        )
        self.solarize_threshold = number(
            "solarize_threshold", solarize_threshold, high=256, whole=True
        )
        self.mean, self.std = mean_and_std(mean, std)
        self.backend = choice("backend", backend, BACKENDS)
        if not isinstance(normalize_on_device, bool):
            raise ValueError(f"normalize_on_device is {normalize_on_device!r}: give true or false")
        self.normalize_on_device = normalize_on_device
        strengths = {
            "brightness": self.brightness,
            "contrast": self.contrast,
            "saturation": self.saturation,
        }
        self._jitter_ranges = [
            (operation, max(0.0, 1 - strength), 1 + strength)
            for operation, strength in strengths.items()
            if strength
        ]
        if self.hue:
            self._jitter_ranges.append(("hue", -self.hue, self.hue))
        self._prepare_process()

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._prepare_process()

    def _prepare_process(self) -> None:
        if self.backend == "fast":
            opencv.one_thread_per_process()

    def __call__(
        self, image: Image.Image | np.ndarray, rng: Rng = random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Views A and B of an RGB image.

        Args:
            image: a PIL image of any mode (made RGB by `images.rgb_on_white`) or a uint8 array
                (H, W, 3).
            rng: where both views' draws come from, A's first. Default: Python's module `random`,
                which torch's DataLoader seeds in each worker when that starts, from torch's generator;
                without workers `random.seed` decides. Processes that seed torch alike draw alike: of
                several, give each another seed, or a `random.Random(view_seed(...))` for each image.

        Returns:
            Two tensors (3, S, S): float32 and normalised, or with `normalize_on_device` uint8 and in
            memory pixel by pixel, a channels_last image.

        Raises:
            ValueError: an array of another shape or type, or 32-bit pixels.
        """
        backend = opencv if self.backend == "fast" else pillow
        image = backend.to_rgb(image)  # once for both views
        height, width = (
            image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
        )
        a = self.apply(image, self.sample_parameters(height, width, view=0, rng=rng))
        b = self.apply(image, self.sample_parameters(height, width, view=1, rng=rng))
        return a, b

    def sample_parameters(
        self, height: int, width: int, view: int, rng: Rng = random
    ) -> ViewParameters:
        """Draws the parameters of view A (`view` 0) or B (1) of an image of height x width.

        Args:
            rng: where the draws come from, a `random.Random`; default: the module `random`. The
                same seed gives the same draws with either.
        """
        draw = rng.random
        return ViewParameters(
            crop=sample_crop(height, width, self.crop_scale, self.crop_ratio, rng),
            flip=draw() < self.flip_p,
            jitter=sample_jitter(self._jitter_ranges, rng) if draw() < self.jitter_p else (),
            grayscale=draw() < self.grayscale_p,
            blur_sigma=rng.uniform(*self.blur_sigma) if draw() < self.blur_p[view] else None,
            solarize=draw() < self.solarize_p[view],
        )

    def apply(self, image: Image.Image | np.ndarray, parameters: ViewParameters) -> torch.Tensor:
        """The view of `image` that `parameters` describe, by the chosen backend; draws nothing.

        Arguments, result and errors are those of a call.
        """
        options: dict[str, Any] = {
            "size": self.size,
            "interpolation": self.interpolation,
            "solarize_threshold": self.solarize_threshold,
        }
        if self.backend == "fast":
            pixels = opencv.apply(opencv.to_rgb(image), parameters, **options)
        else:
            pixels = pillow.apply(pillow.to_rgb(image), parameters, **options)
        if self.normalize_on_device:
            return torch.from_numpy(pixels).permute(2, 0, 1)
        return normalize(opencv.to_chw(pixels), self.mean, self.std)
