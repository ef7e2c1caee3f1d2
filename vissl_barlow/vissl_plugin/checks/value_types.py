"""Values of another type than VISSL's defaults have: a scalar for a list, a text for a switch.

VISSL indexes and tests what it is given: of the text `/images` it takes `/`, and `no` is true.
"""

import copy
import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from vissl_barlow.vissl_plugin.checks.common import (
    Refusals,
    named_heads,
    typed_word,
    vissl_defaults,
)
from vissl_barlow.vissl_plugin.checks.syntax import quoted
from vissl_barlow.vissl_plugin.errors import ConfigError, set_keys_of

# Keys of this plugin's in VISSL's sections, where their components do not check them.
_OWN = {
    "SVM": {"class_names": ["cat"]},
    "MODEL": {"TRUNK": {"RESNETS": {"SMALL_STEM": False}}},
}
# What the entries of a list are, where VISSL's default is an empty one, or they are no scalars.
_LISTS = {"HEAD.PARAMS", "LINEAR_EVAL_FEAT_POOL_OPS_MAP", "TEMP_FROZEN_PARAMS_ITER_MAP"}
_LISTS |= {"MULTI_INPUT_HEAD_MAPPING"}
_SECTIONS = {"TRANSFORMS", "schedulers"}
_NUMBERS = {"lengths", "cls_list"}
# Lists in which each place has its meaning: a single number would stand for all, or for the first.
_PLACES = {"INPUT_SHAPE", "betas", "power_range"}
_PATHS = re.compile(r"(.*_)?(DIR|FILE|FOLDER|PATHS?|PREFIX)")
# The least of whole numbers with which a run comes to an end; others fail hours later, or never.
_LEAST = {
    "SEED_VALUE": 0,
    "LOG_FREQUENCY": 1,
    "TEST_EVERY_NUM_EPOCH": 1,
    "CHECKPOINT.CHECKPOINT_FREQUENCY": 1,
    "DISTRIBUTED.NUM_NODES": 1,
    "DISTRIBUTED.NUM_PROC_PER_NODE": 1,
    "DATA.NUM_DATALOADER_WORKERS": 0,
    "DATA.TRAIN.DATA_LIMIT": -1,
    "DATA.TEST.DATA_LIMIT": -1,
    "DATA.TRAIN.BATCHSIZE_PER_REPLICA": 1,
    "DATA.TEST.BATCHSIZE_PER_REPLICA": 1,
    "OPTIMIZER.num_epochs": 1,
}
# The words that VISSL knows. What is not "gpu" is the CPU to it, where "cuda" would train in silence,
# and an image of an unknown type is RGB.
_WORDS = {
    "MACHINE.DEVICE": ("gpu", "cpu"),
    "DISTRIBUTED.BACKEND": ("nccl", "gloo", "mpi"),
    "DISTRIBUTED.INIT_METHOD": ("tcp", "file"),
    "MULTI_PROCESSING_METHOD": ("forkserver", "spawn", "fork"),
    "MODEL.INPUT_TYPE": ("rgb", "bgr", "lab"),
    "MODEL.SYNC_BN_CONFIG.SYNC_BN_TYPE": ("pytorch", "apex"),
    "MODEL.AMP_PARAMS.AMP_TYPE": ("pytorch", "apex"),
    "DATA.TRAIN.LABEL_TYPE": ("standard", "sample_index", "zero"),
    "DATA.TEST.LABEL_TYPE": ("standard", "sample_index", "zero"),
}
# A number, or a word of torch's or VISSL's own.
_FREE = {"NORM_TYPE", "QK_SCALE"}


def complete_values(cfg) -> None:
    """Makes a single entry where VISSL wants a list a list of one, in place; of null, an empty list, or
    an empty text where that is VISSL's default.

    A `~` that begins a path becomes the home folder. What is wrong is left as it is.
    """
    for key, default, section, name in _values(cfg, _defaults()):
        value = section[name]
        if isinstance(default, list) and name not in _PLACES:
            if value is None:
                section[name] = []
            elif _is_entry(key, default, value):
                section[name] = [value]
        if default == "" and value is None:
            section[name] = ""
        if _PATHS.fullmatch(name):
            section[name] = _expanded(section[name])


def check_types(cfg) -> None:
    """Raises ConfigError for values that are not of the type of VISSL's default, or below their least.

    Each becomes the default, so that others can be looked at before all are said.
    """
    refusals = Refusals()
    for key, default, section, name in _values(cfg, _defaults()):
        remedy = _remedy(key, name, default, section[name], typed_word(cfg, key))
        if remedy:
            with refusals:
                value = section[name]
                section[name] = _copied(default, type(section))
                raise ConfigError(key, value, remedy)
    with refusals:
        _check_widths(cfg)
    refusals.raise_all()


