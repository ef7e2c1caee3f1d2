"""VISSL's hooks as the plugin's tasks replace them: TensorBoard, profiler, logs, and their order."""

import errno
import gc
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from patience import wait_until
from small_disks import full, small_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from vissl.hooks import DumpMemoryOnException, default_hook_generator
from vissl.hooks.profiling_hook import ProfilingHook
from vissl_runs import resolve, run_engines, succeeded

import vissl_barlow

vissl_barlow.register()

from vissl_barlow.vissl_plugin.hooks import barlow_hooks  # noqa: E402
from vissl_barlow.vissl_plugin.hooks.logs import BarlowLogHook  # noqa: E402
from vissl_barlow.vissl_plugin.hooks.outputs import TensorBoard  # noqa: E402
from vissl_barlow.vissl_plugin.hooks.profiler import BarlowProfilingHook  # noqa: E402
from vissl_barlow.vissl_plugin.hooks.tensorboard import BarlowTensorboardHook  # noqa: E402

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
SHORT = (
    f"config={DIGITS}",
    "config.BARLOW.PROBE.KIND=''",
    "config.DATA.TRAIN.DATA_LIMIT=64",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16",
    "config.OPTIMIZER.num_epochs=2",
)


def tags(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize(
    ("rates", "expected"), [([0.5], {"": 0.5}), ([0.5, 2e-6], {"_0": 0.5, "_1": 2e-6})]
)
def test_tensorboard_logs_one_learning_rate_or_several(tmp_path, rates, expected):
    from classy_vision.optim.classy_optimizer import OptionsView

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
        BarlowTensorboardHook(writer).on_update(task)
    logged = tags(tmp_path)
    for suffix, rate in expected.items():
        assert logged[f"Training/Learning_rate{suffix}"] == pytest.approx([rate])
    assert optimizer.options_view is view


def has_content(folder: Path) -> bool:
    """Whether the newest board in `folder` has any."""
    boards = sorted(folder.glob("events*"), key=lambda path: int(path.suffix[1:]))
    return bool(boards) and boards[-1].stat().st_size > 0


def close_board(writer, folder: Path) -> None:
    """After the thread has written for the first time: to close at that moment would meet it there.

    The next number goes to another file.
    """
    wait_until(lambda: has_content(folder), lambda: f"no board in {folder}", seconds=60)
    time.sleep(0.01)
    writer.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_goes_on_in_another_file_when_the_disk_has_room(tmp_path, caplog):
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        task = SimpleNamespace(iteration=1, train=True, config={"LOG_FREQUENCY": 1})
        hook = BarlowTensorboardHook.replacing(BarlowTensorboardHook(SummaryWriter(disk)))
        output = TensorBoard(hook.tb_writer)
        output.write(task, {"iteration": 0, "loss": 1.0})
        close_board(hook.tb_writer, disk)
        with full(disk, "bytes"):
            for step in range(1, 50):
                output.write(task, {"iteration": step, "loss": 1.0})
                hook.tb_writer.flush()
        output.write(task, {"iteration": 50, "loss": 2.0})
        close_board(hook.tb_writer, disk)
        assert caplog.text.count("numbers for TensorBoard not written") == 1
        assert len(list(disk.glob("events*"))) == 3
        first, *_, last = sorted(disk.glob("events*"), key=lambda path: int(path.suffix[1:]))
        assert tags(first) == {"Barlow/iteration": [0], "Barlow/loss": [1]}
        assert tags(last) == {"Barlow/iteration": [50], "Barlow/loss": [2]}


@pytest.mark.parametrize("dump", ["_dump_memory_stats", "_dump_runtime_profiling_results"])
def test_a_profile_that_does_not_fit_ends_nothing(dump, monkeypatch, caplog):
    monkeypatch.setattr(ProfilingHook, dump, lambda *_: Path("/dev/full").write_text("profile"))
    hook = BarlowProfilingHook.__new__(BarlowProfilingHook)
    hook.written = False
    getattr(hook, dump)(1)
    assert "No space left on device" in caplog.text


def test_a_dump_of_the_memory_that_fails_does_not_hide_what_it_is_about(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    config = resolve(
        tmp_path,
        "pretrain/vissl_barlow/digits_quickstart",
        "config.HOOKS.MEMORY_SUMMARY.DUMP_MEMORY_ON_EXCEPTION=true",
    )
    hooks = barlow_hooks(default_hook_generator(config), config, True)
    [hook] = [each for each in hooks if isinstance(each, DumpMemoryOnException)]
    monkeypatch.setattr(gc, "get_objects", list)  # those of pytest do not bear being looked at
    (tmp_path / "memory_rank_0_dump_3.txt").symlink_to("/dev/full")
    hook.on_exception(SimpleNamespace(local_iteration_num=3))
    assert "no whole dump of the memory" in caplog.text


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


def test_weights_are_looked_at_before_they_are_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = resolve(
        tmp_path,
        DIGITS,
        "config.HOOKS.PERF_STATS.MONITOR_PERF_STATS=true",
        "config.HOOKS.TENSORBOARD_SETUP.USE_TENSORBOARD=true",
        "config.PROFILING.RUNTIME_PROFILING.USE_PROFILER=true",
        f"config.PROFILING.OUTPUT_FOLDER={tmp_path}/profiles",
    )
    watching = ["BarlowFiniteLoss", "BarlowMonitor"]
    ending = ["BarlowProbe", "BarlowNextSteps"]
    own = [[*watching, "BarlowStop", *ending], [*watching, *ending]]
    for resumes_within_epochs, pretraining in zip((True, False), own):
        hooks = barlow_hooks(default_hook_generator(config), config, resumes_within_epochs)
        assert [type(hook).__name__ for hook in hooks] == [
            "LogPerfTimeMetricsHook",
            *pretraining,
            "RunRecord",
            "BarlowTensorboardHook",
            "BarlowProfilingHook",
            "SetDataSamplerEpochHook",
            "FreezeParametersHook",
            "BarlowCheckpointHook",
            "BarlowLogHook",
        ]


def test_a_log_that_cannot_be_written_is_reported(caplog):
    def full(task):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    BarlowLogHook(SimpleNamespace(on_update=full)).on_update(None)
    assert "metrics not written ([Errno 28] No space left on device)" in caplog.text
