"""The table of `reproduce own`: evaluations on one's own images, beside the untrained trunk's."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from vissl_barlow.reproduce.report_rows import ReportRow, ReportTable, per_figure, weights_label
from vissl_barlow.reproduce.runs import Run, Runs
from vissl_barlow.reproduce.transfer import OWN, load_table

TITLE = "Own images, NOT the paper's"
_SHARE = re.compile(r"config\.DATA\.TRAIN\.DATASET_NAMES=\[own_(.+)pct\]")


class _Alike(NamedTuple):
    """What evaluations of different weights must have in common to stand in one row."""

    config: str
    settings: frozenset[str]
    departures: frozenset[str]
    images: str


def own_table(found: Runs) -> ReportTable:
    """Every evaluation on one's own images, a row for each checkpoint and settings; the untrained
    trunk, where it was evaluated in the same way, is the reference."""
    rows_of = {row.config: row for row in load_table(OWN).rows}
    own = [run for run in found.runs if run.config in rows_of]
    alike: dict[_Alike, dict[str | None, list[Run]]] = {}
    for run in filter(found.is_reportable, own):
        key = _Alike(run.config, run.settings, run.departures, _tested_on(run))
        alike.setdefault(key, {}).setdefault(run.weights_sha256, []).append(run)
    several_folders = len({key.images for key in alike}) > 1
    several_weights = len({run.weights_sha256 for run in own} - {None}) > 1
    order = list(rows_of)
    rows: list[ReportRow] = []
    for key in sorted(
        alike, key=lambda each: (order.index(each.config), _share(each), each.images)
    ):
        label = rows_of[key.config].label
        if share := _share(key):
            label = f"{share:g}% {label}"
        if several_folders:
            label += f", {key.images}"
        untrained = alike[key].pop(None, [])
        names = dict.fromkeys(name for run in untrained for name in run.result)
        reference = {name: fmean(run.result[name] for run in untrained) for name in names}
        for runs in alike[key].values() or [[]]:
            pretrainings = found.pretrainings_of(runs[:1])
            whose = f" ({weights_label(runs[0], pretrainings)})" if several_weights and runs else ""
            row = ReportRow(label + whose, runs=tuple(runs), pretrainings=pretrainings)
            rows += per_figure(row, reference)
    title = ": ".join([TITLE, *_counts(own)])
    return ReportTable(OWN, OWN, title, tuple(rows), compared=tuple(own))


def _share(key: _Alike) -> float:
    """Percent of the labels that are fine-tuned on; 0 for other evaluations."""
    found = [float(match[1]) for word in key.settings if (match := _SHARE.fullmatch(word))]
    return found[0] if found else 0


def _data(run: Run, split: str) -> dict:
    return (run.starts[-1].get("data") or {}).get(split) or {}


def _tested_on(run: Run) -> str:
    """How many images a run was tested on, and the folder of their lists, in which others' may have
    been when another run was made: whoever renames a report makes room for the next."""
    test = _data(run, "test")
    folder = Path(next(iter(test.get("paths", ())), "")).parent
    return f"{test.get('images', 0):,} images of {folder}"


def _counts(runs: Iterable[Run]) -> Iterator[str]:
    """How many images there are, where all runs are of the same."""
    runs = list(runs)
    tested = {_tested_on(run) for run in runs}
    trained = max((_data(run, "train").get("images", 0) for run in runs), default=0)
    if len(tested) == 1 and trained:
        count = _data(runs[0], "test").get("images", 0)
        yield f"{trained:,} training and {count:,} test images"
