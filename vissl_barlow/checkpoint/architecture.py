"""Which ResNet a state dict in torchvision's names is, whether it fits a model, and can be one's."""

from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vissl_barlow.checkpoint.torch_file import CheckpointError
from vissl_barlow.messages import listed
from vissl_barlow.resnet import ARCHITECTURES, build_trunk

NAMES_SHOWN = 4
_BOOKKEEPING = ".num_batches_tracked"
# What a weight may be stored in.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_STEM_CHANNELS = 64  # of a ResNet that is not widened


class TrunkDepth(NamedTuple):
    """`depth`: 18, 34, 50, 101 or 152; `small_stem`: 3 x 3 first convolution (32-pixel images);
    `width_multiplier`: on the channels of every layer, as VISSL's `WIDTH_MULTIPLIER`."""

    depth: int
    small_stem: bool
    width_multiplier: float = 1

    def __str__(self) -> str:
        width = "" if self.width_multiplier == 1 else f" x{self.width_multiplier:g}"
        return f"ResNet-{self.depth}{width}{' with small stem' if self.small_stem else ''}"

    def other_than(self, settings: str) -> str:
        """How a model that expects another ResNet refuses this one; `settings` would build it."""
        return f"this is a {self}: set {settings}"


def trunk_depth(state_dict: Mapping[str, Tensor]) -> TrunkDepth:
    """Which torchvision ResNet a trunk's state dict is, from its names and shapes, without `fc`.

    Raises:
        CheckpointError: none fits; says what is missing, unexpected or of another shape against the
            nearest one.
    """

    def names_apart(depth: int) -> int:
        return len(_required(state_dict) ^ _required(_trunk_shapes(depth)))

    depth = min(ARCHITECTURES, key=names_apart)
    stem: Sequence[int] = state_dict["conv1.weight"].shape if "conv1.weight" in state_dict else ()
    layout = TrunkDepth(
        depth,
        small_stem=tuple(stem[2:]) == (3, 3),
        width_multiplier=stem[0] / _STEM_CHANNELS if len(stem) and stem[0] else 1,
    )
    if misfit := _misfit(state_dict, _trunk_shapes(*layout)):
        raise CheckpointError(f"not a ResNet-18/34/50/101/152; against ResNet-{depth}: {misfit}")
    return layout


def check_fits(state_dict: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuses a state dict with which `model.load_state_dict` would leave anything out.

    `num_batches_tracked` may be missing, as in files of frozen or converted models.

    Raises:
        CheckpointError: says which names are missing, unexpected, or of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if misfit := _misfit(state_dict, shapes):
        raise CheckpointError(f"the checkpoint does not fit {type(model).__name__}: {misfit}")


def check_values(state_dict: Mapping[str, Tensor], whole: Container[str] = ()) -> None:
    """Refuses tensors that torch would load into a model and that cannot be a trained model's.

    Weights are dense, in float16, bfloat16, float32 or float64, and finite; variances are not below 0.

    Args:
        whole: names of tensors that are whole numbers in the model, beside `num_batches_tracked`.

    Raises:
        CheckpointError: says which tensors are not so, and what to take instead.
    """
    weights = {
        name: tensor
        for name, tensor in state_dict.items()
        if not name.endswith(_BOOKKEEPING) and name not in whole
    }
    kinds = {name: kind for name, tensor in weights.items() if (kind := _why_no_weight(tensor))}
    if kinds:
        shown = listed((f"{name} is {kind}" for name, kind in kinds.items()), NAMES_SHOWN)
        raise CheckpointError(
            f"{len(kinds)} tensors are no weights ({shown}): save the state dict of the model in "
            "float32 (or float16, bfloat16), as it was before it was quantised or made sparse"
        )
    check_finite(weights)
    negative = [
        name
        for name, tensor in weights.items()
        if name.endswith("running_var") and (tensor < 0).any()
    ]
    if negative:
        raise CheckpointError(
            f"variances below 0 in {len(negative)} tensors ({listed(negative, NAMES_SHOWN)}): no "
            "training leaves such; take another copy of the file"
        )


def check_finite(weights: Mapping[str, Any]) -> None:
    """Raises CheckpointError if a tensor among `weights` holds NaN or an infinity; says which."""
    names = [
        name
        for name, tensor in weights.items()
        if isinstance(tensor, Tensor) and not tensor.isfinite().all()
    ]
    if names:
        raise CheckpointError(
            f"not finite (NaN or inf) in {len(names)} tensors ({listed(names, NAMES_SHOWN)}): take a "
            "checkpoint from before its training diverged"
        )


def _why_no_weight(tensor: Tensor) -> str:
    if tensor.dtype not in _DTYPES:
        return str(tensor.dtype)
    if tensor.layout != torch.strided:
        return str(tensor.layout)
    return "without data" if tensor.is_meta else ""


def _required(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.endswith(_BOOKKEEPING)}


@cache
def _trunk_shapes(depth: int, small_stem: bool = False, width: float = 1) -> dict[str, tuple]:
    with torch.device("meta"):
        model = build_trunk(depth, small_stem=small_stem, width_multiplier=width)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _misfit(state_dict: Mapping[str, Tensor], shapes: Mapping[str, tuple]) -> str:
    """What keeps a state dict from a model of these shapes; empty where it fits."""
    absent = _required(shapes) - state_dict.keys()
    missing = [name for name in shapes if name in absent]
    unexpected = [name for name in state_dict if name not in shapes]
    reshaped = [
        f"{name} {tuple(tensor.shape)} instead of {shapes[name]}"
        for name, tensor in state_dict.items()
        if name in shapes and tuple(tensor.shape) != shapes[name]
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return "; ".join(
        f"{len(names)} {kind}: {listed(names, NAMES_SHOWN)}"
        for kind, names in kinds.items()
        if names
    )
