"""The runs below a folder: what each computed, its result, and why a result may not be reported.

A run is a folder with the provenance (`barlow_run.json`) that every run of this plugin leaves. Which
experiment it is follows from the commands noted there, not from the folder's name. Its result is
reported only if it has provenance, the resolved config and, for a pretraining, the checkpoint.
"""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf

from vissl_barlow.atomic_files import file_state
from vissl_barlow.provenance import PROVENANCE_FILE, file_sha256, read_provenance
from vissl_barlow.reproduce.batch import global_batch, share_of
from vissl_barlow.reproduce.overrides import PRETRAIN_GROUP, compose_config
from vissl_barlow.reproduce.results import PROBE, ResultFile, is_finished
from vissl_barlow.reproduce.settings import DETECTION, config_of, describe, settings_of
from vissl_barlow.reproduce.studies import DIGITS_BASE
from vissl_barlow.reproduce.transfer import rows_by_config

CHECKPOINT = "checkpoint.torch"
DIGITS_CONFIG = f"{PRETRAIN_GROUP}/{DIGITS_BASE}"
# Groups that put the digits in the place of another data set.
DIGITS_GROUPS = {
    f"config/{PRETRAIN_GROUP}={DIGITS_BASE}",
    "config/benchmark/vissl_barlow/overlays=digits",
}
# Overrides that decide trunk and heads, groups included.
_OF_THE_MODEL = re.compile(r"\+*(config\.MODEL\.(TRUNK|HEAD)\.|config/)")


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
        result: figure to value in %; empty while there is none.
        departures: what its resolved config and its data have otherwise than the command says, as text:
            such a run is in no row of the paper's.
    """

    folder: Path
    starts: tuple[dict[str, Any], ...]
    config: str
    settings: frozenset[str]
    result: dict[str, float]
    departures: frozenset[str] = frozenset()

    @property
    def pretrains(self) -> bool:
        return self.config.startswith(PRETRAIN_GROUP)

    @property
    def finished(self) -> bool:
        """Whether VISSL's training in it came to its end."""
        return is_finished(self.folder)

    @property
    def on_digits(self) -> bool:
        return self.config == DIGITS_CONFIG or not self.settings.isdisjoint(DIGITS_GROUPS)

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
    def weights(self) -> dict[str, str | None] | None:
        """`path` and `sha256` of the checkpoint it started from; None for a random start."""
        return self.starts[0]["weights"]

    @property
    def weights_path(self) -> Path | None:
        """Of the checkpoint it started from, wherever that is now; None for a random start."""
        return Path(self.starts[0]["weights"]["path"]) if self.weights else None

    @property
    def weights_sha256(self) -> str | None:
        """Of the checkpoint it started from; None for a random start, or where it was not noted."""
        return self.weights["sha256"] if self.weights else None

    @functools.cached_property
    def checkpoint_sha256(self) -> str | None:
        """Of the newest checkpoint it left; None without one."""
        path = self.folder / CHECKPOINT
        return _sha256(path) if path.exists() else None


def _sha256(path: Path) -> str:
    """`file_sha256`, once for all the runs that name the file: it may have gigabytes."""
    return _sha256_of(path.resolve(), file_state(path))


@functools.cache
def _sha256_of(path: Path, state: tuple[int, ...]) -> str:
    return file_sha256(path)


