"""The report of the runs below a test's folder, and what it says."""

import csv
from pathlib import Path

from vissl_barlow.reproduce.__main__ import main


def report(tmp_path: Path, *, status: int = 0) -> Path:
    """The folder of the report on `tmp_path/runs`, made with this exit status."""
    out = tmp_path / "report"
    assert main(["report", str(tmp_path / "runs"), "--out", str(out)]) == status
    return out


def rows(out: Path, name: str) -> list[dict]:
    """Of a table's CSV."""
    with (out / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def row(out: Path, name: str, label: str, figure: str = "top-1") -> dict:
    """The one row of that label and figure."""
    [found] = [r for r in rows(out, name) if r["label"] == label and r["figure"] == figure]
    return found


def measured(out: Path) -> dict[tuple[str, str, str], float]:
    """Every number of ours in the whole report but Figure 1's: (item, label, figure) to it."""
    return {
        (r["item"], r["label"], r["figure"]): float(r["ours"])
        for path in sorted(out.rglob("*.csv"))
        for r in rows(path.parent, path.stem)
        if r["ours"] and r["item"] != "figure1"
    }
