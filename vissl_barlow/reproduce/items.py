"""The paper's tables and figures as data: their rows, the paper's numbers, and the runs behind ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from vissl_barlow.reproduce import ablations, transfer
from vissl_barlow.reproduce.results import reported
from vissl_barlow.reproduce.runs import (
    Run,
    describe,
    expected_settings,
    result_rows,
)
from vissl_barlow.run_files import FIGURE_FILE, read_history

IMAGENET, DIGITS = "imagenet", "digits"
OF = {IMAGENET: "", DIGITS: " — digits, NOT ImageNet"}  # behind a title
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


@dataclass(frozen=True)
class Line:
    """One number of a table or figure.

    Attributes:
        label: the experiment's.
        figure: what is measured, as "top-1".
        reference: what the paper reports; on the digits, the untrained trunk's.
        built_in: what VISSL reports for its own Barlow Twins.
        runs: those it was measured in, seed by seed; pretrainings: those of the weights evaluated.
        wanted: how many runs the protocol asks for.
        series, point: where a figure has it.
        value: in place of the runs' results, of what is no percentage.
    """

    label: str
    figure: str
    reference: float | None = None
    built_in: float | None = None
    runs: tuple[Run, ...] = ()
    pretrainings: tuple[Run, ...] = ()
    wanted: int = 1
    series: str = ""
    point: str = ""
    value: float | None = None

    @property
    def values(self) -> tuple[float, ...]:
        if self.value is not None:
            return (self.value,)
        return tuple(run.result[self.figure] for run in self.runs)

    @property
    def ours(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        return None if None in (self.ours, self.reference) else self.ours - self.reference

    @property
    def measured(self) -> str:
        """The number as a table shows it: with its spread, and how many runs of those wanted."""
        if self.ours is None:
            return ""
        text = f"{self.ours:.1f}" if self.value is None else f"{self.ours:.4g}"
        if self.spread is not None:
            text += f" ± {self.spread:.1f}"
        if self.wanted > 1:
            text += f" ({len(self.values)} of {self.wanted} runs)"
        elif len(self.values) > 1:
            text += f" ({len(self.values)} runs)"
        return text

    @property
    def config(self) -> str:
        """Of the runs, with what they changed, and of the pretraining behind an evaluation."""
        if not self.runs:
            return ""
        first = self.runs[0]
        evaluated = "" if first.pretrains else f" of {_weights(first, self.pretrainings)}"
        return config_and_settings(first) + evaluated

    @property
    def checkpoints(self) -> list[str]:
        """Hashes of the pretrained weights."""
        hashes = [run.checkpoint_sha256 if run.pretrains else _hash(run) for run in self.runs]
        return list(dict.fromkeys(filter(None, hashes)))

    @property
    def hardware(self) -> str:
        return _joined(run.hardware for run in (*self.pretrainings, *self.runs))

    @property
    def hours(self) -> str:
        """Of the pretraining and of the evaluation, the mean of the runs."""
        parts = [
            fmean(run.hours for run in runs) for runs in (self.pretrainings, self.runs) if runs
        ]
        return " + ".join(f"{hours:.2f}" if hours < 10 else f"{hours:.0f}" for hours in parts)


def _hash(run: Run) -> str | None:
    return run.weights and run.weights["sha256"]


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _weights(run: Run, pretrainings: Sequence[Run]) -> str:
    """What an evaluation evaluates: a pretraining, by its config, or a file from elsewhere."""
    if pretrainings:
        return config_and_settings(pretrainings[0])
    return Path(run.weights["path"]).name if run.weights else "the untrained trunk"


def config_name(run: Run) -> str:
    return run.config.removeprefix(f"{ablations.GROUP}/").removeprefix("benchmark/vissl_barlow/")


def config_and_settings(run: Run) -> str:
    """The config of a run, and what the run changed of what it computes."""
    changed = run.settings - expected_settings(run.config)
    text = describe(setting.removeprefix("config.") for setting in changed)
    return f"{config_name(run)} with {text}" if changed else config_name(run)


def _labels(run: Run) -> Iterator[str]:
    """What to call a run beside others, from the shortest name to one that no other run has."""
    ending = "" if run.finished else ", unfinished"
    yield config_name(run) + ending
    yield config_and_settings(run) + ending
    yield f"{config_and_settings(run)}, seed {run.seed}{ending}"
    yield f"{config_and_settings(run)}, seed {run.seed}, {run.folder}{ending}"


@dataclass(frozen=True)
class Item:
    """A table or figure.

    Attributes:
        name: "table1" to "table7", "figure1" to "figure5", "objectives", "others".
        data: IMAGENET or DIGITS.
        x_label: of a figure's first panel.
        curves: Figure 1's, run to logged steps.
        pictures: that runs left, by a name for each.
    """

    name: str
    data: str
    title: str
    lines: tuple[Line, ...]
    x_label: str = ""
    curves: dict[str, list[dict]] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        return any(line.values for line in self.lines)

    @property
    def stem(self) -> str:
        """Of its files, below the report's folder."""
        return self.name if self.data == IMAGENET else f"{self.data}/{self.name}"

    @property
    def reference_name(self) -> str:
        return "paper" if self.data == IMAGENET else "untrained trunk"


