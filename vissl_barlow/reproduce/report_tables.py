"""The paper's tables and figures, filled: which runs are which row."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from vissl_barlow.reproduce.overrides import PRETRAIN_GROUP
from vissl_barlow.reproduce.report_rows import (
    ReportRow,
    ReportTable,
    config_and_settings,
    config_name,
    evaluated_weights,
    per_figure,
    unused_label,
)
from vissl_barlow.reproduce.results import reported
from vissl_barlow.reproduce.runs import Run, Runs, expected_settings
from vissl_barlow.reproduce.settings import describe
from vissl_barlow.reproduce.studies import (
    BASE,
    DIGITS,
    DIGITS_BASE,
    IMAGENET,
    LINEAR_EVALUATION,
    Experiment,
    load_study,
    pretraining,
    study_names,
)
from vissl_barlow.reproduce.transfer import load_table, table_names
from vissl_barlow.run_files import FIGURE_FILE, read_history

TITLE_SUFFIX = {IMAGENET: "", DIGITS: " — digits, NOT ImageNet"}
# The pretrainings that Tables 1 to 4 may evaluate beside the paper's numbers.
PAPERS = ("resnet50_in1k_1000ep", "resnet50_in1k_1000ep_1gpu", BASE)
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


def all_tables(found: Runs) -> list[ReportTable]:
    """Every table and figure of the paper in its order, the digits' that were run, and what is left."""
    names = ["figure1", *sorted([*table_names(), *study_names()], key=_in_the_papers_order)]
    imagenet = [report_table(name, IMAGENET, found) for name in names]
    digits = [report_table(name, DIGITS, found) for name in names if name not in table_names()]
    others = other_table(found, [*imagenet, *digits])
    return [*imagenet, *(table for table in (*digits, others) if table.measured)]


def report_table(
    name: str, data: str, found: Runs, overrides: Sequence[str] = (), linear: Sequence[str] = ()
) -> ReportTable:
    """A table or figure, from the runs whose settings are its own and `overrides`.

    Args:
        name: "figure1", a table of `transfer` or a study.
        data: IMAGENET or DIGITS; the tables of `transfer` are on ImageNet.
        overrides: hydra's or Detectron2's; Figure 1 has the runs of all settings.
        linear: a study's linear evaluations have these on top of Table 1's.
    """
    if name == "figure1":
        return training_table(data, found)
    if name in table_names():
        return transfer_table(name, found, overrides)
    return study_table(name, data, found, overrides, linear)


def _in_the_papers_order(name: str) -> tuple[bool, bool, str]:
    return not name.startswith("table"), not name.startswith("figure"), name


def transfer_table(name: str, found: Runs, overrides: Sequence[str] = ()) -> ReportTable:
    """One of Tables 1 to 4; `overrides` as in `report_table`.

    Where several checkpoints were evaluated, each has rows of its own.
    """
    table, paper = load_table(name), reported(name)
    rows = [
        ReportRow(method, figure, reference=value)
        for method, figures in paper.get("others", {}).items()
        for figure, value in figures.items()
    ]
    # What a study evaluates is in its own table, and not in Table 1 again.
    in_studies = {run for _, run in _of_studies(found, IMAGENET)} if name == "table1" else set()
    for row in (*table.rows, *table.also, *table.variants):
        # None is what weights from elsewhere, or none, come from.
        evaluated: set[Run | None] = {*found.runs, None} - in_studies
        if row.pretraining:
            evaluated = set(found.matching(f"{PRETRAIN_GROUP}/{row.pretraining}"))
        by_checkpoint: dict[str | None, list[Run]] = {}
        for run in found.matching(row.config, overrides):
            if found.is_reportable(run) and found.pretraining_of(run) in evaluated:
                by_checkpoint.setdefault(run.weights_sha256, []).append(run)
        if row in table.variants and not by_checkpoint:
            continue  # none of the paper's cells
        for runs in by_checkpoint.values() or ([],):
            pretrainings = found.pretrainings_of(runs[:1])
            label = row.label
            if len(by_checkpoint) > 1:
                label += f" ({evaluated_weights(runs[0], pretrainings)})"
            ours = ReportRow(
                label, runs=tuple(runs), pretrainings=pretrainings, wanted=len(row.seeds)
            )
            reference, built_in = (
                paper["rows"].get(row.name, {}),
                paper.get("built_in", {}).get(row.name),
            )
            figures = list(reference)
            if _changed(row.config, overrides) or not all(map(_may_be_the_papers, pretrainings)):
                reference, built_in = {}, None
            rows += per_figure(ours, reference, built_in, [] if runs else figures)
    title = _with(table.title, table.rows[0].config, overrides)
    return ReportTable(name, IMAGENET, title, _with_distinct_labels(rows))


