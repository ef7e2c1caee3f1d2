"""Which hooks a run has, when each of them acts, and where the monitor's numbers go."""

import contextlib
import io
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from classy_vision.hooks.classy_hook import ClassyHook
from rich.console import Console
from small_disks import full, small_disk
from vissl_runs import resolve

import vissl_barlow
from vissl_barlow import patient_files

DIGITS = "pretrain/vissl_barlow/digits_quickstart"


@pytest.fixture(autouse=True)
def registered():
    vissl_barlow.register()


def hook_names(folder, *overrides: str) -> list[str]:
    """The plugin's hooks of a run, in order."""
    from vissl.hooks import default_hook_generator
    from vissl.trainer.trainer_main import build_task

    config = resolve(folder, DIGITS, *overrides)
    task = build_task(config)
    task.set_hooks(default_hook_generator(config))
    own = (hook for hook in task.hooks if "vissl_barlow" in type(hook).__module__)
    return [type(hook).__name__ for hook in own]


PRETRAINING = ["BarlowFiniteLoss", "BarlowMonitor", "BarlowStop", "BarlowProbe", "RunRecord"]


@pytest.mark.parametrize(
    ("override", "missing"),
    [
        ("config.BARLOW.PROBE.KIND=linear", set()),
        ("config.BARLOW.PROBE.KIND=", {"BarlowProbe"}),
        # This task cannot go on within an epoch: a signal ends it as ever.
        ("config.TRAINER.TASK_NAME=barlow_evaluation_task", {"BarlowStop"}),
    ],
)
def test_a_pretraining_has_the_hooks_its_config_asks_for(override, missing, tmp_path):
    found = [name for name in hook_names(tmp_path, override) if name in PRETRAINING]
    assert found == [name for name in PRETRAINING if name not in missing]


def test_a_run_keeps_the_command_it_was_resolved_with(tmp_path):
    """Other processes of the run have command lines of their own."""
    from vissl_barlow.provenance import command_line

    assert resolve(tmp_path, DIGITS).BARLOW.COMMAND == command_line()
    assert resolve(tmp_path, DIGITS, "+config.BARLOW.COMMAND=first").BARLOW.COMMAND == "first"


def test_a_hook_does_nothing_where_it_says_nothing():
    from vissl.hooks import SSLClassyHookFunctions

    from vissl_barlow.vissl_plugin.hooks.base import BarlowHook

    class Silent(BarlowHook):
        """States nothing."""

    for function in SSLClassyHookFunctions:
        assert getattr(Silent(), function.name)(None) is None
        assert getattr(BarlowHook, function.name) is ClassyHook._noop


def task_at(iteration: int, **attributes) -> SimpleNamespace:
    settings = SimpleNamespace(CHECKPOINT_ITER_FREQUENCY=attributes.pop("saves_every", -1))

    class Config(dict):
        CHECKPOINT = settings

    return SimpleNamespace(
        **{
            "iteration": iteration,
            "max_iteration": 41,
            "train": True,
            "device": torch.device("cpu"),
            "hooks": [],
            "config": Config(LOG_FREQUENCY=10),
            "amp_grad_scaler": None,
            **attributes,
        }
    )


@pytest.mark.parametrize(
    ("event", "task", "looks"),
    [
        ("on_update", task_at(19), True),  # step 20
        ("on_update", task_at(20), False),
        ("on_update", task_at(0), True),  # the first step
        ("on_update", task_at(40), True),  # the last
        ("on_update", task_at(19, train=False), False),
        ("on_step", task_at(21, saves_every=3), True),  # a checkpoint is due
        ("on_step", task_at(22, saves_every=3), False),
        ("on_step", task_at(21), False),
        ("on_phase_end", task_at(22), True),
        ("on_phase_end", task_at(22, train=False), False),
    ],
)
def test_a_loss_that_is_not_finite_is_looked_for_before_anything_is_kept(event, task, looks):
    from vissl_barlow.vissl_plugin.hooks.finite import BarlowFiniteLoss

    hook = BarlowFiniteLoss()
    hook.on_start(task)
    hook.on_phase_start(task)
    task.last_batch = SimpleNamespace(loss=torch.tensor(float("inf")))
    hook.on_loss_and_meter(task)
    if not looks:
        getattr(hook, event)(task)
        return
    with pytest.raises(FloatingPointError, match="saved so far are good"):
        getattr(hook, event)(task)


