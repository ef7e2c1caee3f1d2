"""The paper's tables and figures, filled: which runs are which row."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from vissl_barlow.reproduce.overrides import PRETRAIN_GROUP
from vissl_barlow.reproduce.report_own import own_table
from vissl_barlow.reproduce.report_rows import (
    ReportRow,
    ReportTable,
    config_and_settings,
    config_name,
    per_figure,
    unused_label,
    weights_label,
)
from vissl_barlow.reproduce.results import reported
from vissl_barlow.reproduce.runs import LAST_STEP, Run, Runs, changed_settings, expected_settings
from vissl_barlow.reproduce.settings import WEIGHTS, describe
from vissl_barlow.reproduce.studies import (
    BASE,
    BASES,
    DIGITS,
    IMAGENET,
    LINEAR_EVALUATION,
    Experiment,
    load_study,
    pretraining,
    study_names,
)
from vissl_barlow.reproduce.transfer import OWN, Row, load_table, table_names
from vissl_barlow.run_files import UNTRAINED

TITLE_SUFFIX = {
    IMAGENET: "",
    DIGITS: " — digits, NOT ImageNet",
    OWN: " — own images, NOT ImageNet",
}
# The paper's pretraining, which Tables 1 to 4 evaluate; all have the same batch and gradients.
PAPERS = (
    *("resnet50_in1k_1000ep", "resnet50_in1k_1000ep_1gpu"),
    "resnet50_in1k_1000ep_8gpu_24gb",
)


def all_tables(found: Runs, papers: Sequence[str] = ()) -> list[ReportTable]:
    """Every table and figure of the paper in its order, the digits' that were run, and what is left.

    Args:
        papers: as in `report_table`.
    """
    names = ["figure1", *sorted([*table_names(), *study_names()], key=_in_the_papers_order)]
    imagenet = [report_table(name, IMAGENET, found, papers=papers) for name in names]
    # Where nobody pretrained on their own images, their studies need not be gone through.
    kinds = [DIGITS, *([OWN] if any(run.data == OWN for run in found.runs) else [])]
    small = [
        report_table(name, kind, found)
        for kind in kinds
        for name in names
        if name not in table_names()
    ]
    small.append(own_table(found))
    others = other_table(found, [*imagenet, *small])
    return [*imagenet, *(table for table in (*small, others) if table.measured)]


def report_table(
    name: str,
    data: str,
    found: Runs,
    overrides: Sequence[str] = (),
    linear: Sequence[str] = (),
    papers: Sequence[str] = (),
) -> ReportTable:
    """A table or figure, from the runs whose settings are its own and `overrides`.

    Args:
        name: "figure1", "own", a table of `transfer` or a study.
        data: IMAGENET, DIGITS or OWN; the tables of `transfer` are on ImageNet.
        overrides: hydra's or Detectron2's; Figure 1 has the runs of all settings.
        linear: a study's linear evaluations have these on top of Table 1's.
        papers: how the SHA-256 begins of weights that the user says are of the paper's pretraining.
    """
    if name == "figure1":
        return training_table(data, found)
    if name == OWN:
        return own_table(found)
    if name in table_names():
        return transfer_table(name, found, overrides, papers)
    return study_table(name, data, found, overrides, linear)


def _in_the_papers_order(name: str) -> tuple[bool, bool, str]:
    return not name.startswith("table"), not name.startswith("figure"), name


def transfer_table(
    name: str, found: Runs, overrides: Sequence[str] = (), papers: Sequence[str] = ()
) -> ReportTable:
    """One of Tables 1 to 4; `overrides` and `papers` as in `report_table`.

    The paper's row has the evaluations of the paper's pretraining; other weights have their own.
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
        changed = bool(_changed(row.config, overrides))
        # None is what weights from elsewhere, or none, come from.
        evaluated: set[Run | None] = {*found.runs, None} - in_studies
        if row.pretraining:
            evaluated = set(found.matching(f"{PRETRAIN_GROUP}/{row.pretraining}"))
        runs = [
            run
            for run in found.matching(row.config, overrides, departing=changed)
            if found.is_reportable(run) and found.pretraining_of(run) in evaluated
        ]
        if row in table.variants and not runs:
            continue  # none of the paper's cells
        own, others = _by_weights(row, runs, found, papers)
        reference, built_in = (
            paper["rows"].get(row.name, {}),
            paper.get("built_in", {}).get(row.name),
        )
        figures = list(reference)
        if changed:
            reference, built_in = {}, None
        # The paper's row is there whoever ran it; with other settings it is none of the paper's.
        if not own and not (others and (changed or row in table.variants)):
            own = [ReportRow(row.label, wanted=len(row.seeds))]
        for ours in own:
            rows += per_figure(ours, reference, built_in, [] if ours.runs else figures)
        for ours in others:
            rows += per_figure(ours, {})
    title = _with(table.title, table.rows[0].config, overrides)
    return ReportTable(name, IMAGENET, title, _with_distinct_labels(rows))


