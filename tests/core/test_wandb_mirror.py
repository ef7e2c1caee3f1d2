"""A run's folder at Weights & Biases, whose package a stand-in takes the place of: it records."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vissl_barlow.wandb_mirror import Tail

STAND_IN = Path(__file__).parents[1] / "helpers" / "recording_wandb"


def start(folder: Path, *arguments: str, fails: str = "") -> subprocess.Popen:
    path = os.pathsep.join([str(STAND_IN), *filter(None, [os.environ.get("PYTHONPATH")])])
    calls = {"WANDB_CALLS": str(folder / "calls"), "WANDB_FAILS": fails, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", "vissl_barlow.wandb_mirror", str(folder), *arguments],
        env={**os.environ, **calls},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def calls(folder: Path) -> list[list]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def entry(iteration: int, **values) -> str:
    return json.dumps({"iteration": iteration, **values}) + "\n"


def test_numbers_and_pictures_arrive_and_what_was_there_before_does_not(tmp_path):
    log, metrics = tmp_path / "barlow.jsonl", tmp_path / "metrics.json"
    earlier = entry(1, loss=9.0)
    log.write_text(earlier)
    (tmp_path / "old.png").touch()
    (tmp_path / "train_config.yaml").write_text("SEED_VALUE: 3\n")
    offsets = json.dumps({log.name: len(earlier)})
    process = start(tmp_path, "--project", "digits", "--id", "abc", "--offsets", offsets)
    assert process.stdout.readline() == "W&B: https://wandb.ai/run\n"
    with open(log, "a") as file:
        file.write(entry(10, loss=2.5, lr=0.1, nothing=float("nan")) + "damaged\n" + '{"iter')
    metrics.write_text(entry(11, test_accuracy_list_meter={"top_1": {"res5avg": 62.5}}))
    (tmp_path / "barlow_probe.json").write_text('{"probe": "knn", "pixels": 0.75}')
    (tmp_path / "barlow.png").touch()
    _, errors = process.communicate()
    assert process.returncode == 0 and errors == ""
    (_, begun), defined, *logged, finished = calls(tmp_path)
    wanted = {"project": "digits", "id": "abc", "resume": "allow", "config": {"SEED_VALUE": 3}}
    assert {name: begun[name] for name in wanted} == wanted
    assert defined == ["define_metric", {"name": "*", "step_metric": "iteration"}]
    assert [values for _, values in logged] == [
        {"iteration": 10, "loss": 2.5, "lr": 0.1},
        {"iteration": 11, "test_accuracy_list_meter/top_1/res5avg": 62.5},
        {"iteration": 11, "probe/pixels": 0.75},
        {"iteration": 11, "barlow": "image of barlow.png"},
    ]
    assert finished == ["finish", {}]


@pytest.mark.parametrize(
    ("fails", "status", "said"),
    [
        ("key", 1, "W&B gets no more of this run (RuntimeError: nobody answers)\n"),
        ("network", 0, "W&B does not answer (CommError: nobody answers): kept here, "),
    ],
)
def test_what_fails_is_one_line_and_without_a_network_the_numbers_are_kept(
    fails, status, said, tmp_path
):
    (tmp_path / "barlow.jsonl").write_text(entry(1, loss=9.0))
    process = start(tmp_path, "--project", "digits", fails=fails)
    output, errors = process.communicate()
    assert process.returncode == status
    assert said in output + errors and "Traceback" not in errors
    logged = [values for name, values in calls(tmp_path) if name == "log"]
    assert logged == ([] if status else [{"iteration": 1, "loss": 9.0}])


def test_lines_of_a_replaced_run_that_are_taken_out_leave_none_of_the_new_out(tmp_path):
    path = tmp_path / "log"
    earlier, new = entry(1) + entry(2), [entry(n) for n in (3, 4, 5)]
    path.write_text(earlier + new[0])
    tail = Tail(path, len(earlier))
    assert [each["iteration"] for each in tail.entries()] == [3]
    path.write_text("".join(new[:2]))
    assert [each["iteration"] for each in tail.entries()] == [4]
    path.write_text("".join(new))
    assert [each["iteration"] for each in tail.entries()] == [5]
