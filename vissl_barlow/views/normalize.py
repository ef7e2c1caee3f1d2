"""From pixels to what the model reads: (pixel / 255 - mean) / std, in float32.

Letters: N images, S the side of a view.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch

from vissl_barlow.views.arguments import mean_and_std

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(
    views: torch.Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """(views / 255 - mean) / std of uint8 views (..., 3, S, S), in float32 on the views' device.

    Args:
        views: RGB, in any memory format, which the result keeps.
        mean, std: per channel, for values in [0, 1]; at most 1.
        out: receives the result if given, float32 of the views' shape: a collator can fill its batch
            without a copy in between.

    Returns:
        `out`, or a new tensor of the views' shape.

    Raises:
        ValueError: views of another shape or type (normalised already, or scaled to [0, 1]), mean or
            std out of range, or an `out` that does not fit.
    """
    mean, std = mean_and_std(mean, std)
    if views.dtype != torch.uint8 or views.ndim < 3 or views.shape[-3] != 3:
        raise ValueError(
            f"views are {views.dtype} of shape {tuple(views.shape)}: give uint8 RGB of shape "
            "(..., 3, S, S), neither scaled nor normalised"
        )
    if out is None:
        out = torch.empty_like(views, dtype=torch.float32)
    elif out.dtype != torch.float32 or out.shape != views.shape:
        raise ValueError(
            f"out is {out.dtype} of shape {tuple(out.shape)}: give torch.float32 of the views' shape, "
            f"{tuple(views.shape)}"
        )
    if views.is_cpu and views.is_contiguous() and out.is_contiguous():
        channels, targets = (x.view(-1, *x.shape[-2:]).numpy() for x in (views, out))
        apply_lut(channels, _normalized_levels(mean, std), targets)
        return out
    scale, shift = _scale_and_shift(mean, std, views.device)
    return out.copy_(views).mul_(scale).add_(shift)


def apply_lut(channels: np.ndarray, tables: np.ndarray, out: np.ndarray) -> None:
    """out[i] = tables[i % 3][channels[i]] for uint8 `channels` (3N, S, S), in one pass.

    A pass for each step of the arithmetic is as fast on an idle machine, but not where all cores
    share the memory, as a loader's workers do.

    Args:
        tables: what each of the 256 levels becomes, per colour: (3, 256).
        out: receives the result, in the tables' type.
    """
    for channel, table, target in zip(channels, itertools.cycle(tables), out):
        cv2.LUT(channel, table, dst=target)


@lru_cache(maxsize=16)
def _normalized_levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """What each of the 256 levels becomes, per channel: (3, 256) float32."""
    levels = np.arange(256) / 255
    return np.stack([(levels - m) / s for m, s in zip(mean, std)]).astype(np.float32)


@lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors (3, 1, 1) with views * scale + shift the normalised views."""

    def per_channel(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)

    return (
        per_channel([1 / (255 * s) for s in std]),
        per_channel([-m / s for m, s in zip(mean, std)]),
    )