def _may_be_the_papers(pretraining: Run) -> bool:
    """Whether a pretraining is one of the paper's: its config, and nothing else than that."""
    papers = (f"{PRETRAIN_GROUP}/{name}" for name in PAPERS)
    return pretraining.config in papers and (
        pretraining.settings == expected_settings(pretraining.config) and not pretraining.departures
    )


def study_table(
    name: str, data: str, found: Runs, overrides: Sequence[str] = (), linear: Sequence[str] = ()
) -> ReportTable:
    """A study of section 4 or 5 on `data`; `overrides` and `linear` as in `report_table`."""
    study = load_study(name, data)
    evaluations = list(filter(found.is_reportable, found.matching(LINEAR_EVALUATION, linear)))
    # By row: one experiment, or one for each value of the study's `best_of`.
    tried: dict[tuple[str, str], list[tuple[Experiment, list[Run]]]] = {}
    for experiment in study.experiments:
        runs = _pretrainings(experiment, data, found, overrides)
        if data == IMAGENET:
            runs = [run for run in evaluations if found.pretraining_of(run) in runs]
        runs = [run for run in runs if run.result]
        tried.setdefault((experiment.series, experiment.name), []).append((experiment, runs))
    base = BASE if data == IMAGENET else DIGITS_BASE
    changed = _changed(f"{PRETRAIN_GROUP}/{base}", overrides) or _changed(LINEAR_EVALUATION, linear)
    # Of a series that is run by its name the paper reports nothing, and the baseline is another's too.
    shown = {
        experiment.series
        for candidates in tried.values()
        for experiment, runs in candidates
        if not experiment.by_name or (runs and experiment.overrides)
    }
    rows: list[ReportRow] = []
    for (series, point), candidates in tried.items():
        if series not in shown:
            continue
        experiment, runs = max(candidates, key=lambda candidate: _score(candidate[1]))
        label = f"{series} {point}".strip()
        if experiment.tried and runs:
            label += f" ({study.best_of} {experiment.tried})"
        row = ReportRow(label, runs=tuple(runs), series=series, point=point)
        if data == IMAGENET:
            row = replace(row, pretrainings=found.pretrainings_of(runs))
            rows += per_figure(row, {} if changed else experiment.paper)
        else:
            untrained = [r.result["untrained trunk"] for r in runs if "untrained trunk" in r.result]
            reference = {"probe": fmean(untrained)} if untrained else {}
            rows += per_figure(row, reference, figures=("probe",))
    title = _with(study.title + TITLE_SUFFIX[data], f"{PRETRAIN_GROUP}/{base}", overrides)
    title = _with(title, LINEAR_EVALUATION, linear, "evaluated with")
    compared = tuple(run for each in tried.values() for _, runs in each for run in runs)
    return ReportTable(name, data, title, _with_distinct_labels(rows), study.x_label, compared)


def _score(runs: Sequence[Run]) -> float:
    """Mean of the first figure, by which the best is chosen; below all others without a run."""
    return fmean(next(iter(run.result.values())) for run in runs) if runs else -1.0


def _pretrainings(
    experiment: Experiment, data: str, found: Runs, overrides: Sequence[str] = ()
) -> list[Run]:
    config, *all_overrides = pretraining(experiment, data, Path(), more=overrides)
    return found.matching(config.removeprefix("config="), all_overrides)


