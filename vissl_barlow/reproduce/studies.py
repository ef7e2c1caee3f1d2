"""Sections 4 and 5 as studies: tables 5 to 7, figures 2 to 5, and section 5's objectives side by side.

A study is a file of `configs/studies`: a title and the experiments, each a config with overrides. On
ImageNet an experiment is pretraining, then the linear evaluation of Table 1; on the digits it is the
same overlay on `digits_quickstart`, with every width of the heads divided by 16, and its result is the
probe at the end; on one's own images it is the same on `own_images`. The three never share a
table.

A study states the global batch. How many processes share it follows from the hardware: each gets its
part (`batch.share_of`).

    rows            name, config, overrides, `heads`; `digits`: more overrides there, or false (which
                    own images, having colours, pass by); on own images the digits' values are taken
    series, best_of axes: `values` (a list, or label to value), `baseline`: the one without an override,
                    `overrides` with {} for the value, or {0}, {1} for those of a list; or
                    `global_batch: true`: the value is the batch
    series          `by_name: true`: run only where it is asked for by its name
    best_of         the best of its values counts; `chosen`: a point's own value, of which alone it is
                    run unless the whole grid is asked for
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from vissl_barlow.paths import config_folder
from vissl_barlow.reproduce.batch import global_batch, share_of
from vissl_barlow.reproduce.overrides import PRETRAIN_GROUP, compose_config, leaves, override
from vissl_barlow.reproduce.results import ACCURACY, PROBE, reported
from vissl_barlow.reproduce.settings import BATCH, is_irrelevant
from vissl_barlow.reproduce.transfer import OWN

IMAGENET, DIGITS = "imagenet", "digits"  # and OWN
BASE, DIGITS_BASE, OWN_BASE = "resnet50_in1k_300ep", "digits_quickstart", "own_images"
BASES = {IMAGENET: BASE, DIGITS: DIGITS_BASE, OWN: OWN_BASE}
LINEAR_EVALUATION = "benchmark/vissl_barlow/imagenet1k_linear"
# The digits' widths are the paper's divided by this, so that every overlay keeps its proportions.
DIGITS_SHRINK = 16
DIGITS_EPOCHS = 20
# File systems take 255 bytes; a longer name of a run's folder ends in a digest instead.
LONGEST_NAME = 200

# Overrides that a folder's name tells from all others: of one word or number, 1e-6 among them.
_KEPT_BY_SLUG = re.compile(r"[\w.]+=[\w.]+(-\d+)?")


@dataclass(frozen=True)
class Experiment:
    """One point of a study.

    Attributes:
        series, name: the curve or table it belongs to, and its row.
        config: below `pretrain/vissl_barlow`.
        overrides: hydra's, on top of the config.
        tried: value of the study's `best_of`, of which the best counts; "" without one.
        paper: what the paper reports on ImageNet, by figure, in %.
        batch: the global batch, where it is not the config's.
        optional: a value of the grid that is run only where the whole grid is asked for.
        by_name: its series is run only where it is asked for by its name.
    """

    series: str
    name: str
    config: str
    overrides: tuple[str, ...] = ()
    tried: str = ""
    paper: dict[str, float] = field(default_factory=dict)
    batch: int | None = None
    optional: bool = False
    by_name: bool = False

    @property
    def title(self) -> str:
        """What to call it on the console."""
        return " ".join(filter(None, (self.series, self.name, self.tried and f"({self.tried})")))

    @property
    def folder(self) -> str:
        """A folder name; experiments that are one and the same, in several studies, share it."""
        changes = [each.split("=") for each in self.overrides]
        # The last two parts of a key tell it from its neighbours.
        short = [".".join(key.split(".")[-2:]) + "-" + value for key, value in changes]
        batch = [] if self.batch is None else [f"global_batch-{self.batch}"]
        return slug("-".join([self.config, *batch, *short]))


@dataclass(frozen=True)
class Study:
    """A title, the experiments, a figure's label of its first axis, what `tried` is a value of, and the
    keys of the axes that are run without being named, `config.` in front."""

    title: str
    experiments: tuple[Experiment, ...]
    x_label: str
    best_of: str
    axes: frozenset[str]


def folder_name(name: str, overrides: Sequence[str]) -> str:
    """`name` and the user's overrides as a folder's name, no two alike: else the results of one would
    pass for the other's."""
    text = "-".join([name, *overrides])
    if all(map(_KEPT_BY_SLUG.fullmatch, overrides)):
        return slug(text)
    # Signs, brackets and commas are lost in a slug.
    return slug(f"{text}-{hashlib.sha256(text.encode()).hexdigest()[:8]}")


