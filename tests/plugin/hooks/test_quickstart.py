"""The embedded default, run as the README says: it learns, shows it, and resumes finished."""

import csv
import json
import re
from pathlib import Path

from documented import ROOT, shown
from makefile import recipe
from PIL import Image
from vissl_runs import run_module, succeeded

from vissl_barlow.checkpoint import TrunkDepth
from vissl_barlow.next_steps import next_steps

PROMISED_ACCURACY = 0.95


def test_the_quickstart_learns_the_digits_and_draws_it(tmp_path, monkeypatch):
    (_, _, *quickstart), (_, _, *report) = recipe("quickstart")  # python -m ...
    done = succeeded(run_module(tmp_path, *quickstart))
    folder, readme = tmp_path / "quickstart", (ROOT / "README.md").read_text()
    results = json.loads((folder / "barlow_probe.json").read_text())
    assert results["pretrained trunk"] >= PROMISED_ACCURACY
    # A probe that ignored its features would find the three alike.
    assert results["untrained trunk"] < results["pretrained trunk"] - 0.2
    for name in ("untrained trunk", "pixels", "pretrained trunk"):
        assert f"{name}" in done.stdout and f"{100 * results[name]:.1f} %" in done.stdout
    for name in ("barlow.png", "barlow_map.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 1000
    # It ends with what comes next, as the checkpoint's own command says it.
    monkeypatch.chdir(tmp_path)
    said = next_steps(Path("quickstart/checkpoint.torch"), TrunkDepth(18, False, 0.5), 440)
    assert said in done.stdout
    assert "checkpoint: " in said and "linear probe: " in said and "bundled_digits" in said
    # Progress: every line has the terms and an ETA, and the loss falls.
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert lines and all("invariance" in line and "eta" in line for line in lines)
    entries = [json.loads(line) for line in (folder / "barlow.jsonl").read_text().splitlines()]
    assert entries[-1]["loss"] < entries[0]["loss"] / 2
    assert all(entry["lr_bias"] == entry["lr"] * 0.024 for entry in entries)
    # It ends with a page of its numbers, and of no other's.
    told = succeeded(run_module(tmp_path, *report)).stdout
    assert "report: quickstart/report/report.html" in told
    with (folder / "report" / "digits" / "figure1.csv").open(newline="") as file:
        reported = {row["figure"]: row["ours"] for row in csv.DictReader(file)}
    accuracy = float(reported["probe, accuracy in %"])
    assert accuracy == 100 * results["pretrained trunk"]
    assert float(reported["loss"]) == entries[-1]["loss"]
    page = (folder / "report" / "report.html").read_text()
    assert f"{accuracy:.4g}" in page and "0 of the paper's numbers measured" in page
    # README shows what it prints.
    (block,) = re.findall(r"^    vissl_barlow \d(?:.*\n)+?    picture: .*\n", readme, re.MULTILINE)
    printed = shown(done.stderr + done.stdout).splitlines()
    assert [line for line in shown(block).splitlines() if line not in (*printed, "...")] == []
    # Run again, the finished training is left alone.
    again = succeeded(run_module(tmp_path, *quickstart))
    assert "Training already succeeded" in again.stdout
