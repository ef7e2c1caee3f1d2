"""A run's folder that is removed under it, and small files in it that are damaged."""

import json

import pytest
from forked_runs import STEPS_PER_EPOCH, TWO_PROCESSES
from interrupted_runs import SHORT, at_steps, last_line

from vissl_barlow.run_files import read_history

REMOVED = """
import os, shutil
said = os.open("../said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(said, 1)
os.dup2(said, 2)
folder = os.getcwd()
first = lambda: shutil.rmtree(folder, ignore_errors=True)
"""


@pytest.mark.parametrize("processes", [(), TWO_PROCESSES])
def test_a_folder_removed_under_a_run_ends_it_in_one_line(processes, server, tmp_path):
    folder = tmp_path / "run"
    run = server.start(folder, *SHORT, *processes, prepare=REMOVED + at_steps(5))
    assert run.wait() == 1
    said = (tmp_path / "said.txt").read_text()
    (line,) = [line for line in said.splitlines() if "vissl_barlow: " in line]
    assert f"vissl_barlow: {folder}: removed while the run was writing there" in line
    assert not folder.exists()
    if not processes:
        assert "Traceback" not in said


def test_what_is_damaged_in_its_folder_is_set_aside_and_the_run_goes_on(server, tmp_path):
    damaged = {
        "barlow_run.json": b"",
        "train_config.yaml": b"[",
        "barlow_run.lock": b"[1]",
        "metrics.json": b'{"iteration": 8, "pha',
        "barlow.jsonl": b"1\n" + b'{"iteration": 3',
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    for name in ("log.txt", "stdout.json"):
        (tmp_path / name).mkdir()
    server.finish(tmp_path, "config.OPTIMIZER.num_epochs=2")
    assert (tmp_path / "barlow_run.json.damaged1").read_bytes() == b""
    assert len(json.loads((tmp_path / "barlow_run.json").read_text())) == 1
    for name in ("log.txt", "stdout.json"):
        assert (tmp_path / name).is_file() and (tmp_path / f"{name}.damaged1").is_dir()
    for name in ("metrics.json", "barlow.jsonl"):
        # The run begins its logs anew, and nothing is lost.
        assert (tmp_path / f"{name}.replaced").read_bytes() == damaged[name] + b"\n"
        assert (tmp_path / name).read_bytes().startswith(b"{")
    steps = [entry["iteration"] for entry in read_history(tmp_path)]
    assert steps == list(range(1, 2 * STEPS_PER_EPOCH + 1))


def test_a_lock_that_cannot_be_opened_is_said(server, tmp_path):
    (tmp_path / "barlow_run.lock").mkdir()
    run = server.start(tmp_path, *SHORT)
    assert run.wait() == 1
    assert "barlow_run.lock there, the lock of its run, cannot be opened (Is a d" in last_line(run)
