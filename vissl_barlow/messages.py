"""Wording that error messages share."""

from collections.abc import Iterable


def listed(names: Iterable[str], shown: int = 3) -> str:
    """The first `shown` names, an ellipsis for the rest; an empty name appears as "(none)"."""
    names = [name or "(none)" for name in names]
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
