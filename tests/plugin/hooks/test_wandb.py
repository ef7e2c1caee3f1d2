"""`BARLOW.WANDB_PROJECT`: refused without the package, one run at W&B per run, and never in the way."""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from vissl_runs import compose, resolve

import vissl_barlow
from vissl_barlow.vissl_plugin.errors import ConfigError

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
PROJECT = "config.BARLOW.WANDB_PROJECT=digits"
STAND_IN = Path(__file__).parents[2] / "helpers" / "recording_wandb"


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """The calls of the stand-in so far, by name."""
    vissl_barlow.register()
    old = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STAND_IN), *filter(None, [old])]))
    path = tmp_path / "calls"
    monkeypatch.setenv("WANDB_CALLS", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


def mirrored(folder: Path, checkpoint: object, loss: float) -> None:
    from vissl_barlow.vissl_plugin.hooks.wandb_mirror import WandbMirror

    hook = WandbMirror("digits")
    task = SimpleNamespace(checkpoint_folder=folder, checkpoint=checkpoint)
    hook.on_start(task)
    with open(folder / "barlow.jsonl", "a") as file:
        file.write(json.dumps({"iteration": 1, "loss": loss}) + "\n")
    hook.on_end(task)


def test_a_resumed_run_goes_on_at_wandb_and_a_new_one_begins_anew(tmp_path, calls):
    folder = tmp_path / "run"
    folder.mkdir()
    for checkpoint, loss in ((None, 3.0), ("there is one", 2.0), (None, 1.0)):
        mirrored(folder, checkpoint, loss)
    ids = [values["id"] for name, values in calls() if name == "init"]
    assert ids[0] == ids[1] != ids[2]
    assert [values["loss"] for name, values in calls() if name == "log"] == [3.0, 2.0, 1.0]


def test_a_server_that_does_not_answer_does_not_keep_the_run_from_ending(
    tmp_path, calls, monkeypatch, caplog
):
    from vissl_barlow.vissl_plugin.hooks import wandb_mirror

    monkeypatch.setenv("WANDB_FAILS", "hang")
    monkeypatch.setattr(wandb_mirror, "SECONDS_AT_THE_END", 0.01)
    started = []
    popen = wandb_mirror.subprocess.Popen
    monkeypatch.setattr(
        wandb_mirror.subprocess,
        "Popen",
        lambda *args, **kwargs: started.append(popen(*args, **kwargs)) or started[0],
    )
    mirrored(tmp_path, None, 3.0)
    started[0].kill()
    started[0].wait()
    assert "W&B has not got all of this run" in caplog.text


def test_only_runs_that_name_a_project_are_mirrored_and_by_the_last_hook(calls):
    from vissl_barlow.vissl_plugin.hooks import barlow_hooks

    kinds = [
        [type(hook).__name__ for hook in barlow_hooks([], compose(DIGITS, *key), False)]
        for key in ((PROJECT,), ())
    ]
    assert kinds[0][-1] == "WandbMirror" and kinds[0][:-1] == kinds[1]


@pytest.mark.parametrize("is_folder", [False, True])
def test_it_is_refused_where_the_package_is_not_installed(is_folder, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    found = SimpleNamespace(origin=None) if is_folder else None
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: found if name == "wandb" else find(name, *a)
    )
    with pytest.raises(ConfigError) as raised:
        resolve(tmp_path / "run", DIGITS, PROJECT)
    assert str(raised.value) == f"{PROJECT}: the package is not installed: pip install wandb"
