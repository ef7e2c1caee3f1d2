"""Sections 4 and 5 as studies: tables 5 to 7, figures 2 to 5, and section 5's objectives side by side.

A study is a file of `configs/studies`: a title and the experiments, each a config with overrides. Here
it becomes the commands of VISSL's runner; `report` makes the table or the figure of their results. On
ImageNet an experiment is pretraining, then the linear evaluation of Table 1; on the digits it is the
same overlay on `digits_quickstart`, with every width of the heads divided by 16, and its result is the
probe at the end. The two never share a table.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir

from vissl_barlow.paths import config_folder
from vissl_barlow.reproduce.execute import execute, run_again
from vissl_barlow.reproduce.results import is_finished, read_accuracy, read_probe, reported

GROUP = "pretrain/vissl_barlow"
BASE, DIGITS_BASE = "resnet50_in1k_300ep", "digits_quickstart"
LINEAR_EVALUATION = "benchmark/vissl_barlow/imagenet1k_linear"
# The digits' widths are the paper's divided by this, so that every overlay keeps its proportions.
DIGITS_SHRINK = 16
DIGITS_EPOCHS = 20
# File systems take 255 bytes; a longer name of a run's folder ends in a digest instead.
LONGEST_NAME = 200
RUNNER = (sys.executable, "-m", "tools.run_distributed_engines")


def study_names() -> list[str]:
    """The studies there are, by name."""
    return sorted(path.stem for path in _studies().glob("*.yaml"))


@dataclass(frozen=True)
class Experiment:
    """One point of a study.

    Attributes:
        series, name: the curve or table it belongs to, and its row.
        config: below `pretrain/vissl_barlow`.
        overrides: hydra's, on top of the config.
        tried: value of the study's `best_of`, of which the best counts; None without one.
        paper: what the paper reports on ImageNet, by figure, in %.
    """

    series: str
    name: str
    config: str
    overrides: tuple[str, ...] = ()
    tried: str | None = None
    paper: tuple[tuple[str, float], ...] = ()

    @property
    def folder(self) -> str:
        """A folder name; experiments that are one and the same, in several studies, share it."""
        changes = [override.split("=") for override in self.overrides]
        # The last two parts of a key tell it from its neighbours.
        short = [".".join(key.split(".")[-2:]) + "-" + value for key, value in changes]
        return _slug("-".join([self.config, *short]))


def _slug(text: str) -> str:
    slug = re.sub(r"[^\w.]+", "-", text).strip("-")
    if len(slug) <= LONGEST_NAME:
        return slug
    digest = hashlib.sha256(slug.encode()).hexdigest()[:12]
    return f"{slug[: LONGEST_NAME - 13]}-{digest}"


def load_study(name: str, data: str) -> tuple[dict, list[Experiment]]:
    """The study's file and its experiments on `data`, "imagenet" or "digits".

    Raises:
        ValueError: no study of that name.
    """
    if name not in study_names():
        raise ValueError(f"{name} is no study; there are {', '.join(study_names())}")
    study = yaml.safe_load((_studies() / f"{name}.yaml").read_text())
    papers = {row: tuple(figures.items()) for row, figures in reported(name)["rows"].items()}
    if "rows" in study:
        return study, list(_rows(study, data, papers))
    return study, [
        Experiment(
            series["name"],
            label,
            study["config"],
            overrides + tried_overrides,
            tried if "best_of" in study else None,
            papers.get(label, ()),
        )
        for series in study["series"]
        for label, overrides in _points(series, data)
        for tried, tried_overrides in _points(study.get("best_of"), data)
    ]


def _studies() -> Path:
    return config_folder("configs") / "studies"


def _rows(study: dict, data: str, papers: dict[str, tuple]) -> Iterator[Experiment]:
    for row in study["rows"]:
        on_digits = row.get("digits", [])
        if data == "digits" and on_digits is False:
            continue
        overrides = [*_head_overrides(row, data), *row.get("overrides", [])]
        if data == "digits":
            overrides += on_digits
        paper = papers.get(row["name"], ())
        yield Experiment("", row["name"], row["config"], tuple(overrides), paper=paper)


def _points(axis: dict | None, data: str) -> list[tuple[str, tuple[str, ...]]]:
    """(label, overrides) of each value of an axis; the baseline's value takes no override."""
    if axis is None:
        return [("", ())]
    if data == "digits":
        axis = axis | axis["digits"]
    values = axis["values"]
    values = values if isinstance(values, dict) else dict(zip(values, values))
    return [
        (
            str(label),
            ()
            if label == axis["baseline"]
            else tuple(template.format(value) for template in axis["overrides"]),
        )
        for label, value in values.items()
    ]


