"""The paper's tables and figures from the runs there are: Markdown, CSV, pictures and one page.

    python -m vissl_barlow.reproduce report RUNS_DIR --out report

An experiment's number counts where its run's files vouch for it (see `runs`); what nobody ran stays
empty. Numbers of the digits stand apart from ImageNet's, and so do those of runs with other settings.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Table as ConsoleTable

from vissl_barlow.atomic_files import write_text_atomically
from vissl_barlow.figures import draw_accuracies, draw_comparison, draw_curves
from vissl_barlow.reproduce import transfer
from vissl_barlow.reproduce.items import (
    DIGITS,
    IMAGENET,
    Item,
    Runs,
    all_items,
    config_and_settings,
    study_item,
    transfer_item,
)
from vissl_barlow.reproduce.runs import Run, find_runs

SHOWN_OF_A_HASH = 12
NUMBERS = ("VISSL's built-in", "ours", "difference")
BEHIND_THEM = ("config", "checkpoint", "hardware", "hours")


def cells(item: Item) -> tuple[list[str], list[list[str]]]:
    """Header and rows of an item as text.

    Of the columns only "ours" may be empty; what lies behind several numbers stands beside the first.
    """
    header = ["", "figure", item.reference_name, *NUMBERS, *BEHIND_THEM]
    rows = []
    for previous, line in zip((None, *item.lines), item.lines):
        repeated = previous is not None and (previous.label, previous.runs) == (
            line.label,
            line.runs,
        )
        behind = [
            line.config,
            ", ".join(digest[:SHOWN_OF_A_HASH] for digest in line.checkpoints),
            line.hardware,
            line.hours,
        ]
        places = 2 if item.data == IMAGENET else 1
        reference, built_in = (_reported(v, places) for v in (line.reference, line.built_in))
        numbers = [reference, built_in, line.measured]
        difference = "" if line.difference is None else f"{line.difference:+.1f}"
        rows.append(
            [line.label, line.figure, *numbers, difference, *([""] * 4 if repeated else behind)]
        )
    keep = [
        i for i, name in enumerate(header) if i < 2 or name == "ours" or any(row[i] for row in rows)
    ]
    return [header[i] for i in keep], [[row[i] for i in keep] for row in rows]


def _reported(value: float | None, places: int) -> str:
    """A number with at most so many decimals, and at least one."""
    if value is None:
        return ""
    text = f"{value:.{places}f}"
    return text.removesuffix("0") if places > 1 else text


def markdown(item: Item) -> str:
    header, rows = cells(item)
    table = [header, ["---"] * len(header), *rows]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]
    return "\n".join([f"**{item.title}**", "", *lines, ""])


CSV_HEADER = (
    *(
        "item",
        "data",
        "label",
        "figure",
        "paper",
        "untrained_trunk",
        "built_in",
        "ours",
        "sd",
        "runs",
    ),
    *("difference", "config", "checkpoint_sha256", "hardware", "hours", "seeds", "folders"),
)


def csv_rows(item: Item, root: Path) -> Iterator[tuple]:
    """An item's lines in full precision, in the order of `CSV_HEADER`; folders are below `root`."""
    for line in item.lines:
        on_digits = item.data == DIGITS
        yield (
            *(item.name, item.data, line.label, line.figure),
            *((None, line.reference) if on_digits else (line.reference, None)),
            *(line.built_in, line.ours, line.spread, len(line.runs)),
            *(line.difference, line.config, " ".join(line.checkpoints), line.hardware, line.hours),
            " ".join(str(run.seed) for run in line.runs),
            ";".join(_relative(run.folder, root) for run in line.runs),
        )


def write_item(item: Item, out: Path, root: Path) -> dict[str, Path]:
    """Writes an item's Markdown, CSV and picture below `out`; returns its pictures, by what they show.

    `root` is the folder of the runs.
    """
    stem = out / item.stem
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(stem.with_suffix(".md"), markdown(item))
    table = io.StringIO(newline="")
    csv.writer(table).writerows([CSV_HEADER, *csv_rows(item, root)])
    write_text_atomically(stem.with_suffix(".csv"), table.getvalue())
    picture = stem.with_suffix(".png")
    if item.name == "figure1" and not item.curves:
        return item.pictures
    if item.name == "figure1":
        draw_curves(picture, item.curves, item.title)
    elif item.name.startswith("figure"):
        draw_accuracies(picture, _panels(item), item.x_label, _y_label(item), item.title)
    else:
        draw_comparison(picture, _dots(item), _y_label(item), item.title)
    return {item.title: picture, **item.pictures}