@pytest.mark.parametrize("state_is_good", [True, False])
def test_a_stop_saves_a_good_state_only_and_then_leaves(state_is_good, tmp_path, capsys):
    from vissl_barlow.vissl_plugin.hooks.stop import BarlowStop

    saved, left = [], []

    def check_finite(task) -> None:
        if not state_is_good:
            raise FloatingPointError

    def save(task, frequency, iteration, mode) -> None:
        (tmp_path / f"model_{mode}{iteration}.torch").touch()
        saved.append((frequency, iteration))

    hook = BarlowStop(check_finite)
    hook.signals = SimpleNamespace(received=0, leave=left.append)
    hook.saver = SimpleNamespace(save=save)
    task = task_at(7, checkpoint_folder=tmp_path)
    hook.on_step(task)
    hook.signals.received = signal.SIGUSR1
    hook.on_step(task_at(7, train=False))
    assert saved == left == []
    if state_is_good:
        hook.on_step(task)
        assert saved == [(1, 7)] and left == [signal.SIGUSR1]
        said = capsys.readouterr().err
        assert "stopped by SIGUSR1 after step 7, saved; the same command resumes" in said
    else:
        with pytest.raises(FloatingPointError):
            hook.on_step(task)
        assert saved == left == []


@pytest.mark.parametrize(
    ("epoch", "every", "train", "probed"),
    [
        (2, 2, True, True),
        (3, 2, True, False),
        (6, 2, True, False),  # the last: `on_end` does
        (2, 0, True, False),
        (2, 2, False, False),
    ],
)
def test_the_probe_is_taken_every_so_many_epochs(
    epoch, every, train, probed, tmp_path, monkeypatch
):
    from vissl_barlow.vissl_plugin.hooks.probe import BarlowProbe

    monkeypatch.setattr(BarlowProbe, "_trunk_features", lambda *_: None)
    monkeypatch.setattr(BarlowProbe, "_accuracy", lambda *_: 0.5)
    hook = BarlowProbe("linear", every, neighbours=5)
    hook.folder = tmp_path
    hook.on_phase_end(SimpleNamespace(train=train, train_phase_idx=epoch - 1, num_train_phases=6))
    path = tmp_path / "barlow_probe.json"
    results = json.loads(path.read_text()) if path.exists() else None
    assert results == ({"probe": "linear", f"epoch {epoch}": 0.5} if probed else None)


@pytest.mark.parametrize("kind", ["bytes", "inodes"])
def test_a_probe_on_a_full_disk_is_kept_and_written_when_it_can_be(kind, tmp_path, monkeypatch):
    from vissl_barlow.vissl_plugin.hooks.probe import BarlowProbe

    monkeypatch.setattr(BarlowProbe, "_trunk_features", lambda _, task: task.train_phase_idx)
    monkeypatch.setattr(BarlowProbe, "_accuracy", lambda _, kind, features: features / 10)
    hook = BarlowProbe("linear", 1, neighbours=5)
    with small_disk(tmp_path / "disk", megabytes=1) as hook.folder:
        for epoch in (1, 2, 3):
            with full(hook.folder, kind) if epoch < 3 else contextlib.nullcontext():
                hook.on_phase_end(
                    SimpleNamespace(train=True, train_phase_idx=epoch - 1, num_train_phases=9)
                )
        results = json.loads((hook.folder / "barlow_probe.json").read_text())
    assert results == {"probe": "linear", "epoch 1": 0.0, "epoch 2": 0.1, "epoch 3": 0.2}


@pytest.mark.parametrize("content", ["", "[1]", '{"pixels": "many"}', '{"probe": 1}', '{"pix'])
def test_a_damaged_probe_is_set_aside(content, tmp_path, monkeypatch):
    from vissl_barlow.vissl_plugin.hooks.probe import CORRELATION_FILE, BarlowProbe

    monkeypatch.setattr(BarlowProbe, "_trunk_features", lambda *_: None)
    monkeypatch.setattr(BarlowProbe, "_accuracy", lambda *_: 0.5)
    hook = BarlowProbe("linear", 1, neighbours=5)
    hook.folder = tmp_path
    (tmp_path / "barlow_probe.json").write_text(content)
    hook.on_phase_end(SimpleNamespace(train=True, train_phase_idx=0, num_train_phases=9))
    assert json.loads((tmp_path / "barlow_probe.json").read_text())["epoch 1"] == 0.5
    assert (tmp_path / "barlow_probe.json.damaged1").read_text() == content
    monkeypatch.setattr(patient_files, "LIMIT", 100)
    np.save(tmp_path / CORRELATION_FILE, np.eye(8))  # of 8192 dimensions it has 512 MiB
    assert np.array_equal(hook._correlation_before(), np.eye(8))
    (tmp_path / CORRELATION_FILE).write_text(content)
    assert hook._correlation_before() is None
    assert (tmp_path / f"{CORRELATION_FILE}.damaged1").read_text() == content


