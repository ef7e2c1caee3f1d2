"""Hydra's overrides of commands that are kept with {names} in them."""

import re
from collections.abc import Mapping

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
