"""The paper's tables and figures from the runs there are: Markdown, CSV, pictures and one page.

    python -m vissl_barlow.reproduce report RUNS_DIR --out report

A number is shown only where its run has the files that prove it (see `runs`); what nobody ran stays
empty. Numbers of the digits stand apart from ImageNet's, and so do those of runs with other settings.
"""

import argparse
import base64
import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Table as ConsoleTable

from vissl_barlow.atomic_files import write_text_atomically
from vissl_barlow.figures import draw_accuracies, draw_comparison, draw_curves
from vissl_barlow.reproduce.commands import add_out, add_paper_weights
from vissl_barlow.reproduce.departures import HASH_CHARS
from vissl_barlow.reproduce.report_rows import (
    ReportRow,
    ReportTable,
    config_and_settings,
)
from vissl_barlow.reproduce.report_tables import all_tables, left_out, report_table
from vissl_barlow.reproduce.runs import Run, Runs, find_runs
from vissl_barlow.reproduce.studies import DIGITS, IMAGENET, study_names
from vissl_barlow.reproduce.text import in_markdown, in_picture, printable, printable_lines
from vissl_barlow.reproduce.transfer import OWN, table_names

BUILT_IN = "VISSL's built-in"
PROVENANCE_COLUMNS = ("config", "checkpoint", "hardware", "hours")


def cells(table: ReportTable) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table as text.

    A column without any entry is left out, but for "ours". Rows of the same runs follow one another;
    the first of them alone names config, checkpoint, hardware and hours.
    """
    rows = [_cells(table, row) for row in table.rows]
    for previous, row, text in zip(table.rows, table.rows[1:], rows[1:]):
        if (previous.label, previous.runs) == (row.label, row.runs):
            text.update(dict.fromkeys(PROVENANCE_COLUMNS, ""))
    always = ("", "figure", "ours")
    header = [
        name
        for name in _cells(table, ReportRow("", ""))
        if name in always or any(row[name] for row in rows)
    ]
    return header, [[printable(row[name]) for name in header] for row in rows]


def _cells(table: ReportTable, row: ReportRow) -> dict[str, str]:
    places = 2 if table.data == IMAGENET else 1
    return {
        "": row.label,
        "figure": row.figure,
        table.reference_name: _rounded(row.reference, places),
        BUILT_IN: _rounded(row.built_in, places),
        "ours": row.measured,
        "difference": "" if row.difference is None else f"{row.difference:+.1f}",
        "config": row.config,
        "checkpoint": ", ".join(digest[:HASH_CHARS] for digest in row.checkpoints),
        "hardware": row.hardware,
        "hours": row.hours,
    }


def _rounded(value: float | None, places: int) -> str:
    """A number with at most so many decimals, and at least one; "" for None."""
    if value is None:
        return ""
    text = f"{value:.{places}f}"
    return text.removesuffix("0") if places > 1 else text


def markdown(table: ReportTable) -> str:
    """The table in Markdown, its title above it."""
    header, rows = cells(table)
    lines = [
        f"| {' | '.join(map(in_markdown, row))} |" for row in (header, ["---"] * len(header), *rows)
    ]
    return "\n".join([f"**{in_markdown(table.title)}**", "", *lines, ""])


def csv_row(table: ReportTable, row: ReportRow, root: Path) -> dict[str, object]:
    """A row in full precision, by column; folders are below `root`."""
    of_paper = table.data == IMAGENET
    columns = {
        "item": table.name,
        "data": table.data,
        "label": row.label,
        "figure": row.figure,
        "paper": row.reference if of_paper else None,
        "untrained_trunk": None if of_paper else row.reference,
        "built_in": row.built_in,
        "ours": row.ours,
        "sd": row.spread,
        "runs": len(row.runs),
        "difference": row.difference,
        "config": row.config,
        "checkpoint_sha256": " ".join(row.checkpoints),
        "hardware": row.hardware,
        "hours": row.hours,
        "seeds": " ".join(str(run.seed) for run in row.runs),
        "pretraining_seeds": " ".join(str(run.seed) for run in row.pretrainings),
        "folders": ";".join(_relative(run.folder, root) for run in row.runs),
    }
    return {
        name: printable(value) if isinstance(value, str) else value
        for name, value in columns.items()
    }


def write_table(table: ReportTable, out: Path, root: Path) -> Mapping[str, Path]:
    """Writes a table's Markdown, CSV and picture below `out`; returns its pictures, by what they show.

    `root` is the folder of the runs.
    """
    stem = out / table.stem
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(stem.with_suffix(".md"), markdown(table))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, csv_row(table, ReportRow("", ""), root))
    writer.writeheader()
    writer.writerows(csv_row(table, row, root) for row in table.rows)
    write_text_atomically(stem.with_suffix(".csv"), text.getvalue())
    picture, title = stem.with_suffix(".png"), in_picture(table.title)
    y_label = {IMAGENET: "%", DIGITS: "linear probe on digits, %"}.get(table.data, "%, own images")
    if table.name == "figure1":
        if not table.curves:
            picture.unlink(missing_ok=True)  # an earlier report's
            return table.pictures
        draw_curves(picture, {in_picture(k): v for k, v in table.curves.items()}, title)
    elif table.name.startswith("figure"):
        panels = _panels(table)
        draw_accuracies(picture, panels, next(iter(panels)), y_label, title)
    else:
        draw_comparison(picture, _dots(table), y_label, title)
    return {table.title: picture, **table.pictures}


def _panels(table: ReportTable) -> dict[str, list[tuple[str, Sequence[float], float | None]]]:
    """A figure's points by the label of their axis: value on it, the runs' accuracies, the paper's.

    Of runs that depart otherwise, on other images say, each series has a panel of its own: a line joins
    one experiment's points.
    """
    rows = [row for row in table.rows if row.figure in ("top-1", "probe")]
    departures: dict[str, dict[str, None]] = {}
    for row in rows:
        departures.setdefault(row.series, {}).update({row.departures: None} if row.values else {})
    panels: dict[str, list[tuple[str, Sequence[float], float | None]]] = {}
    for row in rows:
        paper = row.reference if table.data == IMAGENET else None
        # What nobody ran is a place on each axis.
        for more in (row.departures,) if row.values else departures[row.series] or ("",):
            axis = table.x_label if row.series == rows[0].series else row.series
            label = in_picture(axis + more, 60)
            panels.setdefault(label, []).append((row.point, row.values, paper))
    return panels


def _dots(table: ReportTable) -> list[tuple[str, dict[str, Sequence[float]]]]:
    """A table's rows as labels, each with the values of every column that has any."""
    dots = []
    for row in table.rows:
        values: dict[str, Sequence[float]] = {}
        for name, value in ((table.reference_name, row.reference), (BUILT_IN, row.built_in)):
            if value is not None:
                values[name] = (value,)
        if row.values:
            values["ours"] = row.values
        dots.append((in_picture(f"{row.label}, {row.figure}", 70, lines=2), values))
    return dots