ENTRY = {
    "iteration": 20,
    "epoch": 1,
    "lr": 0.25,
    "loss": 12.5,
    "invariance": 10.0,
    "redundancy": 500.0,
    "images_per_second": 64.0,
}


@pytest.fixture
def task(tmp_path) -> SimpleNamespace:
    """A run at step 20 of 60 of 32 images, resumed at 16."""
    return task_at(
        16,
        max_iteration=60,
        num_epochs=3,
        checkpoint_folder=tmp_path,
        get_global_batchsize=lambda: 32,
    )


def test_a_line_says_where_the_run_is_and_when_it_ends(task):
    from vissl_barlow.vissl_plugin.hooks.outputs import Lines

    text = io.StringIO()
    Lines(Console(file=text)).write(task, ENTRY)
    assert text.getvalue() == (
        "epoch 2/3  step 20/60  loss 12.5, invariance 10, redundancy 500  lr 0.25  "
        "64 images/s  eta 0:00:20\n"
    )


def test_json_lines_are_appended_and_a_disk_that_is_full_is_said(task, caplog, monkeypatch):
    from vissl_barlow import patient_files
    from vissl_barlow.vissl_plugin.hooks.outputs import JsonLines

    # What is never written would wait until this process ends.
    monkeypatch.setattr(patient_files, "_to_append", {})

    path = Path(task.checkpoint_folder, "barlow.jsonl")
    for _ in range(2):
        JsonLines(path).write(task, ENTRY)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [ENTRY, ENTRY]
    JsonLines(Path("/dev/full")).write(task, ENTRY)
    assert "metrics not written" in caplog.text


@pytest.mark.parametrize(("terminal", "last"), [(True, "ProgressBar"), (False, "Lines")])
def test_a_terminal_gets_the_bar_and_anything_else_lines(terminal, last, task, monkeypatch):
    from vissl_barlow.vissl_plugin.hooks import outputs

    monkeypatch.setattr(
        outputs, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=terminal)
    )
    made = outputs.outputs_of(task)
    made[-1].close()
    assert [type(output).__name__ for output in made] == ["JsonLines", last]


def test_each_kind_of_collapse_is_said_once(caplog):
    from vissl_barlow.vissl_plugin.hooks.collapse import CollapseWarning
    from vissl_barlow.vissl_plugin.settings import Settings

    warning = CollapseWarning(Settings)
    numbers = {"iteration": 1, "embedding_std_mean": 1.0, "effective_rank_embedding": 9.0}
    for change in ({}, {"effective_rank_embedding": 1.2}, {"embedding_std_mean": 1e-5}) * 2:
        warning.check(numbers | change)
    said = [record.getMessage().partition(" (")[0] for record in caplog.records]
    assert said == [
        "collapse at step 1: the embeddings lie on a line",
        "collapse at step 1: the embeddings are constant",
    ]


def test_c_takes_the_losss_own_eps():
    """Where it says one; of other losses `eps` may be anything else."""
    from classy_vision.losses import build_loss

    from vissl_barlow.diagnostics import cross_correlation_summary
    from vissl_barlow.vissl_plugin.hooks.measure import embeddings
    from vissl_barlow.vissl_plugin.settings import Settings

    z_a, z_b = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    barlow = build_loss({"name": "barlow_loss", "eps": 0.7})
    other = SimpleNamespace(options={"eps": 0.7})
    for loss, eps in ((barlow, 0.7), (other, 1e-5)):
        task = SimpleNamespace(
            base_loss=loss,
            base_model=SimpleNamespace(),
            config=SimpleNamespace(BARLOW=Settings),
            last_batch=SimpleNamespace(model_output=[z_a, z_b]),
        )
        expected = cross_correlation_summary(z_a, z_b, eps=eps).mean_diagonal
        assert float(embeddings(task)["diagonal_mean"]) == float(expected)
