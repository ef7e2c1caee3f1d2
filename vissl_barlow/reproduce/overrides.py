"""Hydra's overrides of commands that are kept with {names} in them, and the keys that they set."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vissl_barlow.overrides import PRETRAIN_GROUP as PRETRAIN_GROUP
from vissl_barlow.overrides import compose_config as compose_config
from vissl_barlow.overrides import override as override
from vissl_barlow.overrides import quote


def fill(argument: str, values: Mapping[str, str]) -> str:
    """`argument` with its {names} replaced by their values, quoted in an override of the config."""
    if not argument.startswith("config"):
        return argument.format_map(values)
    # What stands between the delimiters of hydra's grammar is one text, and quoted as a whole.
    return re.sub(r"[^][,=]*\{[^][,=]*", lambda m: quote(m[0].format_map(values)), argument)


def leaves(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The values of a section `prefix` of a config by dotted key; lists are values."""
    for name, value in config.items():
        key = f"{prefix}.{name}"
        if isinstance(value, Mapping):
            yield from leaves(value, key)
        else:
            yield key, value
