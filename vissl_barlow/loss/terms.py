"""What every loss here shares: its result, the checks of its arguments, the registry of objectives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

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


def checked_batch_sizes(
    z_a: Tensor, z_b: Tensor, eps: float, group: ProcessGroup | None
) -> tuple[int, ...]:
    """`distributed.batch_sizes` of two views that can be normalised along the batch.

    Raises:
        ValueError: z_a and z_b are not floating-point matrices of one shape, the global batch has
            fewer than 2 rows, or `eps` is not finite and at least 0.
    """
    for name, z in (("z_a", z_a), ("z_b", z_b)):
        if z.ndim != 2:
            raise ValueError(
                f"{name} has shape {tuple(z.shape)}: give a matrix of (rows, dimensions)"
            )
        if not z.is_floating_point():
            raise ValueError(f"{name} has dtype {z.dtype}: give floating-point embeddings")
    if z_a.shape != z_b.shape:
        raise ValueError(
            f"z_a has shape {tuple(z_a.shape)} and z_b {tuple(z_b.shape)}: give both views of the "
            "same images in the same order"
        )
    check_weight("eps", eps, "; BatchNorm1d's is 1e-5")
    sizes = batch_sizes(z_a.shape[0], group)
    if sum(sizes) < 2:
        raise ValueError(
            f"the global batch has {sum(sizes)} row(s), {z_a.shape[0]} of them in z_a here: "
            "normalising along the batch takes at least 2, raise the batch size"
        )
    return sizes
