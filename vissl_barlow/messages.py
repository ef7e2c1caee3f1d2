"""Wording that error messages share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def listed(names: Iterable[str], shown: int = 3) -> str:
    """The first `shown` names, an ellipsis for the rest; an empty name appears as "(none)"."""
    names = [name or "(none)" for name in names]
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def first_unlike(known: Sequence[Mapping[str, Any]], place: str, shown: int = 6) -> str:
    """What the first of `known` that differs from known[0] has otherwise; empty where none does.

    Args:
        known: keys to values, of each place in the order of their numbers.
        place: what one of them is called, "node".
        shown: differences named at most.
    """
    first, *others = known
    for number, other in enumerate(others, 1):
        values = {
            key: (first.get(key, "none"), other.get(key, "none")) for key in {**first, **other}
        }
        differences = [
            f"{key} is {own} on {place} 0 and {theirs} on {place} {number}"
            for key, (own, theirs) in values.items()
            if own != theirs
        ]
        if differences:
            left = len(differences) - shown
            return ", ".join(differences[:shown]) + (f", and {left} more" if left > 0 else "")
    return ""
