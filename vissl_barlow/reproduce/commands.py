"""What the commands of a table or a study do: their options, and the runs that are still missing."""

import argparse
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.errors import HydraException

from vissl_barlow.own_images import FolderRefused, read_folder
from vissl_barlow.reproduce.batch import share_of
from vissl_barlow.reproduce.execution import (
    RUNNER,
    USE_SLURM,
    after,
    claim,
    execute,
    logs_in,
    run_again,
    sbatch,
    submit,
)
from vissl_barlow.reproduce.folders import LeftOut, Refused
from vissl_barlow.reproduce.overrides import fill, override
from vissl_barlow.reproduce.results import is_finished
from vissl_barlow.reproduce.runs import expected_settings, has_batch, read_run
from vissl_barlow.reproduce.settings import BATCH, DETECTION, WEIGHTS, config_of, describe
from vissl_barlow.reproduce.studies import (
    DIGITS,
    IMAGENET,
    LINEAR_EVALUATION,
    Experiment,
    Study,
    folder_name,
    linear_evaluation,
    load_study,
    pretraining,
    read_result,
    slug,
    swept_keys,
)
from vissl_barlow.reproduce.transfer import OWN, Row, Step, Table, load_table

_SEED = re.compile(r"\+*config\.SEED_VALUE=(\d+)")
# The stages of an experiment, each with its folder below the experiment's.
STAGE_FOLDERS = {"pretraining": ".", "linear evaluation": "linear"}


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option that every command has."""
    parser.add_argument("--out", type=Path, default=Path("report"), help="default: %(default)s")


def add_paper_weights(parser: argparse.ArgumentParser) -> None:
    """The option of what shows Tables 1 to 4."""
    parser.add_argument(
        "--paper-weights",
        action="append",
        default=[],
        metavar="SHA256",
        help="evaluated weights, by the first 12 digits or more, that you know to be of the paper's "
        "pretraining (the authors' file, say): the paper's number stands beside theirs (repeat it)",
    )


def add_table_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """The options of table `name`."""
    checkpoint = "a pretrained trunk of any format that docs/evaluation.md lists"
    parser.add_argument("--checkpoint", type=Path, help=checkpoint)
    table = load_table(name)
    if table.detects:
        parser.add_argument("--num-gpus", type=int, default=8, help="default: %(default)s")
    for option, description in table.inputs.items():
        parser.add_argument(f"--{option}", type=Path, help=description)
    add_out(parser)
    add_paper_weights(parser)
    parser.add_argument(
        "--only", default="", help="rows whose name contains this, or a variant's whole name"
    )
    mode = add_modes(parser, "rows")
    mode.add_argument("--slurm", action="store_true", help="submit them instead of running them")
    parser.add_argument("overrides", nargs="*", help="hydra's overrides, for every VISSL command")


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a study."""
    data = f"{IMAGENET} (default), {DIGITS}, or a FOLDER of your own images in class folders"
    parser.add_argument("--data", default=IMAGENET, help=data)
    parser.set_defaults(own_images=None)
    add_out(parser)
    imagenet = "folder with train and val; default: VISSL's dataset catalogue"
    parser.add_argument("--imagenet", type=Path, help=imagenet)
    parser.add_argument("--seeds", type=int, default=1, help="runs per experiment, averaged")
    parser.add_argument("--only", default="", help="experiments whose name contains this")
    grid = "a grid's other values too, where the best for each experiment is known"
    parser.add_argument("--grid", action="store_true", help=grid)
    linear = "one of hydra's overrides for every linear evaluation (repeat it)"
    parser.add_argument("--linear", action="append", default=[], metavar="KEY=VALUE", help=linear)
    add_modes(parser, "experiments")
    parser.add_argument("--slurm", action="store_true", help="submit to SLURM by VISSL's launcher")
    overrides = "more of hydra's overrides, for every pretraining"
    parser.add_argument("overrides", nargs="*", help=overrides)


def add_modes(parser: argparse.ArgumentParser, rows: str) -> argparse._MutuallyExclusiveGroup:
    """What to do instead of running the `rows`."""
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--list", action="store_true", help=f"show {rows} and results, run nothing")
    mode.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return mode