def slug(text: str) -> str:
    """`text` as a folder's name, of `LONGEST_NAME` characters at most."""
    name = re.sub(r"[^\w.]+", "-", text).strip("-")
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name[: LONGEST_NAME - 13]}-{digest}"


def _folder() -> Path:
    return config_folder("configs") / "studies"


def study_names() -> list[str]:
    """The studies there are, by name."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_study(name: str, data: str) -> Study:
    """A study, with its experiments on `data`, IMAGENET, DIGITS or OWN.

    Raises:
        ValueError: no study of that name.
    """
    if name not in study_names():
        raise ValueError(f"{name} is no study; there are {', '.join(study_names())}")
    content = yaml.safe_load((_folder() / f"{name}.yaml").read_text())
    paper = reported(name)["rows"]
    best_of = content.get("best_of")
    experiments = tuple(
        replace(each, overrides=(*each.overrides, *more), tried=tried, optional=optional)
        if best_of
        else each
        for each in _experiments(content, data, paper)
        for tried, more, optional in _tried(best_of, each.name, data)
    )
    series = [each for each in content.get("series", ()) if not each.get("by_name")]
    axes = [*series, *([best_of] if best_of else [])]
    keys = {key for axis in axes for key in _keys(axis)}
    return Study(
        content["title"],
        experiments,
        content.get("x_label", ""),
        best_of["name"] if best_of else "",
        frozenset(keys),
    )


def _keys(axis: dict[str, Any]) -> list[str]:
    """What an axis sets."""
    if axis.get("global_batch"):
        return [BATCH]
    return [template.partition("=")[0] for template in axis["overrides"]]


def _experiments(
    study: dict[str, Any], data: str, paper: dict[str, dict[str, float]]
) -> Iterator[Experiment]:
    """A study's rows, or its series' points."""
    for series in study.get("series", ()):
        for point, overrides, batch in _points(series, data):
            reference = paper.get(point, {})
            yield Experiment(
                series["name"],
                point,
                study["config"],
                overrides,
                paper=reference,
                batch=batch,
                by_name=series.get("by_name", False),
            )
    for row in study.get("rows", ()):
        on_digits = row.get("digits", [])  # more overrides, or False: not on the digits
        if data != DIGITS or on_digits is not False:
            overrides = _head_overrides(row, data) + row.get("overrides", [])
            overrides += on_digits if data != IMAGENET and on_digits else []
            reference = paper.get(row["name"], {})
            yield Experiment("", row["name"], row["config"], tuple(overrides), paper=reference)


def _points(axis: dict[str, Any], data: str) -> Iterator[tuple[str, tuple[str, ...], int | None]]:
    """Label, overrides and global batch of each value of an axis; the baseline's value takes no
    override."""
    if data != IMAGENET:
        axis = axis | axis["digits"]
    values = axis["values"]
    for label, value in (values if isinstance(values, dict) else dict(zip(values, values))).items():
        if axis.get("global_batch"):
            yield str(label), (), value if label != axis["baseline"] else None
            continue
        templates = axis["overrides"] if label != axis["baseline"] else []
        words = value if isinstance(value, list) else [value]
        yield str(label), tuple(template.format(*words) for template in templates), None


def _tried(
    best_of: dict[str, Any] | None, point: str, data: str
) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Each value of the grid: label, overrides, and whether it is not the one chosen for the point."""
    if best_of is None:
        yield "", (), False
        return
    chosen = {} if data != IMAGENET else best_of.get("chosen", {})
    for label, overrides, _ in _points(best_of, data):
        yield label, overrides, str(chosen.get(int(point), label)) != label


def _head_overrides(row: dict[str, Any], data: str) -> list[str]:
    """Overrides for a row's `heads`: the widths of the projector's and of the predictor's layers."""
    if "heads" not in row:
        return []
    shrink = DIGITS_SHRINK if data != IMAGENET else 1
    projector, predictor = ([_shrunk(width, shrink) for width in head] for head in row["heads"])
    return [
        override("MODEL.HEAD.PARAMS.0.1.dims", projector),
        override("MODEL.HEAD.PARAMS.1.1.in_dim", projector[-1]),
        override("MODEL.HEAD.PARAMS.1.1.dims", predictor),
    ]


