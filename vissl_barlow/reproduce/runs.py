"""The runs below a folder: what each computed, what it came to, and what vouches for its numbers.

A run is a folder with the provenance (`barlow_run.json`) that every run of this plugin leaves. Which
experiment it is follows from the commands noted there, not from the folder's name. Its numbers count
only with its files: provenance, resolved config and, of pretraining, the checkpoint.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from vissl_barlow.provenance import PROVENANCE_FILE, file_sha256, read_provenance
from vissl_barlow.reproduce.ablations import (
    DIGITS_BASE,
    GROUP,
    compose_config,
)
from vissl_barlow.reproduce.results import is_finished, read_probe
from vissl_barlow.reproduce.transfer import DETECTION, Row, load_table, table_names
from vissl_barlow.run_files import PROBE_FILE

CHECKPOINT = "checkpoint.torch"
DIGITS_OVERLAY = "config/benchmark/vissl_barlow/overlays=digits"
BATCH = "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA"
# Overrides that say where a run finds and leaves things and how it goes about it, not what it computes.
OF_NO_EFFECT = re.compile(
    r"""
    node_id | engine_name | OUTPUT_DIR | SEED | MODEL\.WEIGHTS | DATALOADER\.NUM_WORKERS
    | SOLVER\.CHECKPOINT_PERIOD | TEST\.EVAL_PERIOD
    | config\.(
        (CHECKPOINT | DISTRIBUTED | MACHINE | SLURM | HOOKS)\..*
        | SEED_VALUE | LOG_FREQUENCY | MULTI_PROCESSING_METHOD
        | DATA\.(NUM_DATALOADER_WORKERS | PIN_MEMORY | TEST\.BATCHSIZE_PER_REPLICA)
        | DATA\.(TRAIN | TEST)\.((DATA | LABEL)_PATHS | COPY_TO_LOCAL_DISK)
        | MODEL\.(WEIGHTS_INIT\.PARAMS_FILE | ACTIVATION_CHECKPOINTING\..*)
        | BARLOW\.(CHECK_IMAGES | KEEP_.* | TIMEOUT_MINUTES | PROBE\.EVERY_EPOCHS | COMPILE
            | CHANNELS_LAST)
    )""",
    re.VERBOSE,
)
# Those that decide the global batch, groups included.
_OF_THE_BATCH = re.compile(rf"\+*({re.escape(BATCH)}|config\.DISTRIBUTED\.NUM|config/)")
# Words of Detectron2's command line that another one follows.
_DETECTION_OPTIONS = (
    *("--num-gpus", "--config-file", "--num-machines", "--machine-rank", "--dist-url"),
)


class Refused(Exception):
    """Numbers that must not be reported; the message says why."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Attributes:
        folder: its own.
        starts: its provenance, one entry per start or resume.
        config: "pretrain/vissl_barlow/NAME", "benchmark/vissl_barlow/NAME", or the name of a Detectron2
            config.
        settings: what it computes otherwise than `config`, as `settings_of` writes it.
        result: figure to value in %; None while there is none.
    """

    folder: Path
    starts: tuple[dict, ...]
    config: str
    settings: frozenset[str]
    result: dict[str, float] | None

    @property
    def pretrains(self) -> bool:
        return self.config.startswith(GROUP)

    @property
    def finished(self) -> bool:
        """Whether VISSL's training in it came to its end."""
        return is_finished(self.folder)

    @property
    def on_digits(self) -> bool:
        return is_on_digits(self.config, self.settings)

    @property
    def resolved(self) -> str:
        """Name of the file in its folder with the config as it was run."""
        return resolved_config(self.starts)

    @property
    def seed(self) -> int:
        return self.starts[-1]["seed"]

    @property
    def hours(self) -> float:
        """Over all starts, as far as they were noted."""
        return sum(start["hours"] or 0.0 for start in self.starts)

    @property
    def hardware(self) -> str:
        """Of the last start: its CPU cores, or its GPUs, one per process."""
        last = self.starts[-1]
        name = last["hardware"]
        return name if name.endswith("CPU cores") else f"{last['processes']} x {name}"

    @property
    def weights(self) -> dict | None:
        """`path` and `sha256` of the checkpoint it started from; None for a random start."""
        return self.starts[0]["weights"]

    @functools.cached_property
    def checkpoint_sha256(self) -> str | None:
        """Of the newest checkpoint it left; None without one."""
        path = self.folder / CHECKPOINT
        return _sha256(path) if path.exists() else None