def run_table(name: str, options: argparse.Namespace) -> int:
    """Runs what is missing of table `name`; returns the exit status.

    What is finished is not run again; what was interrupted resumes from its newest checkpoint. One
    row's failure does not keep the others from running; a request to stop does.

    Raises:
        ValueError: no such row, data missing, an override of what the table sets itself, or a folder
            with the results of another checkpoint or of other settings.
    """
    table = load_table(name)
    chosen = table.chosen(options.only)
    if not chosen:
        names = [*table.chosen(""), *(row.name for row in table.variants)]
        raise ValueError(f"--only {options.only} matches none of {', '.join(names)}")
    if options.list:
        return 0
    refuse_own_keys(chosen.values(), options.overrides)
    paths = _input_paths(table, set().union(*(row.inputs for row in chosen.values())), options)
    numbers = {"num-gpus": str(vars(options).get("num_gpus", 1))}
    succeeded = [
        run_row(row, folder, {**paths, **numbers, "seed": str(row.seeds[folder])}, options)
        for folder, row in chosen.items()
    ]
    return int(not all(succeeded))


def _input_paths(table: Table, needed: set[str], options: argparse.Namespace) -> dict[str, str]:
    """The absolute paths of the checkpoint and of the inputs that are needed."""
    descriptions = {"checkpoint": "the pretrained trunk", **table.inputs}
    paths = {name: vars(options)[name.replace("-", "_")] for name in descriptions if name in needed}
    missing = [f"--{name} ({descriptions[name]})" for name, path in paths.items() if path is None]
    if missing:
        raise ValueError(f"give {'; '.join(missing)}, or choose other rows with --only")
    absent = [f"--{name} {path}" for name, path in paths.items() if not path.exists()]
    if absent and not options.dry_run:
        raise ValueError(f"not there: {', '.join(absent)}")
    return {name: str(path.resolve()) for name, path in paths.items()}


def refuse_own_keys(rows: Iterable[Row], overrides: Sequence[str]) -> None:
    """Raises ValueError for overrides of the weights, images and folders that the rows' own arguments
    name: what is measured would not be what the folder, or the row, is called."""
    own: set[str] = set()
    for step in (step for row in rows for step in row.steps):
        for word, following in zip(step.arguments, [*step.arguments[1:], ""]):
            key, sign, value = word.partition("=")
            pair = step.module == DETECTION and not word.startswith("-")
            if "{" in (value if sign else following if pair else ""):
                own.add(key)
    _refuse_keys(own, overrides, "--checkpoint, --out and the options of the images")