class Runs:
    """Runs, and which of them belong together.

    Attributes:
        refused: the folders whose numbers are refused, with reasons.
    """

    def __init__(self, runs: Iterable[Run], refused: Mapping[Path, str]) -> None:
        self.runs = list(runs)
        self.refused = refused
        pretrainings = [run for run in self.runs if run.pretrains]
        # Checkpoints are large: they are hashed only where an evaluation's hash is to be found.
        evaluations = any(run.weights_sha256 for run in self.runs)
        self._by_folder = {run.folder.resolve(): run for run in pretrainings}
        self._by_checkpoint = {run.checkpoint_sha256: run for run in pretrainings if evaluations}

    def pretraining_of(self, run: Run) -> Run | None:
        """The pretraining that `run` evaluates a checkpoint of, if it is among them."""
        if run.weights_path is None or run.weights_sha256 is None:
            return None
        by_folder = self._by_folder.get(run.weights_path.parent)
        return self._by_checkpoint.get(run.weights_sha256, by_folder)

    def pretrainings_of(self, runs: Iterable[Run]) -> tuple[Run, ...]:
        """`pretraining_of` each, as far as they are known."""
        return tuple(filter(None, map(self.pretraining_of, runs)))

    def is_reportable(self, run: Run) -> bool:
        """Whether `run` has a result, and not of a checkpoint from the middle of a pretraining."""
        pretraining = self.pretraining_of(run)
        ended = pretraining is None or (
            pretraining.finished and pretraining.checkpoint_sha256 == run.weights_sha256
        )
        return bool(run.result) and ended

    def matching(self, config: str, overrides: Sequence[str] = ()) -> list[Run]:
        """The runs of `config` with `overrides` and no other settings, by seed.

        Those that depart from what was typed are among them only where `overrides` make another
        experiment of it anyway: beside the paper's numbers stand the paper's experiments.
        """
        settings = expected_settings(config, overrides)
        papers = config != DIGITS_CONFIG and settings == expected_settings(config)
        found = [
            run
            for run in self.runs
            if run.config == config and run.settings == settings and not (papers and run.departures)
        ]
        return sorted(found, key=lambda run: run.seed)


def find_runs(folder: Path, leave_out: Path | None = None) -> Runs:
    """The runs in and below `folder`, by path.

    Args:
        leave_out: a folder below it that holds no runs: the report's own.
    """
    runs: list[Run] = []
    refused: dict[Path, str] = {}
    for found in _folders(folder):
        if leave_out is not None and found.is_relative_to(leave_out):
            continue
        try:
            runs.append(read_run(found))
        except Refused as reason:
            refused[found] = str(reason)
    for reasons in (_copies, _without_their_checkpoints):
        refused |= reasons(runs)
        runs = [run for run in runs if run.folder not in refused]
    return Runs(runs, refused)


def _folders(folder: Path) -> list[Path]:
    """Those with provenance, and those with a result whether or not it has any."""
    results = [PROBE, *(row.result for row in rows_by_config().values())]
    names = {PROVENANCE_FILE, *(result.file for result in results)}
    return sorted({path.parents[name.count("/")] for name in names for path in folder.rglob(name)})


def _copies(runs: Sequence[Run]) -> dict[Path, str]:
    """Copies of a run, known by its first start: they are no further seeds. The run that went furthest
    is taken for the original."""
    originals: dict[tuple[str, ...], Run] = {}
    refused: dict[Path, str] = {}
    for run in sorted(runs, key=lambda run: (len(run.starts), run.hours), reverse=True):
        first = run.starts[0]
        original = originals.setdefault((first["started"], *first["command"]), run)
        if original is not run:
            refused[run.folder] = f"a copy of {original.folder}: both began with the same start"
    return refused


def _without_their_checkpoints(runs: Sequence[Run]) -> dict[Path, str]:
    """Evaluations of a checkpoint that has since been overwritten: its numbers would be unknown."""
    folders = {run.folder.resolve() for run in runs}
    refused: dict[Path, str] = {}
    for run in runs:
        path, noted = run.weights_path, run.weights_sha256
        if not (run.result and path and noted and path.parent in folders and path.exists()):
            continue
        if _sha256(path) != noted:
            refused[run.folder] = f"{path} is no longer the file it evaluated: sha256 differs"
    return refused


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
    configs = list(dict.fromkeys(map(config_of, commands)))
    config = configs[0]
    if len(configs) > 1 or config is None:
        raise Refused(f"its starts ran {', '.join(map(str, configs))}: a run has one config")
    resolved = folder / resolved_config(starts)
    if (folder / _result_file(config).file).exists() and not resolved.exists():
        raise Refused(f"no {resolved.name}: nothing tells how its numbers were computed")
    result = _read_result(folder, config)
    if config.startswith(PRETRAIN_GROUP) and result and not (folder / CHECKPOINT).exists():
        raise Refused(f"no {CHECKPOINT}: the weights behind its numbers are gone")
    batch = None
    if has_batch(config) and resolved.exists():  # it does not where a run has only just started
        batch = _batch_per_process(resolved.read_text()) * starts[-1]["processes"]
    settings = list(dict.fromkeys(settings_of(command, batch) for command in commands))
    if len(settings) > 1:
        reasons = "; then ".join(describe(each) or "none" for each in settings)
        raise Refused(f"its starts had different settings: {reasons}")
    departures = _departures(config, commands[-1], resolved)
    return Run(folder, starts, config, settings[0], result, departures)


