"""What a checkpoint of this plugin's says of its pretraining, for those who evaluate it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vissl_barlow.views import IMAGENET_MEAN, IMAGENET_STD


def views_of(checkpoint: Any) -> dict[str, Any]:
    """The options of the two-view transform, by dotted names, as one of this plugin's checkpoints notes
    them; none of other files."""
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


def normalization_of(checkpoint: Any) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation, in the range of 0 to 1 and for each of RGB, that the images of the
    pretraining were normalised by; None where a checkpoint does not say so."""
    views = views_of(checkpoint)
    if not views:
        return None

    def channels(name: str, defaults: Sequence[float]) -> list[float]:
        values = (views.get(f"{name}.{place}", value) for place, value in enumerate(defaults))
        return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]

    # What a config does not say, the transform has of itself.
    mean, std = channels("mean", IMAGENET_MEAN), channels("std", IMAGENET_STD)
    is_whole = len(mean) == len(std) == len(IMAGENET_MEAN) and min(std) > 0
    return (mean, std) if is_whole else None