def _refuse_keys(own: Iterable[str], overrides: Sequence[str], options: str) -> None:
    given = [word for word in overrides if any(_overlap(_key(word), key) for key in own)]
    if given:
        raise ValueError(f"{', '.join(given)}: leave it out; it is set by {options}")


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _overlap(key: str, other: str) -> bool:
    """Whether to set one of two keys sets the other, or a part of it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def run_row(row: Row, name: str, values: dict[str, str], options: argparse.Namespace) -> bool:
    """Runs, submits or prints what is left of a row in folder `name` below `options.out`; whether
    nothing failed.

    Args:
        values: what its arguments' names stand for; "checkpoint", empty for the untrained trunk, and
            "num-gpus" in any case.

    Raises:
        ValueError: the folder has another checkpoint's results, or those of other settings.
    """
    folder = options.out.resolve() / name
    finished = row.result.read(folder)
    if not options.dry_run:
        claim(folder, values["checkpoint"])
    if finished:
        command = _command(row.steps[-1], {**values, "folder": str(folder)}, options)
        _refuse_other_settings(folder, command)
        return True
    for step in row.steps:
        if step.creates and (folder / step.creates).exists():
            continue
        command = _command(step, {**values, "folder": str(folder)}, options)
        if options.dry_run:
            print(shlex.join(command), flush=True)
        elif options.slurm and not step.creates:
            return submit(name, command, folder) is not None
        else:
            if step.creates:
                (folder / step.creates).parent.mkdir(parents=True, exist_ok=True)
            if not execute(f"{name}: {step.module}", command, folder / "reproduce.log"):
                return False
    return options.dry_run or options.slurm or _has_result(row.result.read(folder), name, folder)


def _has_result(result: object, title: str, folder: Path) -> bool:
    """Whether commands that succeeded have left one; says so if not."""
    if not result:
        print(
            f"{title}: ended without an error, and without a result in {folder}: no test was made; "
            "leave out what switches it off (config.TEST_MODEL, config.BARLOW.PROBE.KIND)",
            file=sys.stderr,
        )
    return bool(result)


def _refuse_other_settings(folder: Path, command: Sequence[str]) -> None:
    """Raises ValueError if the finished run in `folder` is not what `command` would run: its result
    would pass for that of these settings, or of this seed."""
    try:
        run = read_run(folder, folder)
        wanted = expected_settings(run.config, command[2:])
    except (Refused, LeftOut, HydraException):  # which the report tells, or VISSL
        return
    seeds = [int(each[1]) for word in command if (each := _SEED.fullmatch(word))]
    there, now = run.settings - wanted, wanted - run.settings
    if seeds[-1:] not in ([], [run.seed]):
        there, now = there | {f"seed {run.seed}"}, now | {f"seed {seeds[-1]}"}
    if there or now:
        raise ValueError(
            f"{folder} holds the result of other settings: {describe(there) or 'none of these'} there, "
            f"{describe(now) or 'none of these'} now; choose another folder with --out"
        )


def _command(step: Step, values: dict[str, str], options: argparse.Namespace) -> list[str]:
    folder = Path(values["folder"])
    submits_itself = options.slurm and step.module == RUNNER
    command = [sys.executable, "-m", step.module, *([logs_in(folder)] if submits_itself else [])]
    command += [fill(argument, values) for argument in step.arguments]
    if step.module == DETECTION:
        command += [word for pair in options.overrides for word in pair.split("=", 1)]
    elif config := config_of(step.arguments):
        command += options.overrides
        if has_batch(config):
            command += share_of(None, config, options.overrides)
    if step.module == RUNNER:
        return [*command, *run_again(folder), *([USE_SLURM] if submits_itself else [])]
    if options.slurm and not step.creates:
        return sbatch(command, folder, values["num-gpus"])
    return command


def run_study(name: str, options: argparse.Namespace) -> int:
    """Runs what is missing of study `name`, as `run_table` does; returns the exit status.

    Raises:
        ValueError: no such study or experiment, no seed, an override of what the study sweeps, or
            processes that do not divide a global batch.
    """
    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds} runs nothing: give 1 or more")
    if options.own_images and not options.list:
        _refuse_without_labels(options.own_images)
    if not options.list:
        folders = ["config.CHECKPOINT.DIR"]
        _refuse_keys([*folders, "config.SEED_VALUE"], options.overrides, "--out and --seeds")
        _refuse_keys([*folders, WEIGHTS], options.linear, "the study, for each evaluation")
    study = load_study(name, options.data)
    chosen = [
        e for e in study.experiments if options.only.lower() in f"{e.series} {e.name}".lower()
    ]
    if not chosen:
        names = ", ".join(dict.fromkeys(f"{e.series} {e.name}".strip() for e in study.experiments))
        raise ValueError(f"--only {options.only} matches none of {names}")
    if options.list:
        return 0
    chosen = [e for e in chosen if options.grid or not e.optional]
    series = dict.fromkeys(e.series for e in chosen)
    chosen = [e for e in chosen if not e.by_name or e.series.lower() in options.only.lower()]
    if not chosen:
        names = ", ".join(f'"{name}"' for name in series)
        raise ValueError(f"--only {options.only}: give the whole name of the series, of {names}")
    _refuse_swept(name, study, chosen, options)
    for experiment in chosen:  # before the first of them runs
        pretraining(experiment, options.data, options.out, more=options.overrides)
    share_of(None, LINEAR_EVALUATION, _of_evaluation(options))
    succeeded = [_run_experiment(e, seed, options) for e in chosen for seed in range(options.seeds)]
    return int(not all(succeeded))


def take_own_images(options: argparse.Namespace) -> None:
    """Where a study's `--data` is a folder: notes it, in place, and gives it a folder of its own below
    `--out`, so that the runs and tables of two never meet."""
    if vars(options).get("data", IMAGENET) in (IMAGENET, DIGITS):
        return
    folder = Path(options.data).expanduser().resolve()
    options.own_images, options.data = folder, OWN
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    options.out = options.out / OWN / slug(f"{folder.name}-{digest}")


def _refuse_without_labels(path: Path) -> None:
    """Raises ValueError unless the studies' probe can be asked of the images in folder `path`."""
    known = f"give {IMAGENET}, {DIGITS} or a folder of class folders"
    try:
        folder = read_folder(path)
    except FolderRefused as error:
        instead = f"; try --data {error.instead}" if error.instead else ""
        raise ValueError(f"--data {path}: {error}; {known}{instead}") from None
    except OSError as error:
        raise ValueError(f"--data {path}: {error}") from None
    if not folder.classes:
        raise ValueError(
            f"--data {path}: {folder.description}; a study compares accuracies: sort the images into "
            f"{path}/CLASS/"
        )