def _of_studies(found: Runs, data: str) -> Iterator[tuple[Experiment, Run]]:
    """Every experiment of every study, with each of its pretrainings."""
    for name in study_names():
        for experiment in load_study(name, data).experiments:
            for run in _pretrainings(experiment, data, found):
                yield experiment, run


def _with(title: str, config: str, overrides: Sequence[str], how: str = "with") -> str:
    """The title with the settings that make the numbers others than the paper's protocol's."""
    changed = describe(_changed(config, overrides))
    return f"{title}, {how} {changed}" if changed else title


def _changed(config: str, overrides: Sequence[str]) -> frozenset[str]:
    """What `overrides` change of what `config` computes. What they change is not the paper's
    experiment, and the paper's number does not stand beside it."""
    return expected_settings(config, overrides) - expected_settings(config)


def _with_distinct_labels(rows: Iterable[ReportRow]) -> tuple[ReportRow, ...]:
    """`rows`, where several of one label and figure are told apart by their config and settings, seed
    or folder: the shortest of these that does."""
    rows = list(rows)
    for distinguish in (_by_config, _by_seed, _by_folder):
        counted = Counter((row.label, row.figure) for row in rows)
        rows = [
            distinguish(row) if counted[row.label, row.figure] > 1 and row.runs else row
            for row in rows
        ]
    return tuple(rows)


def _by_config(row: ReportRow) -> ReportRow:
    label = config_and_settings(row.runs[0])
    if row.pretrainings:
        label += f" of {config_and_settings(row.pretrainings[0])}"
    repeated = label.startswith(row.label)
    return replace(row, label=label if repeated else f"{row.label}: {label}")


def _by_seed(row: ReportRow) -> ReportRow:
    pretrained = "".join(f" of seed {run.seed}" for run in row.pretrainings[:1])
    seeds = ", ".join(str(run.seed) for run in row.runs)
    return replace(row, label=f"{row.label}, seed {seeds}{pretrained}")


def _by_folder(row: ReportRow) -> ReportRow:
    return replace(row, label=f"{row.label}, {row.runs[0].folder}")


def training_table(data: str, found: Runs) -> ReportTable:
    """Figure 1, measured: how the terms and C change in each pretraining that is no ablation."""
    ablated = {
        run
        for experiment, run in _of_studies(found, data)
        if experiment.config != BASE or experiment.overrides
    }
    rows: list[ReportRow] = []
    curves: dict[str, list[dict[str, Any]]] = {}
    pictures = {}
    for run in found.runs:
        if not run.pretrains or run.on_digits != (data == DIGITS) or run in ablated:
            continue
        try:
            history = read_history(run.folder)
        except FileNotFoundError:
            continue
        if not history:
            continue
        label = unused_label(run, curves)
        curves[label] = history
        last = history[-1]
        values = {figure: last[key] for key, figure in LAST_STEP.items() if key in last}
        values |= {f"{name}, accuracy in %": value for name, value in run.result.items()}
        rows += [
            ReportRow(label, figure, values=(value,), number_format=".4g", runs=(run,))
            for figure, value in values.items()
        ]
        if (run.folder / FIGURE_FILE).exists():
            pictures[label] = run.folder / FIGURE_FILE
    title = "Figure 1, measured: the terms of the loss and C while training" + TITLE_SUFFIX[data]
    return ReportTable("figure1", data, title, tuple(rows), curves=curves, pictures=pictures)


def other_table(found: Runs, tables: Iterable[ReportTable]) -> ReportTable:
    """The evaluations that are in none of `tables`: other settings, or an unknown pretraining."""
    used: set[Run] = set()
    for table in tables:
        used.update(table.compared, *(row.runs for row in table.rows))
    rows: list[ReportRow] = []
    for run in found.runs:
        if run.result and not run.pretrains and run not in used:
            pretrainings = found.pretrainings_of([run])
            row = ReportRow(config_name(run), runs=(run,), pretrainings=pretrainings)
            rows += per_figure(row, {})
    title = "Other runs: not the paper's experiments"
    return ReportTable("others", IMAGENET, title, _with_distinct_labels(rows))