def _departures(config: str, command: Sequence[str], resolved: Path) -> frozenset[str]:
    """Trunk and heads of a run that are not those of its config with its command's overrides."""
    if not (has_batch(config) and resolved.exists()):
        return frozenset()
    model = yaml.safe_load(resolved.read_text()).get("MODEL", {})
    overrides = [word for word in command if _OF_THE_MODEL.match(word)]
    try:
        composed: Any = OmegaConf.to_container(compose_config(config, tuple(overrides)).MODEL)
    except HydraException:  # a config of the user's own, which is no row of the paper's
        return frozenset()
    trunk, resnet = model.get("TRUNK", {}), model.get("TRUNK", {}).get("RESNETS", {})
    pairs = {
        "TRUNK.NAME": (trunk.get("NAME"), composed["TRUNK"]["NAME"]),
        "TRUNK.RESNETS.DEPTH": (resnet.get("DEPTH"), composed["TRUNK"]["RESNETS"]["DEPTH"]),
        "TRUNK.RESNETS.WIDTH_MULTIPLIER": (
            resnet.get("WIDTH_MULTIPLIER"),
            composed["TRUNK"]["RESNETS"].get("WIDTH_MULTIPLIER", 1),
        ),
        "HEAD.PARAMS": (model.get("HEAD", {}).get("PARAMS"), composed["HEAD"]["PARAMS"]),
    }
    return frozenset(
        f"config.MODEL.{key}={found}"
        for key, (found, wanted) in pairs.items()
        if found is not None and found != wanted
    )


def resolved_config(starts: Sequence[Mapping[str, Any]]) -> str:
    """Name of the file in which Detectron2, or VISSL, leaves the config of a run."""
    return "config.yaml" if DETECTION in starts[0]["command"] else "train_config.yaml"


def _result_file(config: str) -> ResultFile:
    row = rows_by_config().get(config)
    return row.result if row else PROBE


def _read_result(folder: Path, config: str) -> dict[str, float]:
    file = _result_file(config)
    try:
        refused = file.why_refused(folder)
        result = file.read(folder)
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise Refused(f"its result cannot be read: {type(error).__name__}: {error}") from error
    if refused:
        raise Refused(refused)
    for name, value in result.items():
        # VISSL's SVM tool writes -1 where every class failed, and ends with exit status 0.
        if value is None or not (math.isfinite(value) and 0 <= value <= 100):
            raise Refused(f"its {name} is {value}: a failed run; percentages are in 0 to 100")
    return result


def has_batch(config: str) -> bool:
    """Whether a run of `config` is a training by VISSL, which depends on the global batch."""
    return config.startswith(PRETRAIN_GROUP) or _result_file(config).kind == "accuracy"


@functools.cache
def _batch_per_process(resolved: str) -> int:
    return yaml.safe_load(resolved)["DATA"]["TRAIN"]["BATCHSIZE_PER_REPLICA"]


def expected_settings(config: str, overrides: Sequence[str] = ()) -> frozenset[str]:
    """`Run.settings` of a run of `config` with `overrides`, its global batch spread over the processes
    that these ask for.

    Raises:
        ValueError: the processes do not divide the global batch.
        hydra.errors.HydraException: `config` is none of this plugin's, or an override does not fit it.
    """
    if not has_batch(config):
        return settings_of(overrides)
    batch = global_batch(config, [*overrides, *share_of(None, config, overrides)])
    return settings_of(overrides, batch)