def _head_overrides(row: dict, data: str) -> list[str]:
    """Overrides for a row's `heads`: the widths of the projector's and of the predictor's layers."""
    if "heads" not in row:
        return []
    projector, predictor = (
        [_shrunk(width) for width in widths] if data == "digits" else widths
        for widths in row["heads"]
    )
    loss = compose_config(f"{GROUP}/{row['config']}").LOSS.name
    return [
        f"config.MODEL.HEAD.PARAMS.0.1.dims={_text(projector)}",
        f"config.MODEL.HEAD.PARAMS.1.1.in_dim={projector[-1]}",
        f"config.MODEL.HEAD.PARAMS.1.1.dims={_text(predictor)}",
        f"config.LOSS.{loss}.embedding_dim={projector[-1]}",
    ]


def pretraining(experiment: Experiment, data: str, folder: Path, seed: int = 0) -> list[str]:
    """Hydra's overrides for the experiment's pretraining, with its checkpoints in `folder`."""
    base = [f"config={GROUP}/{experiment.config}"]
    if data == "digits":
        base = _on_digits(experiment.config)
    return [
        *base,
        *experiment.overrides,
        f"config.SEED_VALUE={seed}",
        f"config.CHECKPOINT.DIR={_text(str(folder))}",
    ]


def linear_evaluation(folder: Path) -> list[str]:
    """Hydra's overrides for the linear evaluation of the pretraining in `folder`."""
    return [
        f"config={LINEAR_EVALUATION}",
        f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={_text(str(folder / 'checkpoint.torch'))}",
        f"config.CHECKPOINT.DIR={_text(str(folder / 'linear'))}",
    ]


@functools.cache
def compose_config(name: str, overrides: tuple[str, ...] = ()):
    """The section `config` of a shipped config, composed by hydra; `name` as after `config=`.

    Raises:
        hydra.errors.HydraException: there is none, or an override does not fit it.
    """
    folder = config_folder("configs" if name.startswith(GROUP) else "benchmark_configs")
    with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
        # A choice of the group `config`, as on VISSL's command line: other groups are then absolute.
        return compose(overrides=[f"+config={name}", *overrides]).config


