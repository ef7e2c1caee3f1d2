"""What every loss here shares: its result, the checks of its arguments, the registry of objectives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from vissl_barlow.distributed import batch_sizes


class LossTerms(NamedTuple):
    """`loss` = `invariance` + lambda * `redundancy`: scalars, equal on all processes."""

    loss: Tensor
    invariance: Tensor
    redundancy: Tensor


OBJECTIVES: dict[str, Callable[..., LossTerms]] = {}
"""The objectives Barlow Twins is compared with, by the name that a config's `objective` gives."""

_Objective = TypeVar("_Objective", bound=Callable[..., LossTerms])


def objective(compute: _Objective) -> _Objective:
    """Decorator: registers the function `NAME_loss` in `OBJECTIVES` as NAME.

    `compute(z_a, z_b, *, ..., group, reference_world_size)` returns `LossTerms`. Its keyword-only
    arguments are the keys a config may give it, but for `group`.

    Raises:
        ValueError: the function's name does not end in `_loss`, or NAME is taken.
    """
    name = compute.__name__.removesuffix("_loss")
    if name == compute.__name__:
        raise ValueError(f"the objective {name} must be called {name}_loss: it registers as {name}")
    if name in OBJECTIVES:
        taken = OBJECTIVES[name]
        raise ValueError(
            f"objective {name} is {taken.__module__}.{taken.__qualname__} already: give "
            f"{compute.__module__}.{compute.__qualname__} another name"
        )
    OBJECTIVES[name] = compute
    return compute


def check(ok: bool, name: str, value: Any, wanted: str) -> None:
    """Raises ValueError, "NAME=VALUE must be WANTED", unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value!r} must be {wanted}")


def check_weight(name: str, value: float, remedy: str = "") -> None:
    """Raises ValueError unless `value` is finite and at least 0; `remedy` ends the message."""
    check(math.isfinite(value) and value >= 0, name, value, f"finite and at least 0{remedy}")


def check_reference_world_size(value: int) -> None:
    """Raises ValueError unless `value` is at least 1."""
    check(
        value >= 1,
        "reference_world_size",
        value,
        "at least 1: give the number of processes whose gradient scale is wanted, 1 for the true "
        "gradient",
    )


# float8 has no arithmetic of its own.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_embeddings(**views: Tensor) -> None:
    """Raises ValueError, with its name, for a view that is no dense floating-point matrix (rows,
    dimensions), or is not of the first one's shape."""
    for name, z in views.items():
        if not isinstance(z, Tensor):
            raise ValueError(f"{name} is a {type(z).__name__}: give a torch.Tensor")
        if z.is_nested or z.layout != torch.strided:
            layout = "nested" if z.is_nested else str(z.layout).removeprefix("torch.")
            raise ValueError(f"{name} is a tensor of layout {layout}: give a dense one")
        if z.is_meta:
            raise ValueError(f"{name} is on the device meta, which holds no numbers")
        if z.ndim != 2 or z.shape[1] == 0:
            raise ValueError(
                f"{name} has shape {tuple(z.shape)}: give a matrix of (rows, dimensions)"
            )
        if z.dtype not in _DTYPES:
            wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise ValueError(
                f"{name} has dtype {z.dtype}: give floating-point embeddings ({wanted})"
            )
    (first, a), *others = views.items()
    for name, z in others:
        if z.shape != a.shape:
            raise ValueError(
                f"{first} has shape {tuple(a.shape)} and {name} {tuple(z.shape)}: give both views of "
                "the same images in the same order"
            )


def checked_batch_sizes(
    z_a: Tensor, z_b: Tensor, eps: float, group: ProcessGroup | None
) -> tuple[int, ...]:
    """`distributed.batch_sizes` of two views that can be normalised along the batch.

    Raises:
        ValueError: as `check_embeddings`, the global batch has fewer than 2 rows, or `eps` is not
            finite and at least 0.
    """
    check_embeddings(z_a=z_a, z_b=z_b)
    check_weight("eps", eps, "; BatchNorm1d's is 1e-5")
    sizes = batch_sizes(z_a.shape[0], group)
    if sum(sizes) < 2:
        raise ValueError(
            f"the global batch has {sum(sizes)} row(s), {z_a.shape[0]} of them in z_a here: "
            "normalising along the batch takes at least 2, raise the batch size"
        )
    return sizes
