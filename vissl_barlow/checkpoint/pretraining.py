"""What a checkpoint of this plugin's says of its pretraining, for those who evaluate it."""

import math
from collections.abc import Mapping
from typing import Any

_CHANNELS = 3


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

    def channels(name: str) -> list[float]:
        values = (views.get(f"{name}.{channel}") for channel in range(_CHANNELS))
        return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]

    mean, std = channels("mean"), channels("std")
    is_whole = len(mean) == len(std) == _CHANNELS and min(std) > 0
    return (mean, std) if is_whole else None