def print_table(table: ReportTable) -> None:
    """The table on the console, without its provenance."""
    header, rows = cells(table)
    shown = [i for i, name in enumerate(header) if name not in PROVENANCE_COLUMNS]
    on_console = ConsoleTable(title=printable(table.title))
    for i in shown:
        on_console.add_column(header[i], justify="left" if i < 2 else "right")
    for row in rows:
        on_console.add_row(*(row[i] for i in shown))
    # What hydra writes in brackets, and :names:, is no markup.
    Console(markup=False, emoji=False).print(on_console)


def page(
    tables: Sequence[tuple[ReportTable, Mapping[str, Path]]],
    runs: Sequence[Run],
    refused: Mapping[str, str],
    left_out: Mapping[str, str],
    root: Path,
) -> str:
    """The report as one HTML page that needs nothing else; each table has its pictures beside it."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    template = environment.from_string(files(__package__).joinpath("report.html").read_text())
    imagenet = [row for table, _ in tables if table.data == IMAGENET for row in table.rows]
    text = template.render(
        tables=[(table, *cells(table), pictures) for table, pictures in tables],
        measured=sum(row.difference is not None for row in imagenet),
        runs=[(run, _relative(run.folder, root), config_and_settings(run)) for run in runs],
        refused=refused,
        left_out=left_out,
    )
    return printable_lines(text)


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the report's command line."""
    parser.add_argument(
        "runs_dir", type=Path, metavar="RUNS_DIR", help="folder of the runs, however deep"
    )
    add_out(parser)
    add_paper_weights(parser)
    parser.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> int:
    """Writes the report on all runs below `options.runs_dir`; returns the exit status, 1 where numbers
    were refused.

    Raises:
        ValueError: there is no such folder, or more than one, no run in it, or no evaluation of
            `--paper-weights`.
    """
    if options.overrides:  # whatever else stands there, of `runs/*` all but the first
        raise ValueError(
            f"{' '.join(options.overrides)}: the report is of one RUNS_DIR and takes no overrides; "
            "name the folder that holds all your runs"
        )
    folder, out = options.runs_dir.resolve(), options.out.resolve()
    if not folder.is_dir():
        raise ValueError(f"{options.runs_dir} is no folder: name the one that holds your runs")
    found = find_runs(folder)
    if not (found.runs or found.refused or found.left_out):
        raise ValueError(
            f"no run in {options.runs_dir}: every run of this plugin leaves a barlow_run.json there"
        )
    papers = _papers(options, found)
    tables = all_tables(found, papers)
    pictures = [write_table(table, out, folder) for table in tables]
    refused, others = (
        {_relative(path, folder): reason for path, reason in reasons.items()}
        for reasons in (found.refused, left_out(found, tables))
    )
    html = page(list(zip(tables, pictures)), found.runs, refused, others, folder)
    write_text_atomically(out / "report.html", html)
    lines = [
        line
        for title, reasons in (("Refused", refused), ("In no table of the paper's", others))
        if reasons
        for line in (
            *(f"**{title}**", ""),
            *(f"- {in_markdown(path)}: {in_markdown(why)}" for path, why in reasons.items()),
            "",
        )
    ]
    write_text_atomically(out / "report.md", "\n".join([*map(markdown, tables), *lines]))
    for table in tables:
        if table.measured:
            print_table(table)
    _print_reasons("refused", refused)
    _print_reasons("left out", others)
    _print_reasons("of an earlier report", _earlier(out, tables))
    unfinished = sum(1 for r in found.runs if r.pretrains and not r.finished)
    print(
        f"{len(found.runs)} runs, {unfinished} of them unfinished pretrainings, "
        f"{len(refused)} refused, {len(others)} left out"
    )
    print(f"report: {printable(str(options.out / 'report.html'))}")
    return int(bool(refused))


