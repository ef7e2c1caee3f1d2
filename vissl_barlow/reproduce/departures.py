"""What a run is otherwise than its command says: trunk and heads, and the images it read.

Such a run is none of the paper's experiments, whatever was typed.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf

from vissl_barlow.detection.config import shipped_configs
from vissl_barlow.detection.datasets import datasets_of
from vissl_barlow.own_images.choices import AUTO
from vissl_barlow.paths import config_folder
from vissl_barlow.reproduce.overrides import PRETRAIN_GROUP, compose_config
from vissl_barlow.reproduce.settings import decides_the_model

# What provenance calls the digits.
DIGITS_SOURCE = "barlow_digits"
_WIDTH = "TRUNK.RESNETS.WIDTH_MULTIPLIER"


@functools.cache
def data_sets() -> dict[str, dict[str, dict[str, int]]]:
    """The data sets of the paper's experiments, by VISSL's or Detectron2's name for them: split,
    "train" or "test", to the number of its `images` and, by VISSL's, of their `classes`."""
    return yaml.safe_load((config_folder("benchmark_configs") / "datasets.yaml").read_text())


def model_departures(
    config: str, command: Sequence[str], resolved: Mapping[str, Any]
) -> Iterator[str]:
    """Trunk and heads of a `resolved` config that are not those of `config` with the command's
    overrides, as KEY=VALUE."""
    overrides = tuple(filter(decides_the_model, command))
    try:
        composed: Any = OmegaConf.to_container(compose_config(config, overrides))
    except HydraException:  # a config of the user's own, which is no row of the paper's
        return
    for key in ("TRUNK.NAME", "TRUNK.RESNETS.DEPTH", _WIDTH, "HEAD.PARAMS"):
        found, expected = _value(resolved, key), _value(composed, key)
        if expected is None and key == _WIDTH:  # as VISSL leaves it
            expected = 1
        if None not in (found, expected) and not _fits(found, expected):
            yield f"config.MODEL.{key}={found}"


def _fits(found: Any, expected: Any) -> bool:
    """Whether they are the same, but for what the config leaves to be chosen."""
    if expected == AUTO:
        return True
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_fits, found, expected))
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        same = found.keys() == expected.keys()
        return same and all(_fits(found[key], expected[key]) for key in found)
    return found == expected


def _value(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key of the model; None where there is none."""
    value: Any = config.get("MODEL")
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