def _by_weights(
    row: Row, runs: Iterable[Run], found: Runs, papers: Sequence[str]
) -> tuple[list[ReportRow], list[ReportRow]]:
    """A row for each checkpoint that `runs` evaluate: the paper's first, then all others, whose labels
    say whose weights they are."""
    alike: dict[tuple[str | None, frozenset[str]], list[Run]] = {}
    for run in runs:
        alike.setdefault((run.weights_sha256, run.departures), []).append(run)
    configs = [
        f"{PRETRAIN_GROUP}/{each}" for each in ([row.pretraining] if row.pretraining else PAPERS)
    ]
    own: list[ReportRow] = []
    others: list[ReportRow] = []
    for (digest, departures), same in alike.items():
        pretrainings = found.pretrainings_of(same[:1])
        more = "".join(f", {each}" for each in sorted(departures))
        label = f"{row.label} ({weights_label(same[0], pretrainings)}){more}"
        ours = ReportRow(label, runs=tuple(same), pretrainings=pretrainings, wanted=len(row.seeds))
        if departures:
            others.append(ours)
        elif pretrainings:
            papers_own = pretrainings[0].config in configs and not changed_settings(pretrainings[0])
            (own if papers_own else others).append(ours)
        else:
            named = digest is not None and digest.startswith(tuple(papers))
            (own if named else others).append(ours)
    if len(own) == 1 and own[0].pretrainings:
        own = [replace(own[0], label=row.label)]
    return own, others


def study_table(
    name: str, data: str, found: Runs, overrides: Sequence[str] = (), linear: Sequence[str] = ()
) -> ReportTable:
    """A study of section 4 or 5 on `data`; `overrides` and `linear` as in `report_table`."""
    study = load_study(name, data)
    base = BASES[data]
    # Else as many processes as the machine has, and nobody knows the batch of all.
    typed = [*(["config.DISTRIBUTED.NUM_PROC_PER_NODE=1"] if data == OWN else []), *overrides]
    changed = (
        _changed(f"{PRETRAIN_GROUP}/{base}", typed)
        or _changed(LINEAR_EVALUATION, linear)
        # Which of them a run began with, its row says.
        or any(word.lstrip("+").startswith(f"{WEIGHTS}=") for word in overrides)
    )
    departing = bool(changed) or data != IMAGENET  # where no number of the paper's stands
    evaluations = found.matching(LINEAR_EVALUATION, linear, departing=departing)
    evaluations = list(filter(found.is_reportable, evaluations))
    # By row: one experiment, or one for each value of the study's `best_of`.
    tried: dict[tuple[str, str], list[tuple[Experiment, list[Run]]]] = {}
    for experiment in study.experiments:
        runs = _pretrainings(experiment, data, found, overrides, departing=departing)
        if data == IMAGENET:
            runs = [run for run in evaluations if found.pretraining_of(run) in runs]
        runs = [run for run in runs if run.result]
        for alike in _alike(runs, found):
            tried.setdefault((experiment.series, experiment.name), []).append((experiment, alike))
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
        for experiment, runs, departures in _best(candidates, found):
            label = f"{series} {point}".strip()
            if experiment.tried and runs:
                label += f" ({study.best_of} {experiment.tried})"
            label += "".join(f", {each}" for each in sorted(departures))
            row = ReportRow(label, runs=tuple(runs), series=series, point=point)
            if data == IMAGENET:
                row = replace(row, pretrainings=found.pretrainings_of(runs))
                rows += per_figure(row, {} if changed else experiment.paper)
            else:
                untrained = [r.result[UNTRAINED] for r in runs if UNTRAINED in r.result]
                reference = {"probe": fmean(untrained)} if untrained else {}
                rows += per_figure(row, reference, figures=("probe",))
    title = _with(study.title + TITLE_SUFFIX[data], f"{PRETRAIN_GROUP}/{base}", typed)
    title = _with(title, LINEAR_EVALUATION, linear, "evaluated with")
    compared = tuple(run for each in tried.values() for _, runs in each for run in runs)
    return ReportTable(name, data, title, _with_distinct_labels(rows), study.x_label, compared)


def _alike(runs: Sequence[Run], found: Runs) -> list[list[Run]]:
    """`runs` by what they and their pretrainings depart in, so that no mean mixes them; [[]] for
    none."""
    alike: dict[frozenset[str], list[Run]] = {}
    for run in runs:
        alike.setdefault(_all_departures(run, found), []).append(run)
    return list(alike.values()) or [[]]


def _all_departures(run: Run, found: Runs) -> frozenset[str]:
    return run.departures.union(*(each.departures for each in found.pretrainings_of([run])))


