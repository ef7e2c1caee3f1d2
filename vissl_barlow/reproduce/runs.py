"""The runs below a folder: what each computed, its result, and why a result may not be reported.

A run is a folder with the provenance (`barlow_run.json`) that every run of this plugin leaves. Which
experiment it is follows from the commands noted there, not from the folder's name. Its result is
reported only if it has provenance, the resolved config and, for a pretraining, the checkpoint.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from vissl_barlow.atomic_files import file_state
from vissl_barlow.provenance import PROVENANCE_FILE, counted_starts, file_sha256
from vissl_barlow.reproduce.batch import global_batch, share_of
from vissl_barlow.reproduce.departures import (
    begun_from,
    config_departures,
    data_departures,
    not_the_digits,
    own_images,
)
from vissl_barlow.reproduce.folders import (
    CHECKPOINT,
    LeftOut,
    Refused,
    check_files,
    picture,
    read_curves,
    read_resolved,
    read_starts,
    run_folders,
)
from vissl_barlow.reproduce.overrides import PRETRAIN_GROUP
from vissl_barlow.reproduce.results import PROBE, ResultFile, is_finished
from vissl_barlow.reproduce.settings import DETECTION, config_of, describe, settings_of
from vissl_barlow.reproduce.studies import DIGITS, DIGITS_BASE, IMAGENET, OWN_BASE
from vissl_barlow.reproduce.transfer import OWN, rows_by_config
from vissl_barlow.run_files import FIGURE_FILE, MAP_FILE, METRICS_FILE

RESULTS = (PROBE.file, *sorted({row.result.file for row in rows_by_config().values()}))
# What a pretraining draws, and what the report calls it.
PICTURES = {FIGURE_FILE: "", MAP_FILE: ": its representations"}
# All that is read of a run's folder.
_FILES = (
    *(PROVENANCE_FILE, "train_config.yaml", "config.yaml", CHECKPOINT, METRICS_FILE),
    *PICTURES,
    *RESULTS,
)
DIGITS_CONFIG = f"{PRETRAIN_GROUP}/{DIGITS_BASE}"
# Groups that put the digits in the place of another data set.
DIGITS_GROUPS = {
    f"config/{PRETRAIN_GROUP}={DIGITS_BASE}",
    "config/benchmark/vissl_barlow/overlays=digits",
    "config/benchmark/vissl_barlow/overlays=bundled_digits",
}
# What Figure 1's table has of each run, from its last logged step.
LAST_STEP = {
    "iteration": "steps",
    "loss": "loss",
    "invariance": "invariance term",
    "redundancy": "redundancy reduction term",
    "diagonal_mean": "mean diagonal of C",
    "off_diagonal_rms": "off-diagonal RMS of C",
    "effective_rank_embedding": "effective rank, embeddings",
    "effective_rank_representation": "effective rank, representations",
    "images_per_second": "images/s",
}


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Attributes:
        folder: its own.
        starts: its provenance, one entry per start or resume that left something.
        config: "pretrain/vissl_barlow/NAME", "benchmark/vissl_barlow/NAME", or the name of a Detectron2
            config.
        settings: what it computes otherwise than `config`, as `settings_of` writes it.
        result: figure to value in %; empty while there is none.
        departures: what its resolved config and its images are otherwise than the command says, as
            text: such a run is in no row of the paper's.
        history: a pretraining's logged steps.
        pictures: that a pretraining drew, by what `PICTURES` calls them.
    """

    folder: Path
    starts: tuple[dict[str, Any], ...]
    config: str
    settings: frozenset[str]
    result: dict[str, float]
    departures: frozenset[str] = frozenset()
    history: tuple[dict[str, Any], ...] = ()
    pictures: Mapping[str, Path] = field(default_factory=dict)

    @property
    def pretrains(self) -> bool:
        return self.config.startswith(PRETRAIN_GROUP)

    @property
    def finished(self) -> bool:
        """Whether VISSL's training in it came to its end."""
        return is_finished(self.folder)

    @property
    def data(self) -> str:
        """IMAGENET, DIGITS or OWN, as the studies have them; other data sets count as ImageNet."""
        return _data_of(self.config, self.settings)

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


def _data_of(config: str, settings: frozenset[str]) -> str:
    if config == DIGITS_CONFIG or not settings.isdisjoint(DIGITS_GROUPS):
        return DIGITS
    is_own = config == f"{PRETRAIN_GROUP}/{OWN_BASE}"
    return OWN if is_own or f"config/{PRETRAIN_GROUP}={OWN_BASE}" in settings else IMAGENET


def _sha256(path: Path) -> str:
    """`file_sha256`, once for all the runs that name the file: it may have gigabytes."""
    return _sha256_of(path.resolve(), file_state(path))


@functools.cache
def _sha256_of(path: Path, state: tuple[int, ...]) -> str:
    return file_sha256(path)


