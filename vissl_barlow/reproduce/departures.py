"""What a run is otherwise than its command says: its config, the images it read, and the weights that
a pretraining began with.

Such a run is none of the paper's experiments, whatever was typed.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf

from vissl_barlow.detection.config import shipped_configs
from vissl_barlow.detection.datasets import datasets_of
from vissl_barlow.own_images.choices import AUTO
from vissl_barlow.paths import config_folder
from vissl_barlow.reproduce.overrides import PRETRAIN_GROUP, compose_config, leaves
from vissl_barlow.reproduce.settings import is_irrelevant

# What provenance calls the digits.
DIGITS_SOURCE = "barlow_digits"
HASH_CHARS = 12
# VISSL's default is 1.
_WIDTH = "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER"
# VISSL puts rates in proportion to the batch, by the `auto_lr_scaling` beside them.
_SCALED_RATE = re.compile(r"config\.OPTIMIZER\.param_schedulers\.\w+\.\w*values?")


@functools.cache
def data_sets() -> dict[str, dict[str, dict[str, int]]]:
    """The data sets of the paper's experiments, by VISSL's or Detectron2's name for them: split,
    "train" or "test", to the number of its `images` and, by VISSL's, of their `classes`."""
    return yaml.safe_load((config_folder("benchmark_configs") / "datasets.yaml").read_text())


def config_departures(
    config: str, command: Sequence[str], resolved: Mapping[str, Any]
) -> Iterator[str]:
    """What a `resolved` config has otherwise than `config` with the command's overrides, as KEY=VALUE:
    it was run by another version of the shipped config, or by one that somebody edited.

    Keys that the one or the other does not have are of another version, or VISSL's own defaults.
    """
    overrides = tuple(filter(None, map(_as_composed, command)))
    try:
        composed: Any = OmegaConf.to_container(compose_config(config, overrides))
    except HydraException:  # a config of the user's own, which is no row of the paper's
        return
    for key, expected in {_WIDTH: 1, **dict(leaves(composed, "config"))}.items():
        if is_irrelevant(key) or _SCALED_RATE.fullmatch(key):
            continue
        found = _value(resolved, key.removeprefix("config."))
        if None not in (found, expected) and not _fits(found, expected):
            yield f"{key}={found}"


def _as_composed(word: str) -> str | None:
    """A word of a command as it overrides a shipped config, which states no more than its difference
    from VISSL's defaults; None for what does not change what is computed."""
    override = word.lstrip("+")
    if override.startswith("config.") and not is_irrelevant(override.partition("=")[0]):
        return f"++{override}"
    return word if override.startswith("config/") else None


def _fits(found: Any, expected: Any) -> bool:
    """Whether they are the same, but for what the config leaves to be chosen, and for what another
    version did not state."""
    if expected == AUTO:
        return True
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_fits, found, expected))
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        known = found.keys() <= expected.keys()
        return known and all(_fits(found[key], expected[key]) for key in found)
    return found == expected


def _value(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def data_departures(config: str, starts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Splits that are not the data set of `config`, as text; none where the starts do not say what they
    read, as those of earlier versions.

    Args:
        config: one of this plugin's, not on the digits; Detectron2's too.
        starts: provenance; its `data` has the images and classes of each split.
    """
    # What a probe is tested on is no part of a pretraining.
    splits = ("train",) if config.startswith(PRETRAIN_GROUP) else ("train", "test")
    for split in splits:
        for expected in _expected(config, split):
            for start in starts:
                found = (start.get("data") or {}).get(split)
                if not found:
                    continue
                # Images without labels may be of any number of classes.
                known = {
                    key: value for key, value in expected.items() if found.get(key) is not None
                }
                if any(found[key] != value for key, value in known.items()):
                    yield (
                        f"{found['images']:,} {split} images{_classes(found)} instead of "
                        f"{expected['images']:,}{_classes(known)}"
                    )


def not_the_digits(starts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What a pretraining by a config of the digits read instead of them, as text; `starts`: as in
    `data_departures`."""
    for start in starts:
        found = (start.get("data") or {}).get("train")
        if found and found.get("source") != DIGITS_SOURCE:
            yield f"{found['images']:,} train images{_classes(found)} instead of the digits"


def own_images(starts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Which images a pretraining on one's own read, as text: runs on others are no part of a mean;
    `starts`: as in `data_departures`."""
    for start in starts:
        if found := (start.get("data") or {}).get("train"):
            folders = ", ".join(found.get("paths", ()))
            yield f"{found['images']:,} images{_classes(found)} of {folders}"


def begun_from(starts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Which weights a pretraining began with, as text; none of a random start, the paper's. The command
    tells the file's place alone, and of another file there is another experiment."""
    if weights := starts[0]["weights"]:
        yield f"begun from {file_label(weights)}"


def file_label(weights: Mapping[str, str | None]) -> str:
    """What tells a file of weights, as provenance has it, from others of its name."""
    digest = (weights["sha256"] or "not noted")[:HASH_CHARS]
    return f"{Path(weights['path'] or '').name}, sha256 {digest}"


def _expected(config: str, split: str) -> Iterator[dict[str, int]]:
    if config in shipped_configs():
        names = datasets_of(config)[split]
        yield {"images": sum(data_sets()[name][split]["images"] for name in names)}
        return
    try:
        names = compose_config(config).DATA[split.upper()].DATASET_NAMES
    except HydraException:
        return
    for name in names:
        if split in data_sets().get(name, {}):
            yield data_sets()[name][split]


def _classes(counts: Mapping[str, Any]) -> str:
    classes = counts.get("classes")
    return "" if classes is None else f" in {classes:,} classes"
