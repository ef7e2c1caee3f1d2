"""What several checks need."""

import copy
import functools
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import vissl.config
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from vissl.data.dataset_catalog import VisslDatasetCatalog
from vissl.models import build_model
from vissl.models.trunks import MODEL_TRUNKS_REGISTRY, get_model_trunk

from vissl_barlow.vissl_plugin.errors import ConfigError, ConfigErrors, near_names


class Refusals:
    """Collects what is wrong: `with refusals: check(...)` goes on after a ConfigError."""

    def __init__(self) -> None:
        self.errors: list[ConfigError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> bool:
        if not isinstance(error, ConfigError):
            return False
        self.add(error)
        return True

    def add(self, *errors: ConfigError) -> None:
        for error in errors:
            self.errors += error.errors if isinstance(error, ConfigErrors) else [error]

    def raise_all(self) -> None:
        """Raises the error collected, or all of them as one; none: does nothing."""
        if len(self.errors) > 1:
            raise ConfigErrors(self.errors)
        if self.errors:
            raise self.errors[0]


@functools.cache
def vissl_defaults() -> dict[Any, Any]:
    """The section `config` of VISSL's own defaults, as hydra reads it."""
    path = Path(vissl.config.__file__).with_name("defaults.yaml")
    defaults = OmegaConf.to_container(OmegaConf.load(path).config)
    assert isinstance(defaults, dict)
    return defaults


_WORD = re.compile(r"\+{0,2}config\.([\w.-]+)=")


def typed_keys(cfg) -> set[str]:
    """The keys, and sections, that words of the command line set."""
    words = cfg.BARLOW.get("COMMAND", [])
    return {match[1] for word in words if (match := _WORD.match(str(word)))}


def typed_word(cfg, key: str) -> str | None:
    """The last word of the command line that sets `key` itself; None where none does."""
    words = [str(word) for word in cfg.BARLOW.get("COMMAND", [])]
    found = [word for word in words if (match := _WORD.match(word)) and match[1] == key]
    return found[-1] if found else None


def is_typed(cfg, key: str) -> bool:
    """Whether a word of the command line sets `key`, or a section that has it."""
    return any(f"{key}.".startswith(f"{typed}.") for typed in typed_keys(cfg))


# What hydra takes for no text.
_OTHER = re.compile(r"true|false|null|nan|inf|[\d_.]+e[\d_-]+", re.IGNORECASE)


def pasteable(key: str, value: str) -> str:
    """The word of a command line that sets a key to one text: quoted as bash, zsh and hydra need it."""
    plain = re.fullmatch(r"[\w./-]*[A-Za-z/][\w./-]*", value, re.ASCII) and not _OTHER.fullmatch(
        value
    )
    text = value if plain else QuotedString(value, Quote.double).with_quotes()
    return shlex.quote(f"config.{key}={text}")


def value_at(cfg, key: str) -> Any:
    """What `cfg` has at a dotted key; None where it has nothing."""
    value = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def world_size(cfg) -> int:
    return cfg.DISTRIBUTED.NUM_NODES * cfg.DISTRIBUTED.NUM_PROC_PER_NODE


def named_heads(cfg) -> list[tuple[str, dict]]:
    """Name and options of the heads of `cfg`; without VISSL's nested lists of several."""
    return [
        (head[0], head[1]) for head in cfg.MODEL.HEAD.PARAMS if head and isinstance(head[0], str)
    ]


def model_on_meta(cfg):
    """The model `cfg` would train, without memory or values: for names and shapes.

    Raises:
        ConfigError: it cannot be built; says why.
    """
    try:
        # What a hook returns takes the parameter's place; torch's annotation says it returns nothing.
        hook = register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]
        try:
            model = _built(cfg, build_model)
        finally:
            hook.remove()
    except Exception:
        # A trunk may look at its own weights.
        try:
            model = _built(cfg, build_model)
        except Exception as error:
            raise _unbuildable(cfg, error) from error
    return model.to("meta")


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    """Parameters alone: trunks of VISSL's read values of other tensors while they are built."""
    if parameter is None:
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


def _built(cfg, build: Callable):
    settings = copy.deepcopy(cfg.MODEL)  # some trunks of VISSL's change what they read
    settings.setdefault("_MODEL_INIT_SEED", cfg.SEED_VALUE)
    with torch.random.fork_rng(devices=[]):
        return build(settings, cfg.OPTIMIZER)


def _unbuildable(cfg, error: Exception) -> ConfigError:
    name = cfg.MODEL.TRUNK.NAME
    if name not in MODEL_TRUNKS_REGISTRY:
        trunks = near_names(name, MODEL_TRUNKS_REGISTRY)
        return ConfigError("MODEL.TRUNK.NAME", name, f"VISSL has no such trunk; {trunks}")
    try:
        _built(cfg, lambda settings, _: get_model_trunk(name)(settings, name))
    except Exception as of_trunk:
        return ConfigError(
            "MODEL.TRUNK.NAME",
            name,
            f"this trunk cannot be built here ({reason(of_trunk)}); mend that, or its section of "
            "config.MODEL.TRUNK, or choose another trunk (docs/pretraining.md)",
        )
    return ConfigError(
        "MODEL.HEAD.PARAMS",
        cfg.MODEL.HEAD.PARAMS,
        f"these heads cannot be built on the trunk ({reason(error)}); mend their options",
    )


def reason(error: Exception) -> str:
    """An error of another library's in a few words, on one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def data_path(cfg, split: str, paths: str, index: int) -> str | None:
    """Where a data set's images (`paths` "DATA_PATHS") or labels are; None if nothing says it."""
    section = cfg.DATA[split]
    name = section.DATASET_NAMES[index]
    if len(section[paths]) > index:
        return section[paths][index]
    if VisslDatasetCatalog.has_data(name):
        entry = VisslDatasetCatalog.get(name)["train" if split == "TRAIN" else "val"]
        return entry[0 if paths == "DATA_PATHS" else 1]
    return None
