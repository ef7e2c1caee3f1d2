"""Sections 4 and 5 as studies: tables 5 to 7, figures 2 to 5, and section 5's objectives side by side.

A study is a file of `configs/studies`: a title and the experiments, each a config with overrides. Here
it becomes the commands of VISSL's runner, and their results become a table and, for a figure, a
picture. On ImageNet an experiment is pretraining, then the linear evaluation of Table 1; on the digits
it is the same overlay on `digits_quickstart`, with every width of the heads divided by 16, and its
result is the probe at the end. The two never share a table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from vissl_barlow.figures import draw_accuracies
from vissl_barlow.paths import config_folder
from vissl_barlow.reproduce.results import read_accuracy, reported

GROUP = "config/pretrain/vissl_barlow"
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
    papers = {row: tuple(figures.items()) for row, figures in reported(name).items()}
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
    loss = _compose(row["config"]).LOSS.name
    return [
        f"config.MODEL.HEAD.PARAMS.0.1.dims={_text(projector)}",
        f"config.MODEL.HEAD.PARAMS.1.1.in_dim={projector[-1]}",
        f"config.MODEL.HEAD.PARAMS.1.1.dims={_text(predictor)}",
        f"config.LOSS.{loss}.embedding_dim={projector[-1]}",
    ]


def pretraining(experiment: Experiment, data: str, folder: Path, seed: int = 0) -> list[str]:
    """Hydra's overrides for the experiment's pretraining, with its checkpoints in `folder`."""
    base = [f"config=pretrain/vissl_barlow/{experiment.config}"]
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


def _compose(config: str):
    with initialize_config_dir(str(config_folder("configs").resolve()), version_base="1.3"):
        return compose(f"{GROUP}/{config}").config


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
    overlay, base, digits = (_compose(name) for name in (config, BASE, DIGITS_BASE))
    name = overlay.LOSS.name
    loss = overlay.LOSS[name]
    common = [
        f"config.OPTIMIZER.num_epochs={DIGITS_EPOCHS}",
        "config.BARLOW.PROBE.EVERY_EPOCHS=0",
        # The learning rates, and that of the biases above all, go with this scale.
        f"config.LOSS.{name}.reference_world_size={loss.reference_world_size}",
    ]
    if config == BASE:
        return [f"config=pretrain/vissl_barlow/{DIGITS_BASE}", *common]
    overrides = [
        f"config=pretrain/vissl_barlow/{config}",
        f"{GROUP}={DIGITS_BASE}",
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


def _finished(folder: Path) -> bool:
    """Whether VISSL's training in `folder` came to its end."""
    return any(folder.glob("model_final_checkpoint_phase*.torch"))


def read_result(folder: Path, data: str) -> tuple[float, ...] | None:
    """What an experiment in `folder` came to, in %; None while it has not.

    On the digits: probe accuracy of the pretrained and of the untrained trunk. On ImageNet: top-1 and
    top-5 of the linear evaluation.
    """
    if data == "digits":
        path = folder / "barlow_probe.json"
        accuracies = json.loads(path.read_text()) if path.exists() else {}
        if "pretrained trunk" not in accuracies:
            return None
        return tuple(100 * accuracies[f"{state} trunk"] for state in ("pretrained", "untrained"))
    accuracies = read_accuracy(folder / "linear" / "metrics.json")
    return accuracies and (accuracies["top-1"], accuracies["top-5"])


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
    """Runs what is missing of study `name`, then writes its table and figure; returns exit status.

    What is finished is not run again; what was interrupted resumes from its newest checkpoint.
    """
    study, experiments = load_study(name, options.data)
    chosen = [e for e in experiments if options.only.lower() in f"{e.series} {e.name}".lower()]
    if not chosen:
        names = ", ".join(e.name for e in experiments)
        raise ValueError(f"--only {options.only} matches none of {names}")
    failed = 0
    if not options.list:
        for experiment in chosen:
            for seed in range(options.seeds):
                failed += not _run_one(experiment, seed, options)
    if options.dry_run:
        return 0
    report(name, study, experiments, options)
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
    if not (on_imagenet and _finished(folder)):
        overrides = pretraining(experiment, options.data, folder, seed)
        # Trained to the end but not probed to the end: the last epoch is run again.
        again = ["config.CHECKPOINT.OVERWRITE_EXISTING=true"] if _finished(folder) else []
        stages.append(("pretraining", [*overrides, *train, *options.overrides, *again]))
    if on_imagenet:
        linear = folder / "linear"
        again = ["config.CHECKPOINT.OVERWRITE_EXISTING=true"] if _finished(linear) else []
        # Both stages are jobs of one cluster.
        slurm = [override for override in options.overrides if override.startswith("config.SLURM.")]
        overrides = [*linear_evaluation(folder), *train, *val, *slurm, *options.linear, *again]
        stages.append(("linear evaluation", overrides))
    tried = experiment.tried and f"({experiment.tried})"
    title = " ".join(filter(None, (experiment.series, experiment.name, tried)))
    for stage, overrides in stages:
        overrides += ["config.SLURM.USE_SLURM=true"] if options.slurm else []
        if options.dry_run:
            print(shlex.join(["python", *RUNNER[1:], *overrides]))
            continue
        print(f"{title}, seed {seed}: {stage}, log in {folder}/{stage.split()[0]}.log", flush=True)
        if not _execute(overrides, folder / f"{stage.split()[0]}.log"):
            return False
        if options.slurm:
            break  # the evaluation wants the checkpoint: run the same command again for it
    return True


