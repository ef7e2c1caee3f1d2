"""The plugin's own keys, `config.BARLOW`: name, type, range, default and meaning, each stated once.

Everything else about a key is made from here: the YAML group that the shipped configs list
(`configs/config/vissl_barlow/settings.yaml`), the table in docs/pretraining.md, the defaults of configs
that leave a key out, and the refusal of unknown keys and of values out of range. Tests hold the first
two; `python -m vissl_barlow.vissl_plugin.settings yaml` and `... table` print them.
"""

import argparse
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

from vissl_barlow.chunked import BATCH_NORM_MODES

# Keys of the section that the plugin itself writes, where a run starts.
WRITTEN = ("COMMAND", "DERIVED")


def _key(default: Any, meaning: str, **limits: Any) -> Any:
    """A key: its default, its meaning, and limits out of `at_least`, `above` and `choices`."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, **limits})


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """`config.BARLOW.PROBE`."""

    KIND: str = _key(
        "",
        "`linear` or `knn`: probe the frozen trunk on DATA.TEST against the untrained one and pixels",
        choices=("none", "linear", "knn"),
    )
    EVERY_EPOCHS: int = _key(0, "how often; 0: when training ends", at_least=0)
    WHILE_TRAINING: str = _key(
        "same",
        "the probe before training ends: `linear`, `knn` or the same",
        choices=("same", "linear", "knn"),
    )
    IMAGES: int = _key(
        50_000,
        "labelled images of each split that it is fitted to and tested on, at most",
        at_least=1,
    )
    NEIGHBOURS: int = _key(5, "how many neighbours vote in the `knn` probe", at_least=1)
    CORRELATION_IMAGES: int = _key(
        1024, "images whose two views give the matrices C of the probe's picture", at_least=2
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """`config.BARLOW`."""

    CHECK_IMAGES: int = _key(
        1000, "images decoded before training starts, at random; -1 all, 0 none", at_least=-1
    )
    MAX_CONSECUTIVE_UNREADABLE: int = _key(
        100, "unreadable images in a row after which training gives up", at_least=1
    )
    KEEP_CHECKPOINTS: int = _key(
        2, "the newest kept after epochs, and the newest after iterations; 0 all", at_least=0
    )
    KEEP_EVERY_EPOCHS: int = _key(
        100, "and for good the one after each 100th epoch; 0 none", at_least=0
    )
    EXTEND: bool = _key(
        False,
        "train what is in the folder for more epochs: `OPTIMIZER.num_epochs` may grow, nothing else "
        "of the experiment may change",
    )
    TIMEOUT_MINUTES: float = _key(
        10, "a process that does not answer for so long ends the run", above=0
    )
    GRACE_SECONDS: float = _key(
        10,
        "what the other processes get to end by themselves when one is gone, and once more "
        "before they are killed",
        above=0,
    )
    SLURM_TIME_LIMITS: int = _key(
        100,
        "how often a job that met its time limit is submitted anew (submitit's `max_num_timeout`)",
        at_least=0,
    )
    WEIGHTS_TRUNK: str = _key(
        "",
        "which trunk of `MODEL.WEIGHTS_INIT.PARAMS_FILE`, where it holds several: its names' prefix "
        "or words of it, such as encoder_k or student; empty: the one its authors evaluate",
    )
    AMP_DTYPE: str = _key(
        "float16",
        "precision under `MODEL.AMP_PARAMS.USE_AMP`: float16 with loss scaling, bfloat16 without",
        choices=("float16", "bfloat16"),
    )
    CHANNELS_LAST: bool = _key(True, "memory format of the trunk")
    COMPILE: bool = _key(False, "`torch.compile` on trunk and projector")
    CHUNK_SIZE: int = _key(
        0,
        "images of each view that a process holds activations of at a time, in the same step "
        "(docs/one-gpu.md); 0: all at once",
        at_least=0,
    )
    CHUNK_BATCH_NORM: str = _key(
        "per_piece",
        "batch statistics of a step in pieces: `per_piece`, each piece's; `exact`, the view's, as "
        "without pieces; `per_view`, the view's, the two views being the pieces, with `CHUNK_SIZE` 0",
        choices=BATCH_NORM_MODES,
    )
    RANKED_IMAGES: int = _key(
        512, "images that enter the effective ranks at each log step", at_least=2
    )
    COLLAPSED_STD: float = _key(
        1e-4, "embeddings with a smaller mean standard deviation are called constant", at_least=0
    )
    COLLAPSED_RANK: float = _key(
        1.5, "embeddings of a smaller effective rank are called a line", at_least=0
    )
    WANDB_PROJECT: str = _key(
        "", "mirror the numbers and pictures to this project at Weights & Biases; empty: do not"
    )
    MAP_IMAGES: int = _key(
        0,
        "training images in the map of representations and their neighbours, `barlow_map.png`, that "
        "is drawn when training ends; 0: none",
        at_least=0,
    )
    PROBE: ProbeSettings = dataclasses.field(default_factory=ProbeSettings)


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the section; `name` is dotted where the key is in a section of its own."""

    name: str
    type: type
    default: Any
    meaning: str
    at_least: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """What is wrong with `value`, as the remedy: "set ..."; None if nothing is."""
        if self.choices:
            fits = value == self.default or value in self.choices
            return None if fits else f"set {' or '.join(self.choices)}"
        if self.type is str:
            return None if isinstance(value, str) else "set a text"
        if self.type is bool:
            return None if isinstance(value, bool) else "set true or false"
        accepted = (int, float) if self.type is float else int
        limit = "" if self.at_least is None else f" of at least {self.at_least}"
        limit = limit if self.above is None else f" above {self.above}"
        if (
            isinstance(value, bool)
            or not isinstance(value, accepted)
            or not math.isfinite(value)
            or (self.at_least is not None and value < self.at_least)
            or (self.above is not None and value <= self.above)
        ):
            return f"set a {'' if self.type is float else 'whole '}number{limit}"
        return None

    @property
    def default_text(self) -> str:
        """The default as a user may write it."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return str(self.default) or next(iter(self.choices), '""')


def all_keys(schema: Any = None, prefix: str = "") -> Iterator[Key]:
    """Every key of the section, by its dotted name, in the order of the schema."""
    for field in dataclasses.fields(schema or Settings):
        if dataclasses.is_dataclass(field.type):
            yield from all_keys(field.type, f"{prefix}{field.name}.")
        else:
            assert isinstance(field.type, type)
            yield Key(prefix + field.name, field.type, field.default, **field.metadata)


def complete(section: dict) -> None:
    """Gives the keys that `section`, a config's `BARLOW`, leaves out their defaults, in place.

    A probe of kind "none" or null becomes "", as all code knows it. What is wrong is left as it is.
    """
    for key in all_keys():
        parent, _, name = key.name.rpartition(".")
        inner = section.setdefault(parent, type(section)({})) if parent else section
        if isinstance(inner, dict):
            inner.setdefault(name, key.default)
    probe = section["PROBE"]
    if isinstance(probe, dict) and probe["KIND"] in ("none", None):
        probe["KIND"] = ""


def keyword_defaults(function: Callable) -> dict[str, Any]:
    """The keyword-only arguments of a function or class of the core, which are a section's keys."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def table() -> str:
    """The keys as docs/pretraining.md shows them."""
    rows = [f"| `{key.name}` | {key.default_text} | {key.meaning} |" for key in all_keys()]
    return "\n".join(["| `config.BARLOW.` | default | meaning |", "| --- | --- | --- |", *rows, ""])


def yaml() -> str:
    """The keys as the YAML group that the shipped configs list."""
    lines = [
        "# @package _global_",
        "# Every key of the plugin's own, with its default. Generated from vissl_plugin/settings.py.",
        "config:",
        "  BARLOW:",
    ]
    for key in all_keys():
        parent, _, name = key.name.rpartition(".")
        if parent and f"    {parent}:" not in lines:
            lines.append(f"    {parent}:")
        indent = "      " if parent else "    "
        default = key.default if key.default != "" else '""'
        lines.append(f"{indent}# {key.meaning}")
        lines.append(f"{indent}{name}: {default}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prints the plugin's keys.")
    parser.add_argument("form", choices=("yaml", "table"))
    print({"yaml": yaml, "table": table}[parser.parse_args().form](), end="")