def _sha256(path: Path) -> str:
    """`file_sha256`, once for all the runs that name the file: it may have gigabytes."""
    state = path.stat()
    return _sha256_of(path.resolve(), state.st_mtime_ns, state.st_size)


@functools.cache
def _sha256_of(path: Path, *state: int) -> str:
    return file_sha256(path)


def find_runs(folder: Path, leave_out: Path | None = None) -> tuple[list[Run], dict[Path, str]]:
    """The runs in and below `folder`, by path, and the folders whose numbers are refused, with reasons.

    Args:
        leave_out: a folder below it that holds no runs: the report's own.
    """
    runs, refused = [], {}
    for found in _folders(folder):
        if leave_out is not None and found.is_relative_to(leave_out):
            continue
        try:
            runs.append(read_run(found))
        except Refused as reason:
            refused[found] = str(reason)
    return _with_their_checkpoints(_without_copies(runs, refused), refused), refused


def _folders(folder: Path) -> list[Path]:
    """Those with provenance, and those with a result whether or not it has any."""
    names = {Path(name) for name in (PROVENANCE_FILE, PROBE_FILE)}
    names |= {Path(row.result["file"]) for row in result_rows().values()}
    found = set()
    for name in names:
        for path in folder.rglob(str(name)):
            found.add(path.parents[len(name.parts) - 1])
    return sorted(found)


@functools.cache
def result_rows() -> dict[str, Row]:
    """The rows of Tables 1 to 4 by the config that they run."""
    rows = {}
    for table in table_names():
        for row in load_table(table).rows:
            configs = filter(None, (config_of(step.arguments) for step in row.steps))
            rows |= {config: row for config in configs if config not in rows}
    return rows