def _best(
    candidates: Iterable[tuple[Experiment, list[Run]]], found: Runs
) -> list[tuple[Experiment, list[Run], frozenset[str]]]:
    """The best of the `candidates` that depart alike, with what they depart in; one without runs only
    where there is no other."""
    best: dict[frozenset[str], tuple[Experiment, list[Run]]] = {}
    first, *_ = candidates = sorted(candidates, key=lambda each: _score(each[1]), reverse=True)
    for experiment, runs in candidates:
        if runs:
            best.setdefault(_all_departures(runs[0], found), (experiment, runs))
    # What departs in nothing comes first.
    ordered = sorted(best, key=describe)
    return [(*best[departures], departures) for departures in ordered] or [(*first, frozenset())]


def _score(runs: Sequence[Run]) -> float:
    """Mean of the first figure, by which the best is chosen; below all others without a run."""
    return fmean(next(iter(run.result.values())) for run in runs) if runs else -1.0


def _pretrainings(
    experiment: Experiment,
    data: str,
    found: Runs,
    overrides: Sequence[str] = (),
    *,
    departing: bool = False,
) -> list[Run]:
    config, *all_overrides = pretraining(experiment, data, Path(), more=overrides)
    return found.matching(config.removeprefix("config="), all_overrides, departing=departing)


def _of_studies(found: Runs, data: str) -> Iterator[tuple[Experiment, Run]]:
    """Every experiment of every study, with each of its pretrainings, on whatever images."""
    for name in study_names():
        for experiment in load_study(name, data).experiments:
            for run in _pretrainings(experiment, data, found, departing=True):
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
    curves: dict[str, Sequence[dict[str, Any]]] = {}
    pictures: dict[str, Path] = {}
    for run in found.runs:
        if not run.pretrains or run.data != data or run in ablated:
            continue
        if not run.history:
            continue
        label = unused_label(run, curves)
        curves[label] = run.history
        last = run.history[-1]
        values = {figure: last[key] for key, figure in LAST_STEP.items() if key in last}
        values |= {f"{name}, accuracy in %": value for name, value in run.result.items()}
        rows += [
            ReportRow(label, figure, values=(value,), number_format=".4g", runs=(run,))
            for figure, value in values.items()
        ]
        pictures |= {label + called: path for called, path in run.pictures.items()}
    title = "Figure 1, measured: the terms of the loss and C while training" + TITLE_SUFFIX[data]
    return ReportTable("figure1", data, title, tuple(rows), curves=curves, pictures=pictures)


def other_table(found: Runs, tables: Iterable[ReportTable]) -> ReportTable:
    """The evaluations that are in none of `tables`: other settings, or an unknown pretraining."""
    rows: list[ReportRow] = []
    for run in _in_none_of(tables, found):
        pretrainings = found.pretrainings_of([run])
        row = ReportRow(config_name(run), runs=(run,), pretrainings=pretrainings)
        rows += per_figure(row, {})
    title = "Other runs: not the paper's experiments"
    return ReportTable("others", IMAGENET, title, _with_distinct_labels(rows))


def _in_none_of(tables: Iterable[ReportTable], found: Runs) -> Iterator[Run]:
    """The evaluations with a result that no table has."""
    used: set[Run] = set()
    for table in tables:
        if table.name != "others":
            used.update(table.compared, *(row.runs for row in table.rows))
    for run in found.runs:
        if run.result and not run.pretrains and run not in used:
            yield run


def left_out(found: Runs, tables: Iterable[ReportTable]) -> dict[Path, str]:
    """The runs, and what else was found, whose numbers are in none of `tables` but the last, of others:
    the folder to the reason. Nothing is wrong with them."""
    reasons = {run.folder: _why_left_out(run, found) for run in _in_none_of(tables, found)}
    again = {
        run.folder: f"the same as {other.folder}, with the same seed {run.seed}: that one counts"
        for run, other in found.repeats.items()
    }
    without = {
        run.folder: f"{config_name(run)} without a result: it has not come to its end, or its end was "
        "not tested"
        for run in found.runs
        if not run.result and not run.pretrains
    }
    return {**found.left_out, **reasons, **again, **without}


def _why_left_out(run: Run, found: Runs) -> str:
    """Why an evaluation is in no table."""
    reasons = []
    if changed := changed_settings(run):
        reasons.append(f"with {_without_prefix(changed)}")
    for pretrained in found.pretrainings_of([run]):
        if not found.is_reportable(run):
            reasons.append(
                f"of a checkpoint from before the end of the training in {pretrained.folder}"
            )
        elif not reasons and (changed := changed_settings(pretrained)):
            reasons.append(f"of a pretraining with {_without_prefix(changed)}")
    return f"{config_name(run)} {', '.join(reasons)}: no experiment of the paper's".replace(
        " :", ":"
    )


def _without_prefix(settings: Iterable[str]) -> str:
    return describe(setting.removeprefix("config.") for setting in settings)
