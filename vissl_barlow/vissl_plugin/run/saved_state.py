"""What a checkpoint holds if a run of this plugin wrote it: only such a one is gone on from."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

# Keys of an experiment (`run/experiment.py`).
EPOCHS = "OPTIMIZER.num_epochs"
BATCH = "global batch (DATA.TRAIN.BATCHSIZE_PER_REPLICA times the number of processes)"

# Counted from -1, which stands for none so far, but for the steps.
_COUNTERS = ("phase_idx", "train_phase_idx", "iteration_num", "iteration")


def why_not_a_runs(checkpoint: Any, name: str) -> str | None:
    """Why a run cannot have written `checkpoint` under `name`; None if it can.

    It has VISSL's counters, which agree with the name and the schedule, weights that are finite and
    in float32 or float64, whatever the forward pass is in, and an optimizer's state of tensors and
    numbers.
    """
    if not isinstance(checkpoint, Mapping) or not isinstance(_state(checkpoint), Mapping):
        return "no checkpoint of a run: it has no classy_state_dict"
    return (
        _why_wrong_counters(checkpoint, name)
        or _why_wrong_experiment(checkpoint)
        or _why_wrong_weights(_state(checkpoint))
        or _why_wrong_optimizer(_state(checkpoint))
    )


def _state(checkpoint: Mapping) -> Any:
    return checkpoint.get("classy_state_dict")


def _why_wrong_counters(checkpoint: Mapping, name: str) -> str | None:
    for key in _COUNTERS:
        value, least = checkpoint.get(key), 0 if key == "iteration" else -1
        if type(value) is not int or value < least:
            return f"its {key} is {value!r:.40}, and no count"
    if match := re.fullmatch(r"model_(?:final_checkpoint_)?(phase|iteration)(\d+)\.torch", name):
        key = "train_phase_idx" if match[1] == "phase" else "iteration"
        if checkpoint[key] != int(match[2]):
            return f"its {key} is {checkpoint[key]}, and its name says {match[2]}"
    return None


def _why_wrong_experiment(checkpoint: Mapping) -> str | None:
    experiment = _state(checkpoint).get("experiment")
    if experiment is None:
        return None  # of an earlier version
    if not isinstance(experiment, Mapping) or not all(
        type(experiment.get(key)) is int and experiment[key] > 0 for key in (EPOCHS, BATCH)
    ):
        return "it does not say of how many epochs and of which batch it is"
    images, limit = experiment.get("images in DATA.TRAIN"), experiment.get("DATA.TRAIN.DATA_LIMIT")
    if type(images) is not int:
        return None
    images = min(images, limit) if type(limit) is int and limit >= 0 else images
    most = experiment[EPOCHS] * math.ceil(images / experiment[BATCH])
    if checkpoint["iteration"] > most:
        return f"its iteration is {checkpoint['iteration']}, and its schedule ends at {most}"
    return None


def _why_wrong_weights(state: Mapping) -> str | None:
    for part in ("trunk", "heads"):
        weights = _inside(state, "base_model", "model", part)
        if not isinstance(weights, Mapping):
            return f"it has no weights of the {part}"
        for name, weight in weights.items():
            if not isinstance(weight, torch.Tensor):
                return f"{part}.{name} is no tensor"
            if weight.is_floating_point() and weight.dtype not in (torch.float32, torch.float64):
                return f"{part}.{name} is in {weight.dtype}, and a run keeps float32"
            if not torch.isfinite(weight).all():
                return f"{part}.{name} is not finite"
    return None


def _why_wrong_optimizer(state: Mapping) -> str | None:
    optimizer = _inside(state, "optimizer", "optim")
    if not isinstance(optimizer, Mapping) or not {"state", "param_groups"} <= optimizer.keys():
        return "it has no state of the optimizer"
    for value in _leaves(optimizer["state"]):
        if value is not None and not isinstance(value, (torch.Tensor, int, float)):
            return f"the state of the optimizer holds {value!r:.40}, and no tensor"
    return None


def _inside(value: Any, *keys: str) -> Any:
    """What nested mappings hold under `keys`; None where one of these is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(each)
    else:
        yield value
