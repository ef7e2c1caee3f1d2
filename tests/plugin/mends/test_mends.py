"""The mends of VISSL: each does what its docstring says, and once."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gloo import run_gloo
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from vissl_runs import resolve, run_engines, succeeded

import vissl_barlow
from vissl_barlow.vissl_plugin import mends

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
SHORT = (
    f"config={DIGITS}",
    "config.BARLOW.PROBE.KIND=''",
    "config.DATA.TRAIN.DATA_LIMIT=64",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16",
    "config.OPTIMIZER.num_epochs=2",
)


@pytest.fixture(autouse=True)
def registered():
    vissl_barlow.register()


def tags(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_mends_are_applied_once():
    from vissl.utils import checkpoint

    mended = checkpoint.get_resume_checkpoint
    mends.apply()
    assert checkpoint.get_resume_checkpoint is mended


def test_a_final_checkpoint_to_overwrite_is_no_checkpoint_to_resume(tmp_path):
    from vissl.utils import checkpoint

    config = resolve(tmp_path, DIGITS, "config.CHECKPOINT.OVERWRITE_EXISTING=true")
    (tmp_path / "model_final_checkpoint_phase1.torch").touch()
    assert checkpoint.get_resume_checkpoint(config, str(tmp_path)) is None


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    from vissl.utils import checkpoint

    checkpoint.save_checkpoint(str(tmp_path), {"epoch": 1}, "model.torch")
    before = (tmp_path / "model.torch").read_bytes()

    def half(state, file):
        file.write(b"half a checkpoint")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_checkpoint(str(tmp_path), {"epoch": 2}, "model.torch")
    assert (tmp_path / "model.torch").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.torch"]


def test_the_link_to_the_newest_checkpoint_moves_on_in_a_relative_folder(tmp_path, monkeypatch):
    from vissl.utils import checkpoint

    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for name in ("first", "second"):
        Path(f"run/{name}.torch").write_text(name)
        checkpoint.create_file_symlink(f"run/{name}.torch", "run/checkpoint.torch")
        assert Path("run/checkpoint.torch").read_text() == name
    # Moved elsewhere with its folder, it still points at its neighbour.
    Path("run").rename("moved")
    assert Path("moved/checkpoint.torch").read_text() == "second"


def broadcast(rank: int, path: str):
    import vissl_barlow

    vissl_barlow.register()
    from classy_vision.generic.distributed_util import set_cpu_device
    from vissl.utils.checkpoint import CheckpointLoader

    set_cpu_device()
    # Only the primary process has the file.
    path = path if rank == 0 else "/nowhere"
    return CheckpointLoader.load_and_broadcast_checkpoint("", path, torch.device("cpu"))


def test_every_process_gets_the_primary_s_checkpoint(tmp_path):
    state = {"weights": torch.randn(1000), "epoch": 3}
    torch.save(state, tmp_path / "model.torch")
    for received in run_gloo(broadcast, 2, str(tmp_path / "model.torch")):
        assert received["epoch"] == 3
        torch.testing.assert_close(received["weights"], state["weights"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("rates", "expected"), [([0.5], {"": 0.5}), ([0.5, 2e-6], {"_0": 0.5, "_1": 2e-6})]
)
def test_tensorboard_logs_one_learning_rate_or_several(tmp_path, rates, expected):
    from classy_vision.optim.classy_optimizer import OptionsView
    from vissl.hooks.tensorboard_hook import SSLTensorboardHook

    groups = [{"lr": rate} for rate in rates]
    optimizer = SimpleNamespace()
    optimizer.options_view = OptionsView(SimpleNamespace(param_groups=groups))
    task = SimpleNamespace(
        iteration=10,
        max_iteration=20,
        train=True,
        batch_time=[0.1],
        optimizer=optimizer,
        last_batch=SimpleNamespace(loss=torch.tensor(1.0)),
        config={"LOG_FREQUENCY": 10, "DATA": {"TRAIN": {"BATCHSIZE_PER_REPLICA": 2}}},
    )
    view = optimizer.options_view
    with SummaryWriter(tmp_path) as writer:
        SSLTensorboardHook(writer).on_update(task)
    logged = tags(tmp_path)
    for suffix, rate in expected.items():
        assert logged[f"Training/Learning_rate{suffix}"] == pytest.approx([rate])
    assert optimizer.options_view is view


def test_tensorboard_and_the_profiler_run_where_they_are_told_to(tmp_path):
    succeeded(
        run_engines(
            tmp_path,
            *SHORT,
            "config.HOOKS.TENSORBOARD_SETUP.USE_TENSORBOARD=true",
            "config.HOOKS.TENSORBOARD_SETUP.LOG_DIR=boards",
            "config.PROFILING.RUNTIME_PROFILING.USE_PROFILER=true",
            "config.PROFILING.NUM_ITERATIONS=2",
            "config.PROFILING.OUTPUT_FOLDER=profiles",
            "config.LOG_FREQUENCY=4",
        )
    )
    logged = tags(tmp_path / "boards" / "tensorboard")
    assert len(logged["Barlow/invariance"]) == 3  # steps 1, 4 and 8
    assert logged["Training/Loss"]
    assert list((tmp_path / "profiles").iterdir())
    assert (tmp_path / "quickstart" / "model_final_checkpoint_phase1.torch").exists()
