"""Hydra's overrides: values written so that hydra reads them back, and shipped configs composed."""

import functools
import re
from collections.abc import Mapping

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from vissl_barlow.paths import config_folder

PRETRAIN_GROUP = "pretrain/vissl_barlow"
# Text that hydra reads as itself. Without a letter it might be a number, and some words have a meaning.
_PLAIN = re.compile(r"(?!(true|false|null|nan|inf)$)[./]*[a-z_][\w./-]*", re.ASCII | re.IGNORECASE)


def quote(value: object) -> str:
    """A value of plain Python, dicts and lists of such included, as hydra's command line takes it.

    Text comes back as it was, whatever its characters, except for OmegaConf's interpolations `${...}`.
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{quote(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(quote, value)) + "]"
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        return QuotedString(value, Quote.single).with_quotes()
    return "null" if value is None else str(value)


def override(key: str, value: object) -> str:
    """The override that sets `config.KEY`."""
    return f"config.{key}={quote(value)}"


@functools.cache
def compose_config(name: str, overrides: tuple[str, ...] = ()) -> DictConfig:
    """The section `config` of a shipped config, composed by hydra; `name` as after `config=`.

    Raises:
        hydra.errors.HydraException: there is none, or an override does not fit it.
    """
    folder = config_folder("configs" if name.startswith(PRETRAIN_GROUP) else "benchmark_configs")
    with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
        # A choice of the group `config`, as on VISSL's command line: other groups are then absolute.
        return compose(overrides=[f"+config={name}", *overrides]).config