class Runs:
    """Runs, and which of them belong together."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        self.used: set[Run] = set()
        pretrainings = [run for run in runs if run.pretrains]
        self.by_folder = {run.folder.resolve(): run for run in pretrainings}
        evaluations = any(_hash(run) for run in runs)  # without one there is nothing to hash for
        self.by_checkpoint = {run.checkpoint_sha256: run for run in pretrainings if evaluations}

    def pretraining_of(self, run: Run) -> Run | None:
        """The pretraining that `run` evaluates a checkpoint of, if it is among them."""
        if _hash(run) is None:
            return None
        folder = Path(run.weights["path"]).parent
        return self.by_checkpoint.get(_hash(run)) or self.by_folder.get(folder)

    def pretrainings_of(self, runs: Iterable[Run]) -> tuple[Run, ...]:
        """`pretraining_of` each, as far as they are known."""
        return tuple(filter(None, map(self.pretraining_of, runs)))

    def counts(self, run: Run) -> bool:
        """Whether `run` has a result, and not of a checkpoint from the middle of a pretraining."""
        pretraining = self.pretraining_of(run)
        ended = pretraining is None or (
            pretraining.finished and pretraining.checkpoint_sha256 == _hash(run)
        )
        return run.result is not None and ended

    def of(self, config: str, overrides: Sequence[str] = ()) -> list[Run]:
        """The runs of `config` with `overrides` and no other settings, by seed."""
        settings = expected_settings(config, overrides)
        found = [run for run in self.runs if run.config == config and run.settings == settings]
        return sorted(found, key=lambda run: run.seed)


def transfer_item(name: str, found: Runs, overrides: Sequence[str] = ()) -> Item:
    """One of Tables 1 to 4, of the runs that have `overrides` on top of its configs."""
    table, paper = transfer.load_table(name), reported(name)
    lines = [
        Line(method, figure, value)
        for method, figures in paper.get("others", {}).items()
        for figure, value in figures.items()
    ]
    rows = {row.group: row for row in table.rows}
    configs = {row.group: config for config, row in result_rows().items() if row.group in rows}
    seeds = {group: sum(row.group == group for row in table.rows) for group in rows}
    wanted = [(group, row.label, group, None) for group, row in rows.items()]
    wanted += [
        (also["name"], also["label"], also["row"], also["pretraining"]) for also in table.also
    ]
    # Experiments of a study have their linear evaluation there.
    elsewhere = {run for _, run in _of_studies(found, IMAGENET)} if name == "table1" else set()
    for row_name, label, group, pretraining in wanted:
        here = set(found.of(f"{ablations.GROUP}/{pretraining}")) if pretraining else None
        by_checkpoint: dict[str | None, list[Run]] = {}
        for run in found.of(configs[group], overrides):
            pretrained = found.pretraining_of(run)
            belongs = pretrained not in elsewhere if here is None else pretrained in here
            if found.counts(run) and belongs:
                by_checkpoint.setdefault(_hash(run), []).append(run)
        built_in = paper.get("built_in", {}).get(row_name, {})
        for runs in by_checkpoint.values() or ([],):
            pretrainings = found.pretrainings_of(runs[:1])
            several = f" ({_weights(runs[0], pretrainings)})" if len(by_checkpoint) > 1 else ""
            lines += _lines(
                found,
                label + several,
                paper["rows"][row_name],
                runs,
                pretrainings,
                built_in=built_in,
                wanted=seeds[group],
            )
    title = _with(table.title, next(iter(configs.values())), overrides)
    return Item(name, IMAGENET, title, tuple(lines))


def _lines(
    found: Runs,
    label: str,
    paper: dict[str, float],
    runs: Sequence[Run],
    pretrainings: tuple[Run, ...],
    *,
    built_in: dict[str, float] | None = None,
    **options,
) -> Iterator[Line]:
    """One line for each figure that the paper reports or a run has."""
    found.used |= {*runs, *pretrainings}
    figures = dict.fromkeys([*paper, *(runs[0].result if runs else ())])
    for figure in figures or ("top-1",):
        yield Line(
            label,
            figure,
            paper.get(figure),
            (built_in or {}).get(figure),
            tuple(runs),
            pretrainings,
            **options,
        )


def _of_studies(found: Runs, data: str) -> Iterator[tuple[ablations.Experiment, Run]]:
    """Every experiment of every study, with each of its pretrainings."""
    for name in ablations.study_names():
        for experiment in ablations.load_study(name, data)[1]:
            for run in found.of(*_command(experiment, data)):
                yield experiment, run


def _command(experiment: ablations.Experiment, data: str) -> tuple[str, list[str]]:
    """The config of an experiment's pretraining, and the overrides."""
    config, *overrides = ablations.pretraining(experiment, data, Path())
    return config.removeprefix("config="), overrides


