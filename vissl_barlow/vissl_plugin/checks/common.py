"""What several checks need."""

import functools
import re
from pathlib import Path
from typing import Any

import torch
import vissl.config
from omegaconf import OmegaConf
from vissl.data.dataset_catalog import VisslDatasetCatalog
from vissl.models import build_model

from vissl_barlow.vissl_plugin.errors import ConfigError, ConfigErrors


class Refusals:
    """Collects what is wrong: `with refusals: check(...)` goes on after a ConfigError."""

    def __init__(self) -> None:
        self.errors: list[ConfigError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> bool:
        if not isinstance(error, ConfigError):
            return False
        self.errors += error.errors if isinstance(error, ConfigErrors) else [error]
        return True

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


def is_typed(cfg, key: str) -> bool:
    """Whether a word of the command line sets `key`, or a section that has it."""
    return any(f"{key}.".startswith(f"{typed}.") for typed in typed_keys(cfg))


def world_size(cfg) -> int:
    return cfg.DISTRIBUTED.NUM_NODES * cfg.DISTRIBUTED.NUM_PROC_PER_NODE


def named_heads(cfg) -> list[tuple[str, dict]]:
    """Name and options of the heads of `cfg`; without VISSL's nested lists of several."""
    return [
        (head[0], head[1]) for head in cfg.MODEL.HEAD.PARAMS if head and isinstance(head[0], str)
    ]


def model_on_meta(cfg):
    """The model `cfg` would train, without memory or values: for names and shapes."""
    cfg.MODEL["_MODEL_INIT_SEED"] = cfg.MODEL.get("_MODEL_INIT_SEED", cfg.SEED_VALUE)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build_model(cfg.MODEL, cfg.OPTIMIZER)


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
