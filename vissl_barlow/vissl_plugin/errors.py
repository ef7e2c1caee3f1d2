"""What ends a run in one line for the user."""

import difflib
from collections.abc import Iterable

NEAR_NAMES = 3


class ConfigError(ValueError):
    """A config that cannot train; the message is one line for the user."""

    def __init__(self, key: str, value, remedy: str) -> None:
        super().__init__(f"config.{key}={value}: {remedy}")


def set_keys_of(section: str) -> str:
    """The remedy where one value stands in the place of a section."""
    return f"this is a section, not one value; set its keys, config.{section}.NAME"


class ConfigErrors(ConfigError):
    """Several things that are wrong with a config, each on a line of the message."""

    def __init__(self, errors: list[ConfigError]) -> None:
        ValueError.__init__(self, "\n".join(map(str, errors)))
        self.errors = errors


class UnknownKey(ValueError):
    """`owner` has no key `key`; the message names those of `known` that resemble it, or all of them."""

    def __init__(self, owner: str, key: str, known: Iterable[str]) -> None:
        super().__init__(f"{owner} has no {key}; {near_names(key, known)}")
        self.key = key


class RankFailed(Exception):
    """One process of several is gone; the message names its rank."""


def near_names(name: str, known: Iterable[str], *, otherwise: Iterable[str] | None = None) -> str:
    """How a message about `name`, which is not among `known`, ends: with the names that resemble it.

    If none does: with those of `otherwise`, by default all.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=NEAR_NAMES, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"it has {', '.join(names if otherwise is None else sorted(otherwise))}"