def _check_widths(cfg) -> None:
    """Of heads, whose options are no keys of VISSL's defaults."""
    for name, options in named_heads(cfg):
        dims = options.get("dims", [1]) if isinstance(options, Mapping) else [1]
        if not (isinstance(dims, list) and dims and all(type(dim) is int for dim in dims)):
            remedy = f"dims of {name} is {dims}; set a list of widths, such as [2048,2048,2048]"
            raise ConfigError("MODEL.HEAD.PARAMS", cfg.MODEL.HEAD.PARAMS, remedy)


def _remedy(key: str, name: str, default: Any, value: Any, word: str | None) -> str | None:
    """What to do about `value`, or None if it is of the default's type."""
    if name in _FREE or default is None or value == default:
        return None
    words = _WORDS.get(key)
    if words is not None and not isinstance(value, list | Mapping):
        return None if value in words else f"set {' or '.join(words)}"
    if isinstance(default, Mapping):
        return None if isinstance(value, Mapping) else set_keys_of(key)
    if isinstance(default, list):
        return _remedy_of_list(key, name, default, value, word)
    if isinstance(default, bool):
        return "set true or false" if isinstance(value, str | list | Mapping) else None
    if isinstance(default, int | float):
        return _remedy_of_number(key, value)
    if isinstance(value, list | Mapping):
        return "set one text, without brackets"
    if _PATHS.fullmatch(name) and not isinstance(value, str | None):
        return f"{value} is no text; quote what is meant: {quoted(word or f'config.{key}={value}')}"
    return None


def _remedy_of_number(key: str, value: Any) -> str | None:
    if not _is_number(value):
        return "set a number"
    least = _LEAST.get(key)
    if least is not None and (value < least or not isinstance(value, int)):
        return f"set a whole number of at least {least}"
    return None


def _remedy_of_list(key: str, name: str, default: list, value: Any, word: str | None) -> str | None:
    if name in _PLACES:
        fits = (
            isinstance(value, list) and len(value) == len(default) and all(map(_is_number, value))
        )
        return None if fits else f"set a list of {len(default)} numbers, such as {default}"
    kind = _kind(key, default)
    if not isinstance(value, list):
        return f"set a list of {kind}, [...]"
    for entry in value:
        if name == "LABEL_PATHS" and isinstance(entry, list):
            continue  # several files of labels for one data set
        if kind == "names" and _is_scalar(entry) and not isinstance(entry, str):
            meant = quoted(word or f"config.{key}=[{entry}]")
            return f"{entry} is no text; quote what is meant: {meant}"
        if not _is_one(kind, entry):
            return f"set a list of {kind}; {entry} is none"
    return None


def _kind(key: str, default: list) -> str:
    """What the entries of a list are."""
    last = key.rpartition(".")[2]
    if key.removeprefix("MODEL.") in _LISTS or last in _LISTS:
        return "lists"
    if default and isinstance(default[0], list | Mapping):
        return "lists" if isinstance(default[0], list) else "sections"
    if last in _SECTIONS:
        return "sections"
    if last in _NUMBERS or (default and _is_number(default[0])):
        return "numbers"
    return "names"


def _is_entry(key: str, default: list, value: Any) -> bool:
    """Whether `value`, given where a list is wanted, can only be meant as one entry of it."""
    kind = _kind(key, default)
    if kind == "lists":
        return isinstance(value, list) and bool(value) and isinstance(value[0], str)
    return not isinstance(value, list) and _is_one(kind, value)


def _is_one(kind: str, entry: Any) -> bool:
    """Whether `entry` is one of a list's `kind`; for names any scalar, refused later."""
    if kind in ("lists", "sections"):
        return isinstance(entry, list if kind == "lists" else Mapping)
    if kind == "numbers":
        return _is_number(entry)
    return _is_scalar(entry)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _values(
    section: Mapping, defaults: Mapping, prefix: str = ""
) -> Iterator[tuple[str, Any, Any, str]]:
    """Of every key of VISSL's that `section` has: dotted name, default, its section, last name."""
    for name, default in defaults.items():
        if name not in section:
            continue
        key = prefix + name
        if isinstance(default, Mapping) and isinstance(section[name], Mapping):
            yield from _values(section[name], default, f"{key}.")
        else:
            yield key, default, section, name


@functools.cache
def _defaults() -> Mapping:
    """VISSL's own, and those of this plugin's keys beside them."""
    merged = OmegaConf.to_container(OmegaConf.merge(vissl_defaults(), _OWN))
    assert isinstance(merged, dict)
    return merged


def _copied(default: Any, section: type) -> Any:
    return section(default) if isinstance(default, Mapping) else copy.copy(default)


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) else value