def _execute(overrides: list[str], log: Path) -> bool:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        done = subprocess.run(
            [*RUNNER, *overrides], stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode != 0:
        lines = log.read_text(errors="replace").splitlines() or [""]
        print(f"  failed with exit status {done.returncode}: {lines[-1]}", file=sys.stderr)
    return done.returncode == 0


def report(
    name: str, study: dict, experiments: list[Experiment], options: argparse.Namespace
) -> None:
    """Prints the study's table and writes it, and the figure of a figure, below `options.out`."""
    folder = options.out / options.data
    folder.mkdir(parents=True, exist_ok=True)
    digits = options.data == "digits"
    where = "digits, NOT ImageNet" if digits else "ImageNet"
    title = f"{study['title']} ({where})"
    if options.overrides:
        title += f", with {' '.join(options.overrides)}"
    if options.linear:
        title += f", evaluated with {' '.join(options.linear)}"
    header = ["experiment", "probe, %" if digits else "top-1 / top-5, %"]
    header.append("untrained trunk, %" if digits else "paper")
    results, rows = {}, []
    for experiment, found in _best(experiments, options).items():
        measured = "-"
        if found:
            means = [statistics.fmean(values) for values in zip(*found)]
            results[experiment] = [values[0] for values in found]
            measured = f"{means[0]:.1f}"
            if len(found) > 1:
                measured += f" ± {statistics.stdev(results[experiment]):.1f}"
            if not digits:
                measured += f" / {means[1]:.1f}"
        other = (f"{means[1]:.1f}" if found else "-") if digits else _paper(experiment)
        label = experiment.name
        if "series" in study:
            label = f"{experiment.series} {label}"
        if found and experiment.tried:
            label += f" ({study['best_of']['name']} {experiment.tried})"
        rows.append([label, measured, other])
    _write_table(folder / f"{name}.md", title, header, rows)
    if results and not name.startswith("table"):
        lines: dict[str, list] = {}
        for experiment, accuracies in results.items():
            lines.setdefault(experiment.series, []).append((experiment.name, accuracies))
        y_label = "linear probe on digits, %" if digits else "ImageNet linear top-1, %"
        draw_accuracies(folder / f"{name}.png", lines, study.get("x_label", ""), y_label, title)


def _best(experiments: list[Experiment], options) -> dict[Experiment, list[tuple[float, ...]]]:
    """Results of each point; among the values of `best_of`, those of the best finished one."""
    best: dict[tuple[str, str], tuple[Experiment, list]] = {}
    for experiment in experiments:
        folders = [_folder(experiment, seed, options) for seed in range(options.seeds)]
        found = [result for f in folders if (result := read_result(f, options.data))]
        key = experiment.series, experiment.name
        if key not in best or _mean_top_1(found) > _mean_top_1(best[key][1]):
            best[key] = experiment, found
    return dict(best.values())


def _mean_top_1(found: list[tuple[float, ...]]) -> float:
    return statistics.fmean(result[0] for result in found) if found else -1.0


def _paper(experiment: Experiment) -> str:
    return " / ".join(f"{accuracy:.1f}" for _, accuracy in experiment.paper) or "-"


def _write_table(path: Path, title: str, header: list[str], rows: list[list[str]]) -> None:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    path.write_text("\n".join([f"**{title}**", "", *lines, ""]))
    table = Table(title=title)
    for column in header:
        table.add_column(column)
    for cells in rows:
        table.add_row(*cells)
    console = Console()
    console.print(table)
    console.print(f"table: {path}", highlight=False, soft_wrap=True)