def _shrunk(width: int) -> int:
    return max(2, width // DIGITS_SHRINK)


def _text(value) -> str:
    """A value as hydra's command line takes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value):
        return "'" + value.replace("'", r"\'") + "'"
    return str(value)


def _on_digits(config: str) -> list[str]:
    """Overrides that put an overlay of the ImageNet baseline on the digits' config instead."""
    overlay, base, digits = (
        compose_config(f"{GROUP}/{name}") for name in (config, BASE, DIGITS_BASE)
    )
    name = overlay.LOSS.name
    loss = overlay.LOSS[name]
    common = [
        f"config.OPTIMIZER.num_epochs={DIGITS_EPOCHS}",
        "config.BARLOW.PROBE.EVERY_EPOCHS=0",
        # The learning rates, and that of the biases above all, go with this scale.
        f"config.LOSS.{name}.reference_world_size={loss.reference_world_size}",
    ]
    if config == BASE:
        return [f"config={GROUP}/{DIGITS_BASE}", *common]
    overrides = [
        f"config={GROUP}/{config}",
        f"config/{GROUP}={DIGITS_BASE}",
        f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={digits.DATA.TRAIN.BATCHSIZE_PER_REPLICA}",
        *common,
    ]
    heads = overlay.MODEL.HEAD.PARAMS
    if heads != base.MODEL.HEAD.PARAMS:
        in_dim = digits.MODEL.HEAD.PARAMS[0][1].in_dim
        shrunk = []
        for head, options in heads:
            dims = [_shrunk(width) for width in options.dims]
            shrunk.append([head, {**options, "in_dim": in_dim, "dims": dims}])
            in_dim = dims[-1]
        overrides.append(f"config.MODEL.HEAD.PARAMS={_text(shrunk)}")
    overrides.append(f"config.LOSS.{name}.embedding_dim={_shrunk(loss.embedding_dim)}")
    if "sub_batch_size" in loss:
        sub_batch = loss.sub_batch_size // DIGITS_SHRINK
        overrides.append(f"config.LOSS.{name}.sub_batch_size={sub_batch}")
    return overrides


def read_result(folder: Path, data: str) -> dict[str, float] | None:
    """What an experiment in `folder` came to, in %, by figure; None while it has not.

    On the digits: the probe's accuracies. On ImageNet: the linear evaluation's.
    """
    if data == "digits":
        return read_probe(folder)
    return read_accuracy(folder / "linear" / "metrics.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a study's command line."""
    parser.add_argument("--data", choices=("imagenet", "digits"), default="imagenet")
    parser.add_argument("--out", type=Path, default=Path("report"), help="default: %(default)s")
    parser.add_argument(
        "--imagenet",
        type=Path,
        help="folder with train and val; default: VISSL's dataset catalogue",
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs per experiment, averaged")
    parser.add_argument("--only", default="", help="experiments whose name contains this")
    parser.add_argument(
        "--linear",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one of hydra's overrides for every linear evaluation (repeat it)",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--list", action="store_true", help="show experiments and results, run nothing"
    )
    mode.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--slurm", action="store_true", help="submit to SLURM by VISSL's launcher")
    parser.add_argument(
        "overrides", nargs="*", help="more of hydra's overrides, for every pretraining"
    )


def run(name: str, options: argparse.Namespace) -> int:
    """Runs what is missing of study `name`; returns the exit status.

    What is finished is not run again; what was interrupted resumes from its newest checkpoint.
    """
    _, experiments = load_study(name, options.data)
    chosen = [e for e in experiments if options.only.lower() in f"{e.series} {e.name}".lower()]
    if not chosen:
        names = ", ".join(e.name for e in experiments)
        raise ValueError(f"--only {options.only} matches none of {names}")
    failed = 0
    if not options.list:
        for experiment in chosen:
            for seed in range(options.seeds):
                failed += not _run_one(experiment, seed, options)
    return min(failed, 1)


def _folder(experiment: Experiment, seed: int, options: argparse.Namespace) -> Path:
    # Runs with more overrides are others: they must not pass for the study's own.
    name = _slug("-".join([experiment.folder, *options.overrides, *options.linear]))
    return options.out.resolve() / options.data / "runs" / name / f"seed{seed}"


def _run_one(experiment: Experiment, seed: int, options: argparse.Namespace) -> bool:
    """Runs, submits or prints what is left of one experiment; whether nothing failed."""
    folder = _folder(experiment, seed, options)
    if read_result(folder, options.data) is not None:
        return True
    stages = []
    on_imagenet = options.data == "imagenet"
    train, val = [], []
    if on_imagenet and options.imagenet:
        train.append(f"config.DATA.TRAIN.DATA_PATHS={_text([str(options.imagenet / 'train')])}")
        val.append(f"config.DATA.TEST.DATA_PATHS={_text([str(options.imagenet / 'val')])}")
    if not (on_imagenet and is_finished(folder)):
        overrides = pretraining(experiment, options.data, folder, seed)
        overrides += [*train, *options.overrides, *run_again(folder)]
        stages.append(("pretraining", overrides))
    if on_imagenet:
        # Both stages are jobs of one cluster.
        slurm = [override for override in options.overrides if override.startswith("config.SLURM.")]
        overrides = [*linear_evaluation(folder), *train, *val, *slurm, *options.linear]
        stages.append(("linear evaluation", [*overrides, *run_again(folder / "linear")]))
    tried = experiment.tried and f"({experiment.tried})"
    title = " ".join(filter(None, (experiment.series, experiment.name, tried)))
    for stage, overrides in stages:
        overrides += ["config.SLURM.USE_SLURM=true"] if options.slurm else []
        if options.dry_run:
            print(shlex.join(["python", *RUNNER[1:], *overrides]))
            continue
        log = folder / f"{stage.split()[0]}.log"
        if not execute(f"{title}, seed {seed}: {stage}", [*RUNNER, *overrides], log):
            return False
        if options.slurm:
            break  # the evaluation wants the checkpoint: run the same command again for it
    return True
