"""What the report is made of: tables and figures as rows of numbers, with the runs behind them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vissl_barlow.reproduce.departures import file_label
from vissl_barlow.reproduce.overrides import PRETRAIN_GROUP
from vissl_barlow.reproduce.runs import Run, changed_settings
from vissl_barlow.reproduce.settings import describe
from vissl_barlow.reproduce.studies import IMAGENET


@dataclass(frozen=True)
class ReportRow:
    """One number of a table or figure.

    Attributes:
        label: the experiment's.
        figure: what is measured, as "top-1".
        reference: what the paper reports; on other images than its own, the untrained trunk's.
        built_in: what VISSL reports for its own Barlow Twins.
        values: our numbers, one of each run.
        number_format: of our number; the default is for percentages.
        runs: those it was measured in, seed by seed; pretrainings: those of the weights evaluated.
        wanted: how many runs the protocol asks for.
        series, point: where a figure has it.
    """

    label: str
    figure: str = "top-1"
    reference: float | None = None
    built_in: float | None = None
    values: tuple[float, ...] = ()
    number_format: str = ".1f"
    runs: tuple[Run, ...] = ()
    pretrainings: tuple[Run, ...] = ()
    wanted: int = 1
    series: str = ""
    point: str = ""

    @property
    def ours(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        if self.ours is None or self.reference is None:
            return None
        return self.ours - self.reference

    @property
    def departures(self) -> str:
        """What the runs and their pretrainings depart in, as a label ends; "" for nothing."""
        runs = (*self.runs[:1], *self.pretrainings[:1])
        return "".join(f", {each}" for each in sorted(set().union(*(r.departures for r in runs))))

    @property
    def measured(self) -> str:
        """Our number as a table shows it: with its spread, and how many runs of those wanted."""
        if self.ours is None:
            return ""
        text = f"{self.ours:{self.number_format}}"
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
        evaluated = "" if first.pretrains else f" of {evaluated_weights(first, self.pretrainings)}"
        return config_and_settings(first) + evaluated

    @property
    def checkpoints(self) -> list[str]:
        """Hashes of the pretrained weights."""
        hashes = (
            run.checkpoint_sha256 if run.pretrains else run.weights_sha256 for run in self.runs
        )
        return list(dict.fromkeys(filter(None, hashes)))

    @property
    def hardware(self) -> str:
        return ", ".join(dict.fromkeys(run.hardware for run in (*self.pretrainings, *self.runs)))

    @property
    def hours(self) -> str:
        """Of the pretraining and of the evaluation, the mean of the runs."""
        stages = filter(None, (self.pretrainings, self.runs))
        means = [fmean(run.hours for run in runs) for runs in stages]
        return " + ".join(f"{hours:.2f}" if hours < 10 else f"{hours:.0f}" for hours in means)


@dataclass(frozen=True)
class ReportTable:
    """A table or figure.

    Attributes:
        name: "table1" to "table7", "figure1" to "figure5", "objectives", "own", "others".
        data: IMAGENET, DIGITS or "own".
        x_label: of a figure's first panel.
        compared: all runs of a study, also those of its `best_of` that were not the best.
        curves: Figure 1's, run to logged steps.
        pictures: that runs left, by a name for each.
    """

    name: str
    data: str
    title: str
    rows: tuple[ReportRow, ...]
    x_label: str = ""
    compared: tuple[Run, ...] = ()
    curves: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict)
    pictures: Mapping[str, Path] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        return any(row.values for row in self.rows)

    @property
    def stem(self) -> str:
        """Of its files, below the report's folder."""
        alone = self.data in (IMAGENET, self.name)
        return self.name if alone else f"{self.data}/{self.name}"

    @property
    def reference_name(self) -> str:
        return "paper" if self.data == IMAGENET else "untrained trunk"


def per_figure(
    row: ReportRow,
    reference: Mapping[str, float],
    built_in: Mapping[str, float] | None = None,
    figures: Iterable[str] = (),
) -> Iterator[ReportRow]:
    """`row` once for each of `figures`, with the values of its runs.

    By default those that the reference or the runs have; the row's own where there is none.
    """
    result = row.runs[0].result if row.runs else {}
    for figure in figures or dict.fromkeys([*reference, *result]) or (row.figure,):
        yield replace(
            row,
            figure=figure,
            reference=reference.get(figure),
            built_in=(built_in or {}).get(figure),
            values=tuple(run.result[figure] for run in row.runs if figure in run.result),
        )


def evaluated_weights(run: Run, pretrainings: Sequence[Run]) -> str:
    """What an evaluation evaluates: a pretraining, by its config, or a file from elsewhere."""
    if pretrainings:
        return config_and_settings(pretrainings[0])
    return run.weights_path.name if run.weights_path else "the untrained trunk"


def weights_label(run: Run, pretrainings: Sequence[Run]) -> str:
    """`evaluated_weights`, and of a file from elsewhere what tells it from others of its name."""
    if pretrainings or run.weights is None:
        return evaluated_weights(run, pretrainings)
    return file_label(run.weights)


def config_name(run: Run) -> str:
    """The config of a run, without the folders in front of the plugin's own."""
    return run.config.removeprefix(f"{PRETRAIN_GROUP}/").removeprefix("benchmark/vissl_barlow/")


def config_and_settings(run: Run) -> str:
    """The config of a run, and what the run changed of what it computes."""
    changed = changed_settings(run)
    text = describe(setting.removeprefix("config.") for setting in changed)
    return f"{config_name(run)} with {text}" if changed else config_name(run)


def unused_label(run: Run, used: Iterable[str]) -> str:
    """What to call a run beside others: the shortest of its names that is not among `used`."""
    ending = "" if run.finished else ", unfinished"
    seeded = f"{config_and_settings(run)}, seed {run.seed}"
    names = [config_and_settings(run), seeded, f"{seeded}, {run.folder}"]
    # Those of a study differ in its settings, from one another and the config.
    if run.data != IMAGENET:
        names.insert(0, config_name(run))
    return next(f"{name}{ending}" for name in names if f"{name}{ending}" not in used)
