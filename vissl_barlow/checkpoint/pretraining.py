"""What one of this plugin's checkpoints says of the views that its trunk was pretrained on."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vissl_barlow.views.normalize import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class PretrainingViews:
    """The `size` of the views in pixels (None: not known), their `crop_scale` and `flip_p`, and the
    `mean` and `std` of each channel that they are normalised by. The defaults are the paper's."""

    size: int | None = None
    crop_scale: tuple[float, ...] = (0.08, 1.0)  # BYOL's, which the paper takes
    flip_p: float = 0.5
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


PAPERS_VIEWS = PretrainingViews()


def pretraining_views(checkpoint: Any) -> PretrainingViews | None:
    """The views of what `read_checkpoint` has read, of whatever format; None: it does not say."""
    options = _options(checkpoint)
    if not options:
        return None

    def number(name: str, otherwise: float, low: float = 0, high: float = 1) -> float:
        value = options.get(name)
        return (
            float(value) if isinstance(value, int | float) and low <= value <= high else otherwise
        )

    def numbers(name: str, otherwise: Sequence[float], *limits: float) -> tuple[float, ...]:
        return tuple(
            number(f"{name}.{place}", default, *limits) for place, default in enumerate(otherwise)
        )

    size = options.get("size")
    return PretrainingViews(
        size if type(size) is int and size > 0 else None,
        numbers("crop_scale", PAPERS_VIEWS.crop_scale),
        number("flip_p", PAPERS_VIEWS.flip_p),
        numbers("mean", PAPERS_VIEWS.mean, -math.inf, math.inf),
        numbers("std", PAPERS_VIEWS.std, sys.float_info.min, math.inf),
    )


def _options(checkpoint: Any) -> dict[str, Any]:
    """The options of the two-view transform."""
    experiment: Any = checkpoint
    for key in ("classy_state_dict", "experiment"):
        experiment = experiment.get(key) if isinstance(experiment, Mapping) else None
    experiment = experiment if isinstance(experiment, Mapping) else {}
    for key, value in experiment.items():
        if value == "BarlowTwoViews" and str(key).startswith("DATA.TRAIN.TRANSFORMS."):
            start = str(key).removesuffix("name")
            return {
                str(each).removeprefix(start): experiment[each]
                for each in experiment
                if str(each).startswith(start)
            }
    return {}