def _refuse_swept(
    name: str, study: Study, chosen: Sequence[Experiment], options: argparse.Namespace
) -> None:
    """Refuses overrides of what makes the experiments different: all would be the same one.

    Raises:
        ValueError: there are such.
    """
    swept = swept_keys(study, chosen)
    refused = [
        word for word in options.overrides if any(_overlap(_key(word), own) for own in swept)
    ]
    if refused:
        hardware = (
            ", and set the hardware by config.DISTRIBUTED.NUM_NODES and NUM_PROC_PER_NODE: each "
            "process gets its share of the study's global batch"
        )
        raise ValueError(
            f"{', '.join(refused)}: {name} sets this for each of its experiments; leave it out"
            + (
                hardware
                if any(word.lstrip("+").startswith(f"{BATCH}=") for word in refused)
                else ""
            )
        )


def _run_experiment(experiment: Experiment, seed: int, options: argparse.Namespace) -> bool:
    """Runs, submits or prints what is left of one experiment; whether nothing failed."""
    # Runs with more overrides are others: they must not pass for the study's own.
    of_evaluation = [f"linear.{word}" for word in options.linear]
    name = folder_name(experiment.folder, [*options.overrides, *of_evaluation])
    folder = options.out.resolve() / options.data / "runs" / name / f"seed{seed}"
    if read_result(folder, options.data):
        return True
    title = experiment.title
    job: str | None = None  # of the stage before
    for stage, overrides in _stages(experiment, folder, seed, options).items():
        own = folder / STAGE_FOLDERS[stage]
        command = ["-m", RUNNER, *overrides]
        if options.slurm:  # the user's own overrides have the last word
            command = [
                "-m",
                RUNNER,
                logs_in(own),
                *overrides,
                USE_SLURM,
                *(after(job) if job else []),
            ]
        if options.dry_run:
            print(shlex.join(["python", *command]))
            job = f"JOB_OF_THE_{stage.upper()}" if options.slurm else None
            continue
        if options.slurm:
            job = submit(f"{title}, seed {seed}: {stage}", [sys.executable, *command], own)
            if job is None:
                return False
            continue
        log = folder / f"{stage.split()[0]}.log"
        if not execute(f"{title}, seed {seed}: {stage}", [sys.executable, *command], log):
            return False
    if options.dry_run or options.slurm:
        return True
    return _has_result(read_result(folder, options.data), f"{title}, seed {seed}", folder)


def _stages(
    experiment: Experiment, folder: Path, seed: int, options: argparse.Namespace
) -> dict[str, list[str]]:
    """The overrides of what is left of an experiment: pretraining and, on ImageNet, evaluation."""
    train: list[str] = []
    val: list[str] = []
    if options.own_images:
        train = [override("DATA.TRAIN.DATA_PATHS", [str(options.own_images)])]
    if options.data == IMAGENET and options.imagenet:
        train = [override("DATA.TRAIN.DATA_PATHS", [str(options.imagenet / "train")])]
        val = [override("DATA.TEST.DATA_PATHS", [str(options.imagenet / "val")])]
    stages = {}
    if options.data != IMAGENET or not is_finished(folder):
        # Paths first: the user's own overrides have the last word.
        overrides = pretraining(
            experiment, options.data, folder, seed, [*train, *options.overrides]
        )
        stages["pretraining"] = [*overrides, *run_again(folder)]
    if options.data == IMAGENET:
        overrides = [*linear_evaluation(folder), *train, *val, *_of_evaluation(options)]
        stages["linear evaluation"] = [*overrides, *run_again(folder / "linear")]
    return stages


def _of_evaluation(options: argparse.Namespace) -> list[str]:
    """A study's overrides that its linear evaluations get as well, and those that only they get.

    Both stages are run on one cluster's or one machine's processes; a linear evaluation is small
    enough for one node.
    """
    both = ("config.SLURM.", "config.DISTRIBUTED.NUM_PROC_PER_NODE=")
    overrides = [word for word in options.overrides if word.startswith(both)] + options.linear
    return [*overrides, *share_of(None, LINEAR_EVALUATION, overrides)]