def _shrunk(width: int, shrink: int = DIGITS_SHRINK) -> int:
    return max(2, width // shrink)


def pretraining(
    experiment: Experiment, data: str, folder: Path, seed: int = 0, more: Sequence[str] = ()
) -> list[str]:
    """Hydra's overrides for the experiment's pretraining, with its checkpoints in `folder`.

    Args:
        more: the user's own; the processes that they ask for share the experiment's global batch.

    Raises:
        ValueError: the processes do not divide the global batch.
    """
    config = f"{PRETRAIN_GROUP}/{experiment.config}"
    own, batch = [f"config={config}"], experiment.batch
    if data != IMAGENET:
        own = _in_miniature(experiment.config, data)
        config = own[0].removeprefix("config=")
        batch = batch or global_batch(f"{PRETRAIN_GROUP}/{DIGITS_BASE}")
    try:
        share = share_of(batch, config, [*own[1:], *experiment.overrides, *more])
    except ValueError as error:
        raise ValueError(f"{experiment.title}: {error}") from error
    return [
        *own,
        *experiment.overrides,
        *share,
        override("SEED_VALUE", seed),
        override("CHECKPOINT.DIR", str(folder)),
        *more,
    ]


def swept_keys(study: Study, chosen: Sequence[Experiment]) -> set[str]:
    """The keys, `config.` in front, that make the `chosen` experiments what they are.

    They are those of the study's axes, of the experiments' own overrides, and those in which their
    configs differ from that of the study's first.
    """
    keys = {word.partition("=")[0].lstrip("+~") for each in chosen for word in each.overrides}
    first = _leaves(study.experiments[0].config)
    for config in {each.config for each in chosen}:
        leaves = _leaves(config)
        keys |= {key for key, value in leaves.items() if key in first and value != first[key]}
    return {key for key in keys | study.axes if key == BATCH or not is_irrelevant(key)}


def _leaves(config: str) -> dict[str, Any]:
    """The values of a shipped config by key, `config.` in front; lists are values."""
    composed: Any = OmegaConf.to_container(compose_config(f"{PRETRAIN_GROUP}/{config}"))
    return dict(leaves(composed, "config"))


def linear_evaluation(folder: Path) -> list[str]:
    """Hydra's overrides for the linear evaluation of the pretraining in `folder`."""
    return [
        f"config={LINEAR_EVALUATION}",
        override("MODEL.WEIGHTS_INIT.PARAMS_FILE", str(folder / "checkpoint.torch")),
        override("CHECKPOINT.DIR", str(folder / "linear")),
    ]


def read_result(folder: Path, data: str) -> dict[str, float]:
    """What an experiment in `folder` came to, in %, by figure; empty until it has come to its end.

    On ImageNet: the linear evaluation's accuracies. Else: the probe's.
    """
    return ACCURACY.read(folder / "linear") if data == IMAGENET else PROBE.read(folder)


def _in_miniature(config: str, data: str) -> list[str]:
    """Overrides that put an overlay of the ImageNet baseline on the config of `data` instead."""
    overlay, base, small = (
        compose_config(f"{PRETRAIN_GROUP}/{name}") for name in (config, BASE, BASES[data])
    )
    loss_key = f"LOSS.{overlay.LOSS.name}"
    loss = overlay.LOSS[overlay.LOSS.name]
    common = [
        override("OPTIMIZER.num_epochs", DIGITS_EPOCHS),
        override("BARLOW.PROBE.EVERY_EPOCHS", 0),
        # The learning rates, and that of the biases above all, go with this scale.
        override(f"{loss_key}.reference_world_size", loss.reference_world_size),
    ]
    heads = overlay.MODEL.HEAD.PARAMS
    if data == OWN:  # else as many as the machine has, and dimensions that follow from the trunk's
        common.append(override("DISTRIBUTED.NUM_PROC_PER_NODE", 1))
        if heads == base.MODEL.HEAD.PARAMS:
            dims = [_shrunk(width) for width in heads[0][1].dims]
            common.append(override("MODEL.HEAD.PARAMS.0.1.dims", dims))
    if config == BASE:
        return [f"config={PRETRAIN_GROUP}/{BASES[data]}", *common]
    overrides = [
        f"config={PRETRAIN_GROUP}/{config}",
        f"config/{PRETRAIN_GROUP}={BASES[data]}",
        *common,
    ]
    if heads != base.MODEL.HEAD.PARAMS:
        in_dim = small.MODEL.HEAD.PARAMS[0][1].in_dim
        shrunk = []
        for head, options in heads:
            dims = [_shrunk(width) for width in options.dims]
            shrunk.append([head, {**options, "in_dim": in_dim, "dims": dims}])
            in_dim = dims[-1]
        overrides.append(override("MODEL.HEAD.PARAMS", shrunk))
    if "sub_batch_size" in loss:
        size = loss.sub_batch_size // DIGITS_SHRINK
        overrides.append(override(f"{loss_key}.sub_batch_size", size))
    return overrides