class Runs:
    """Runs, and which of them belong together.

    Attributes:
        refused: the folders whose numbers are refused, with reasons: something is wrong with them.
        left_out: what else of the folders is in no table, with reasons.
        repeats: runs of which another is the same experiment with the same seed, to that one.
    """

    def __init__(
        self, runs: Iterable[Run], refused: Mapping[Path, str], left_out: Mapping[Path, str]
    ) -> None:
        self.runs = list(runs)
        self.refused = refused
        self.left_out = left_out
        pretrainings = [run for run in self.runs if run.pretrains]
        # Checkpoints are large: they are hashed only where an evaluation's hash is to be found.
        evaluations = any(run.weights_sha256 for run in self.runs)
        self._by_folder = {run.folder.resolve(): run for run in pretrainings}
        self._by_checkpoint = {run.checkpoint_sha256: run for run in pretrainings if evaluations}
        self.repeats = self._repeats()

    def _repeats(self) -> dict[Run, Run]:
        """Runs with a result to those that are the same experiment with the same seed and were started
        last: a mean over both would be one over a seed that was drawn twice."""
        last: dict[tuple, Run] = {}
        repeats: dict[Run, Run] = {}
        # Without a seed, Detectron2 draws one for each.
        finished = [run for run in self.runs if run.result and run.seed >= 0]
        for run in sorted(finished, key=lambda run: run.starts[-1]["started"], reverse=True):
            same = (*_experiment(run), self._weights_identity(run))
            if last.setdefault(same, run) is not run:
                repeats[run] = last[same]
        return repeats

    def _weights_identity(self, run: Run) -> object:
        """What is the same for all weights of one experiment and seed: at the end of a pretraining that
        pretraining's, however often it was run; else the file's."""
        pretraining = self.pretraining_of(run)
        if pretraining and _is_of_its_end(run, pretraining):
            return _experiment(pretraining)
        return run.weights and (run.weights_sha256 or run.weights["path"])

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
        """Whether `run` has a result, not of a checkpoint from the middle of a pretraining, and is not
        the repetition of another."""
        pretraining = self.pretraining_of(run)
        ended = pretraining is None or _is_of_its_end(run, pretraining)
        return bool(run.result) and ended and run not in self.repeats

    def matching(
        self, config: str, overrides: Sequence[str] = (), *, departing: bool = False
    ) -> list[Run]:
        """The runs of `config` with `overrides` and no other settings, each once, by seed.

        Args:
            departing: whether those that depart from what was typed are among them; never where the
                paper's number may stand beside them.
        """
        settings = expected_settings(config, overrides)
        found = [
            run
            for run in self.runs
            if run.config == config
            and run.settings == settings
            and run not in self.repeats
            and (departing or not run.departures)
        ]
        return sorted(found, key=lambda run: run.seed)


def find_runs(folder: Path) -> Runs:
    """The runs in and below `folder`, by path. What is wrong with one of them concerns no other."""
    root = folder.resolve()
    runs: list[Run] = []
    refused: dict[Path, str] = {}
    left_out: dict[Path, str] = {}
    for found in run_folders(root, RESULTS, left_out.__setitem__):
        try:
            runs.append(read_run(found, root))
            for name, called in PICTURES.items():
                if (found / name).exists() and called not in runs[-1].pictures:
                    left_out[found / name] = "no PNG: it is not shown"
        except LeftOut as reason:
            left_out[found] = str(reason)
        except Refused as reason:
            refused[found] = str(reason)
        except Exception as error:  # whatever is in it must not cost the others their report
            refused[found] = f"cannot be read: {type(error).__name__}: {error}"
    for reasons in (_copies, _unreadable, functools.partial(_without_their_checkpoints, root)):
        refused |= reasons(runs)
        runs = [run for run in runs if run.folder not in refused]
    return Runs(runs, refused, left_out)


def _is_of_its_end(run: Run, pretraining: Run) -> bool:
    """Whether `run` evaluates what `pretraining` came to, not a checkpoint from its middle."""
    return pretraining.finished and pretraining.checkpoint_sha256 == run.weights_sha256


def _experiment(run: Run) -> tuple:
    """What a run is, but for the weights that it starts from."""
    data = run.starts[-1].get("data") or {}
    # Of one place others may be read, where a report of `own` was renamed and made anew.
    images = tuple(
        (str(split.get("paths")), split["images"], split.get("classes")) for split in data.values()
    )
    return run.config, run.settings, run.departures, run.seed, images


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


def _unreadable(runs: Sequence[Run]) -> dict[Path, str]:
    """Pretrainings whose checkpoint the disk does not give back, where its hash is needed."""
    refused: dict[Path, str] = {}
    for run in runs if any(run.weights_sha256 for run in runs) else ():
        try:
            _ = run.pretrains and run.checkpoint_sha256
        except OSError as error:
            refused[run.folder] = f"{CHECKPOINT} cannot be read: {error.strerror}"
    return refused


