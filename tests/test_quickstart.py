"""The embedded default, run as the README says: it learns, shows it, and resumes finished."""

import json

from PIL import Image
from vissl_runs import run_engines, succeeded

QUICKSTART = "config=pretrain/vissl_barlow/digits_quickstart"
PROMISED_ACCURACY = 0.95


def test_the_quickstart_learns_the_digits_and_draws_it(tmp_path):
    done = succeeded(run_engines(tmp_path, QUICKSTART))
    folder = tmp_path / "quickstart"
    results = json.loads((folder / "barlow_probe.json").read_text())
    assert results["pretrained trunk"] >= PROMISED_ACCURACY
    # A probe that ignored its features would find the three alike.
    assert results["untrained trunk"] < results["pretrained trunk"] - 0.2
    for name in ("untrained trunk", "pixels", "pretrained trunk"):
        assert f"{name}" in done.stdout and f"{100 * results[name]:.1f} %" in done.stdout
    with Image.open(folder / "barlow.png") as picture:
        assert picture.width > 1000
    # Progress: every line has the terms and an ETA, and the loss falls.
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert lines and all("invariance" in line and "eta" in line for line in lines)
    entries = [json.loads(line) for line in (folder / "barlow.jsonl").read_text().splitlines()]
    assert entries[-1]["loss"] < entries[0]["loss"] / 2
    assert all(entry["lr_bias"] == entry["lr"] * 0.024 for entry in entries)
    # Run again, the finished training is left alone.
    again = succeeded(run_engines(tmp_path, QUICKSTART))
    assert "Training already succeeded" in again.stdout