def config_of(arguments: Sequence[str]) -> str | None:
    """What a command line runs: hydra's `config=...`, or the name of Detectron2's `--config-file`."""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        if argument.startswith("config="):
            return argument.removeprefix("config=").removesuffix(".yaml")
        if argument.startswith("--config-file"):
            return Path(argument.partition("=")[2] or following).stem
    return None


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises:
        Refused: its numbers lack the files that vouch for them, or are none.
    """
    try:
        starts = tuple(read_provenance(folder))
    except ValueError as error:
        raise Refused(f"{PROVENANCE_FILE} cannot be read: {error}") from error
    if not starts:
        raise Refused(f"no {PROVENANCE_FILE}: nothing tells which run its numbers are of")
    commands = [start["command"] for start in starts]
    configs = {config_of(command) for command in commands}
    config = next(iter(configs))
    if len(configs) > 1 or config is None:
        raise Refused(f"its starts ran {', '.join(map(str, configs))}: a run has one config")
    resolved = folder / resolved_config(starts)
    if _result_file(folder, config).exists() and not resolved.exists():
        raise Refused(f"no {resolved.name}: nothing tells how its numbers were computed")
    result = _read_result(folder, config)
    if config.startswith(GROUP) and result is not None and not (folder / CHECKPOINT).exists():
        raise Refused(f"no {CHECKPOINT}: the weights behind its numbers are gone")
    batch = _global_batch(resolved, starts[-1]["processes"]) if _has_batch(config) else None
    settings = {settings_of(command, batch) for command in commands}
    if len(settings) > 1:
        told = "; then ".join(describe(each) or "none" for each in settings)
        raise Refused(f"its starts had different settings: {told}")
    return Run(folder, starts, config, settings.pop(), result)


def resolved_config(starts: Sequence[dict]) -> str:
    """Name of the file in which Detectron2, or VISSL, leaves the config of a run."""
    return "config.yaml" if DETECTION in starts[0]["command"] else "train_config.yaml"


def _result_file(folder: Path, config: str) -> Path:
    row = result_rows().get(config)
    return folder / (PROBE_FILE if row is None else row.result["file"])


def _read_result(folder: Path, config: str) -> dict[str, float] | None:
    row = result_rows().get(config)
    try:
        result = read_probe(folder) if row is None else row.read_result(folder)
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise Refused(f"its result cannot be read: {type(error).__name__}: {error}") from error
    for name, value in (result or {}).items():
        # VISSL's SVM tool writes -1 where every class failed, and ends with exit status 0.
        if value is None or not (math.isfinite(value) and 0 <= value <= 100):
            raise Refused(f"its {name} is {value}: a failed run; percentages are in 0 to 100")
    return result


def _has_batch(config: str) -> bool:
    """Whether a run of `config` is a training by VISSL, which depends on the global batch."""
    row = result_rows().get(config)
    return config.startswith(GROUP) or (row is not None and row.result["kind"] == "accuracy")


def _global_batch(resolved: Path, processes: int) -> int | None:
    if not resolved.exists():
        return None  # it has only just started
    return _batch_per_process(resolved.read_text()) * processes


@functools.cache
def _batch_per_process(resolved: str) -> int:
    return yaml.safe_load(resolved)["DATA"]["TRAIN"]["BATCHSIZE_PER_REPLICA"]


def settings_of(arguments: Sequence[str], batch: int | None = None) -> frozenset[str]:
    """What a command line changes of what its config computes, and the global batch."""
    settings = set() if batch is None else {f"global batch={batch}"}
    for word in _overrides(arguments):
        key = word.lstrip("+~").partition("=")[0]
        if key not in ("config", BATCH) and not OF_NO_EFFECT.fullmatch(key):
            settings.add(word.lstrip("+").replace(" ", ""))
    return frozenset(settings)


def _overrides(arguments: Sequence[str]) -> Iterator[str]:
    """The overrides of a command line, Detectron2's `KEY VALUE` written as hydra's `KEY=VALUE`."""
    if DETECTION not in arguments:
        yield from (word for word in arguments if "=" in word)
        return
    words = iter(arguments[arguments.index(DETECTION) + 1 :])
    for word in words:
        if word in _DETECTION_OPTIONS:
            next(words, None)
        elif word == "--scale-batch-and-lr":
            yield f"{word}=true"
        elif not word.startswith("-"):
            yield f"{word}={next(words, '')}"


def expected_settings(config: str, overrides: Sequence[str] = ()) -> frozenset[str]:
    """`Run.settings` of a run of `config` with `overrides`.

    Raises:
        hydra.errors.HydraException: `config` is none of this plugin's, or an override does not fit it.
    """
    if not _has_batch(config):
        return settings_of(overrides)
    composed = compose_config(config, tuple(filter(_OF_THE_BATCH.match, overrides)))
    processes = composed.DISTRIBUTED.NUM_NODES * composed.DISTRIBUTED.NUM_PROC_PER_NODE
    return settings_of(overrides, composed.DATA.TRAIN.BATCHSIZE_PER_REPLICA * processes)


def is_on_digits(config: str, overrides: Iterable[str]) -> bool:
    """Whether such a run is one on the digits: by its config, or by the group put in its place."""
    groups = (f"config/{GROUP}={DIGITS_BASE}", DIGITS_OVERLAY)
    return config == f"{GROUP}/{DIGITS_BASE}" or any(o.lstrip("+") in groups for o in overrides)


def describe(settings: Iterable[str]) -> str:
    """Settings as text; the same text for the same settings."""
    return ", ".join(sorted(settings))


def _without_copies(runs: list[Run], refused: dict[Path, str]) -> list[Run]:
    """Refuses all but the furthest of the runs that began as one: a copy is no further seed."""
    originals: dict[tuple[str, ...], Run] = {}
    for run in sorted(runs, key=lambda run: (len(run.starts), run.hours), reverse=True):
        first = run.starts[0]
        original = originals.setdefault((first["started"], *first["command"]), run)
        if original is not run:
            refused[run.folder] = f"a copy of {original.folder}: both began with the same start"
    return [run for run in runs if run.folder not in refused]


def _with_their_checkpoints(runs: list[Run], refused: dict[Path, str]) -> list[Run]:
    """Refuses evaluations of a file that another one has since replaced: they tell nothing of it."""
    folders = {run.folder.resolve() for run in runs}
    kept = []
    for run in runs:
        weights = run.weights
        path = Path(weights["path"]) if run.result and weights and weights["sha256"] else None
        among_them = path is not None and path.parent in folders and path.exists()
        if among_them and _sha256(path) != weights["sha256"]:
            refused[run.folder] = f"{path} is no longer the file it evaluated: sha256 differs"
        else:
            kept.append(run)
    return kept