def _y_label(item: Item) -> str:
    return "linear probe on digits, %" if item.data == DIGITS else "%"


def _panels(item: Item) -> dict[str, list[tuple[str, Sequence[float], float | None]]]:
    """A figure's points by series: value on the axis, the runs' accuracies, the reference."""
    panels: dict[str, list] = {}
    for line in item.lines:
        if line.figure in ("top-1", "probe"):
            paper = line.reference if item.data == IMAGENET else None
            panels.setdefault(line.series, []).append((line.point, line.values, paper))
    return panels


def _dots(item: Item) -> list[tuple[str, dict[str, Sequence[float]]]]:
    """A table's lines as labels, each with the values of every column that has any."""
    names = (item.reference_name, "VISSL's built-in", "ours")
    return [
        (
            f"{line.label}, {line.figure}",
            {
                name: values
                for name, values in zip(names, ((line.reference,), (line.built_in,), line.values))
                if values and values[0] is not None
            },
        )
        for line in item.lines
    ]


def print_item(item: Item) -> None:
    """The item on the console."""
    header, rows = cells(item)
    keep = [i for i, name in enumerate(header) if name not in BEHIND_THEM]
    table = ConsoleTable(title=item.title)
    for i in keep:
        table.add_column(header[i], justify="left" if i < 2 else "right")
    for row in rows:
        table.add_row(*(row[i] for i in keep))
    Console().print(table)


def page(
    items: Sequence[Item],
    pictures: Mapping[str, Mapping[str, Path]],
    runs: Sequence[Run],
    refused: dict[str, str],
    root: Path,
) -> str:
    """The report as one HTML page that needs nothing else."""
    embedded = {
        stem: {name: _embedded(picture) for name, picture in of_item.items()}
        for stem, of_item in pictures.items()
    }
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html").read_text())
    return template.render(
        items=[(item, *cells(item), embedded[item.stem]) for item in items],
        measured=sum(
            line.reference is not None and line.ours is not None
            for item in items
            for line in item.lines
            if item.data == IMAGENET
        ),
        runs=[(run, _relative(run.folder, root), config_and_settings(run)) for run in runs],
        refused=refused,
        hours=sum(run.hours for run in runs),
    )


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the report's command line."""
    parser.add_argument(
        "runs_dir", type=Path, metavar="RUNS_DIR", help="folder of the runs, however deep"
    )
    parser.add_argument("--out", type=Path, default=Path("report"), help="default: %(default)s")
    parser.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> int:
    """Writes the report on all runs below `options.runs_dir`; returns the exit status, 1 where numbers
    were refused.

    Raises:
        ValueError: there is no such folder, or no run in it.
    """
    folder, out = options.runs_dir.resolve(), options.out.resolve()
    if not folder.is_dir():
        raise ValueError(f"{options.runs_dir} is no folder: name the one that holds your runs")
    runs, refused = find_runs(folder, leave_out=out if out != folder else None)
    if not (runs or refused):
        raise ValueError(
            f"no run in {options.runs_dir}: every run of this plugin leaves a barlow_run.json there"
        )
    items = all_items(Runs(runs))
    pictures = {item.stem: write_item(item, out, folder) for item in items}
    told = {_relative(path, folder): why for path, why in refused.items()}
    write_text_atomically(out / "report.html", page(items, pictures, runs, told, folder))
    write_text_atomically(out / "report.md", "\n".join([*map(markdown, items), *_refusals(told)]))
    for item in items:
        if item.measured:
            print_item(item)
    for path, why in told.items():
        print(f"refused: {path}: {why}", file=sys.stderr)
    unfinished = sum(1 for r in runs if r.pretrains and not r.finished)
    print(f"{len(runs)} runs, {unfinished} of them unfinished pretrainings, {len(told)} refused")
    print(f"report: {options.out / 'report.html'}")
    return int(bool(refused))


def _refusals(told: dict[str, str]) -> list[str]:
    return ["**Refused**", "", *(f"- {path}: {why}" for path, why in told.items())] if told else []


def report_one(name: str, options: argparse.Namespace) -> None:
    """Prints one table or figure of the runs below `options.out`, and writes it there."""
    out = options.out
    runs, refused = find_runs(out.resolve()) if out.exists() else ([], {})
    found = Runs(runs)
    if name in transfer.table_names():
        item = transfer_item(name, found, options.overrides)
    else:
        item = study_item(name, options.data, found, options.overrides, options.linear)
    write_item(item, out, out.resolve())
    print_item(item)
    for path, why in refused.items():
        print(f"refused: {path}: {why}", file=sys.stderr)
    print(f"table: {out / item.stem}.md")
