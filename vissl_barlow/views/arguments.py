"""Range checks of the augmentation's arguments: each returns its value or says what to give."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def number(
    name: str,
    value: Any,
    *,
    low: float = 0.0,
    high: float = math.inf,
    above: float = -math.inf,
    whole: bool = False,
) -> Any:
    """`value`, a finite number in [low, high] that is more than `above`.

    Args:
        name: how the message calls it.
        whole: take no floats, not even whole ones.

    Raises:
        ValueError: another number, or none (booleans and text are none).
    """
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


def numbers(name: str, values: Any, *, count: int, meaning: str, **limits: Any) -> tuple:
    """`values` as a tuple of `count` numbers, each within `number`'s `limits`.

    Raises:
        ValueError: another count, no sequence, or one out of range; `meaning` says what each is.
    """
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != count:
        raise ValueError(f"{name} is {values!r}: give {count} numbers, {meaning}")
    return tuple(number(f"{name}[{i}]", value, **limits) for i, value in enumerate(values))


def interval(name: str, values: Any, **limits: Any) -> tuple[float, float]:
    """`values` as (lowest, highest), both within `number`'s `limits`.

    Raises:
        ValueError: no two numbers, one out of range, or the higher one first.
    """
    low, high = numbers(name, values, count=2, meaning="(lowest, highest)", **limits)
    if low > high:
        raise ValueError(f"{name} is {values!r}: give the lower end first")
    return low, high


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """`value`, one of `choices`.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
    return value


def rgb_array(image: Any) -> np.ndarray:
    """`image`, an array that holds an RGB image.

    Raises:
        ValueError: it is not uint8 of shape (H, W, 3).
    """
    wanted = "pass uint8 RGB of shape (H, W, 3), or a PIL image of any mode"
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}: {wanted}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image is an array of shape {image.shape} and type {image.dtype}: {wanted}"
        )
    return image


def mean_and_std(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both as tuples: of each channel, for values in [0, 1].

    Raises:
        ValueError: not three numbers each, or for values of another range.
    """
    return (
        numbers("mean", mean, count=3, meaning="(red, green, blue)", high=1),
        numbers("std", std, count=3, meaning="(red, green, blue)", above=0, high=1),
    )