def study_item(
    name: str,
    data: str,
    found: Runs,
    overrides: Sequence[str] = (),
    linear: Sequence[str] = (),
) -> Item:
    """A study of section 4 or 5 on `data`, of the runs that have `overrides` on top of its own, and
    `linear` on top of the linear evaluation's."""
    study, experiments = ablations.load_study(name, data)
    best: dict[tuple[str, str], tuple[ablations.Experiment, list[Run]]] = {}
    for experiment in experiments:
        config, own = _command(experiment, data)
        pretrainings = found.of(config, [*own, *overrides])
        runs = [run for run in pretrainings if run.result]
        if data == IMAGENET:
            runs = [
                run
                for run in found.of(ablations.LINEAR_EVALUATION, linear)
                if found.counts(run) and found.pretraining_of(run) in pretrainings
            ]
        found.used |= {*runs, *pretrainings}
        point = experiment.series, experiment.name
        if point not in best or _score(runs) > _score(best[point][1]):
            best[point] = experiment, runs
    lines = []
    for (series, point), (experiment, runs) in best.items():
        label = f"{series} {point}".strip()
        if experiment.tried and runs:
            label += f" ({study['best_of']['name']} {experiment.tried})"
        place = {"series": series, "point": point}
        if data == DIGITS:
            untrained = [r.result["untrained trunk"] for r in runs if "untrained trunk" in r.result]
            reference = fmean(untrained) if untrained else None
            lines.append(Line(label, "probe", reference, None, tuple(runs), **place))
            continue
        pretrainings = found.pretrainings_of(runs)
        lines += _lines(found, label, dict(experiment.paper), runs, pretrainings, **place)
    title = study["title"] + OF[data]
    base = ablations.BASE if data == IMAGENET else ablations.DIGITS_BASE
    title = _with(title, f"{ablations.GROUP}/{base}", overrides)
    title = _with(title, ablations.LINEAR_EVALUATION, linear, "evaluated with")
    return Item(name, data, title, tuple(lines), study.get("x_label", ""))


def _score(runs: Sequence[Run]) -> float:
    return fmean(next(iter(run.result.values())) for run in runs) if runs else -1.0


def _with(title: str, config: str, overrides: Sequence[str], how: str = "with") -> str:
    """The title with the settings that make the numbers others than the paper's protocol's."""
    changed = describe(expected_settings(config, overrides) - expected_settings(config))
    return f"{title}, {how} {changed}" if changed else title


def training_item(data: str, found: Runs) -> Item:
    """Figure 1, measured: how the terms and C change in each pretraining that is no ablation."""
    ablated = {
        run
        for experiment, run in _of_studies(found, data)
        if experiment.config != ablations.BASE or experiment.overrides
    }
    lines, curves, pictures = [], {}, {}
    for run in found.runs:
        if not run.pretrains or run.on_digits != (data == DIGITS) or run in ablated:
            continue
        found.used.add(run)
        try:
            history = read_history(run.folder)
        except FileNotFoundError:
            history = []
        if not history:
            continue
        label = next(label for label in _labels(run) if label not in curves)
        curves[label] = history
        lines += [
            Line(label, figure, runs=(run,), value=history[-1][key])
            for key, figure in LAST_STEP.items()
            if key in history[-1]
        ]
        lines += [
            Line(label, f"{name}, accuracy in %", runs=(run,), value=accuracy)
            for name, accuracy in (run.result or {}).items()
        ]
        if (run.folder / FIGURE_FILE).exists():
            pictures[label] = run.folder / FIGURE_FILE
    title = "Figure 1, measured: the terms of the loss and C while training" + OF[data]
    return Item("figure1", data, title, tuple(lines), curves=curves, pictures=pictures)


def other_item(found: Runs) -> Item:
    """The results that are no row of the paper's: other settings, or an unknown pretraining."""
    lines = [
        Line(
            config_name(run),
            figure,
            runs=(run,),
            pretrainings=found.pretrainings_of([run]),
        )
        for run in found.runs
        if run.result and run not in found.used
        for figure in run.result
    ]
    return Item("others", IMAGENET, "Other runs: not the paper's settings", tuple(lines))


def all_items(found: Runs) -> list[Item]:
    """Every table and figure of the paper in its order, the digits' that were run, and what is left."""
    studies = ablations.study_names()
    imagenet = {name: transfer_item(name, found) for name in transfer.table_names()}
    imagenet |= {name: study_item(name, IMAGENET, found) for name in studies}
    imagenet["figure1"] = training_item(IMAGENET, found)
    names = sorted(imagenet, key=_in_the_papers_order)
    digits = [
        training_item(DIGITS, found),
        *(study_item(n, DIGITS, found) for n in sorted(studies, key=_in_the_papers_order)),
    ]
    others = other_item(found)
    return [
        *(imagenet[name] for name in names),
        *(item for item in (*digits, others) if item.measured),
    ]


def _in_the_papers_order(name: str) -> tuple[int, str]:
    prefixes = ("figure1", "table", "figure", "")
    return next(i for i, prefix in enumerate(prefixes) if name.startswith(prefix)), name