def _earlier(out: Path, tables: Iterable[ReportTable]) -> dict[str, str]:
    """The tables in `out` that are none of `tables`, with what is wrong: another report wrote them, or
    a study's own command."""
    names = ["others", OWN, "figure1", *table_names(), *study_names()]
    stems = [*names, *(f"{data}/{name}" for data in (DIGITS, OWN) for name in names)]
    written = {table.stem for table in tables}
    return {
        f"{stem}.csv": "nothing of these runs is in it"
        for stem in stems
        if stem not in written and (out / f"{stem}.csv").exists()
    }


def _papers(options: argparse.Namespace, found: Runs) -> list[str]:
    """How the hashes begin of the weights that the user says are the paper's.

    Raises:
        ValueError: nothing evaluates weights of such a hash, or it is too short to mean one file.
    """
    papers = [each.lower() for each in vars(options).get("paper_weights", ())]
    digests = {run.weights_sha256 for run in found.runs if run.weights_sha256}
    for each in papers:
        if len(each) < HASH_CHARS or not any(digest.startswith(each) for digest in digests):
            raise ValueError(
                f"--paper-weights {each}: no run evaluates weights whose sha256 begins so; give at "
                f"least {HASH_CHARS} digits of one of {', '.join(sorted(digests)) or 'none'}"
            )
    return papers


def report_one(name: str, options: argparse.Namespace) -> int:
    """Prints one table or figure of the runs below `options.out`, and writes it there; and what of them
    is in none, and why; returns the exit status, 1 where numbers were refused."""
    out = options.out
    found = find_runs(out.resolve())
    data, linear = vars(options).get("data", IMAGENET), vars(options).get("linear", ())
    papers = _papers(options, found)
    table = report_table(name, data, found, options.overrides, linear, papers)
    write_table(table, out, out.resolve())
    print_table(table)
    others = left_out(found, [table])
    if others:  # most are in other tables
        others = left_out(found, [table, *all_tables(found)])
    for what, reasons in (("refused", found.refused), ("left out", others)):
        _print_reasons(what, {_relative(path, out.resolve()): why for path, why in reasons.items()})
    print(f"table: {printable(str(out / table.stem))}.md")
    return int(bool(found.refused))


def _print_reasons(what: str, reasons: Mapping[str, str]) -> None:
    for path, reason in reasons.items():
        print(f"{what}: {printable(path)}: {printable(reason)}", file=sys.stderr)