def _without_their_checkpoints(root: Path, runs: Sequence[Run]) -> dict[Path, str]:
    """Evaluations of a checkpoint that has since been overwritten: its numbers would be unknown."""
    folders = {run.folder.resolve() for run in runs}
    refused: dict[Path, str] = {}
    for run in runs:
        path, noted = run.weights_path, run.weights_sha256
        if not (run.result and path and noted and path.parent in folders and path.exists()):
            continue
        try:
            check_files(path.parent, root, [path.name])
        except Refused as reason:
            refused[run.folder] = f"the weights it evaluated, {path.parent}: {reason}"
            continue
        if _sha256(path) != noted:
            refused[run.folder] = f"{path} is no longer the file it evaluated: sha256 differs"
    return refused


def read_run(folder: Path, root: Path) -> Run:
    """The run in `folder`, below `root`; nothing outside `root` is read.

    Raises:
        Refused: its numbers lack the files that vouch for them, or are none.
        LeftOut: they are sound, and not a run's result.
    """
    check_files(folder, root, _FILES)
    starts = tuple(counted_starts(read_starts(folder)))
    commands = [start["command"] for start in starts]
    configs = list(dict.fromkeys(map(config_of, commands)))
    config = configs[0]
    if len(configs) > 1 or config is None:
        raise Refused(f"its starts ran {', '.join(map(str, configs))}: a run has one config")
    resolved = folder / resolved_config(starts)
    if _result_file(config).path(folder).exists() and not resolved.exists():
        raise Refused(f"no {resolved.name}: nothing tells how its numbers were computed")
    of_vissl = {}
    if resolved.exists() and not _detects(starts):  # it does not where a run has only just started
        of_vissl = read_resolved(resolved)
    result = _read_result(folder, config)
    if config.startswith(PRETRAIN_GROUP) and result and not (folder / CHECKPOINT).exists():
        raise Refused(f"no {CHECKPOINT}: the weights behind its numbers are gone")
    batch = None
    if has_batch(config) and of_vissl:
        batch = _global_batch(of_vissl, starts[-1]["processes"])
    settings = list(dict.fromkeys(settings_of(command, batch) for command in commands))
    if len(settings) > 1:
        reasons = "; then ".join(describe(each) or "none" for each in settings)
        raise Refused(f"its starts had different settings: {reasons}")
    departures = set(config_departures(config, commands[-1], of_vissl) if of_vissl else ())
    if config.startswith(PRETRAIN_GROUP):
        departures.update(begun_from(starts))
    data = _data_of(config, settings[0])
    if data == DIGITS:
        departures.update(not_the_digits(starts) if config.startswith(PRETRAIN_GROUP) else ())
    elif data == OWN:
        departures.update(own_images(starts))
    else:
        departures.update(data_departures(config, starts))
    run = Run(folder, starts, config, settings[0], result, frozenset(departures))
    if run.pretrains:
        drawn = {called: picture(folder, name) for name, called in PICTURES.items()}
        run = replace(
            run,
            history=read_curves(folder, LAST_STEP),
            pictures={called: path for called, path in drawn.items() if path},
        )
    return run


def resolved_config(starts: Sequence[Mapping[str, Any]]) -> str:
    """Name of the file in which Detectron2, or VISSL, leaves the config of a run."""
    return "config.yaml" if _detects(starts) else "train_config.yaml"


def _detects(starts: Sequence[Mapping[str, Any]]) -> bool:
    return DETECTION in starts[0]["command"]


def _result_file(config: str) -> ResultFile:
    row = rows_by_config().get(config)
    return row.result if row else PROBE


def _read_result(folder: Path, config: str) -> dict[str, float]:
    file = _result_file(config)
    try:
        refused, left_out = file.why_refused(folder), file.why_left_out(folder)
        result = file.read(folder)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"its result cannot be read: {type(error).__name__}: {error}") from error
    if refused:
        raise Refused(refused)
    if left_out:
        raise LeftOut(left_out)
    for name, value in result.items():
        # VISSL's SVM tool writes -1 where every class failed, and ends with exit status 0.
        if value is None or not (math.isfinite(value) and 0 <= value <= 100):
            raise Refused(f"its {name} is {value}: a failed run; percentages are in 0 to 100")
    return result


def has_batch(config: str) -> bool:
    """Whether a run of `config` is a training by VISSL, which depends on the global batch."""
    return config.startswith(PRETRAIN_GROUP) or _result_file(config).kind == "accuracy"


def _global_batch(resolved: Mapping[str, Any], processes: int) -> int:
    """Of a resolved config; `processes`: where the config itself does not say how many."""
    if distributed := resolved.get("DISTRIBUTED"):
        processes = distributed["NUM_NODES"] * distributed["NUM_PROC_PER_NODE"]
    return resolved["DATA"]["TRAIN"]["BATCHSIZE_PER_REPLICA"] * processes


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


def changed_settings(run: Run) -> frozenset[str]:
    """What a run changed of what its config computes, and its departures."""
    try:
        own = expected_settings(run.config)
    except HydraException:  # a config of the user's own
        own = frozenset()
    return (run.settings - own) | run.departures
