"""In one line, with the names that resemble it: a config or a key that hydra does not find."""

import difflib
import re
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from vissl_barlow.paths import config_folder
from vissl_barlow.vissl_plugin.errors import near_names

_OVERRIDE = re.compile(r"Could not override '(.+)'\.\nTo append to your config use \+[^=]*=(.*)")


def unknown_config(error: BaseException) -> str | None:
    """The line for hydra's MissingConfigException, with the configs that resemble the one wanted."""
    missing = str(getattr(error, "missing_cfg_file", None) or "")
    if not missing:
        return None
    wanted = missing.removeprefix("config/").removesuffix(".yaml")
    known = sorted(
        path.relative_to(folder / "config").with_suffix("").as_posix()
        for folder in (config_folder("configs"), config_folder("benchmark_configs"))
        for path in (folder / "config").glob("*/vissl_barlow/**/*.yaml")
    )
    near = difflib.get_close_matches(wanted, known, n=4, cutoff=0.5) or known
    return f"config={wanted}: there is no such config; did you mean {', '.join(near)}?"


def unknown_key(error: BaseException) -> str | None:
    """The line for hydra's ConfigCompositionException about a key, with those that resemble it.

    None where it is about something else, or the config is not the plugin's.
    """
    match = _OVERRIDE.match(str(error))
    node = getattr(error.__cause__, "parent_node", None)
    if match is None or node is None:
        return None
    root = node._get_root()
    if OmegaConf.select(root, "config.BARLOW") is None:
        return None
    key, value = match.groups()
    parts = key.split(".")
    for length in range(len(parts) - 1, -1, -1):
        section = OmegaConf.select(root, ".".join(parts[:length])) if length else root
        if isinstance(section, DictConfig):
            break
    wanted = ".".join(parts[length:])
    near = near_names(wanted, _leaves(section), otherwise=section)
    return f"{key}={value}: there is no such key; {near}"


def _leaves(section: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        if key == "hydra":
            continue
        name = prefix + str(key)
        yield name
        if isinstance(value, DictConfig):
            yield from _leaves(value, f"{name}.")
