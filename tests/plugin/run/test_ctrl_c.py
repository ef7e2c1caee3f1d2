"""Ctrl-C: once, twice, at the worst moments, and without the process that started the run."""

import os
import signal

import pytest
from forked_runs import STEPS_PER_EPOCH, TWO_PROCESSES, is_gone
from interrupted_runs import EPOCHS, checkpoints, last_line

from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.run.lock import lock

CTRL_C = 128 + signal.SIGINT
PROCESSES = pytest.mark.parametrize("processes", [(), TWO_PROCESSES], ids=["one", "two"])

# The third step has no end.
ENDLESS_STEP = """
import os, time
from pathlib import Path
from vissl_barlow.vissl_plugin.hooks.stop import BarlowStop

def on_step(self, task):
    if task.iteration == 3:
        Path(f"in_step_3_{os.getpid()}").touch()
        while True:
            time.sleep(1)

BarlowStop.on_step = on_step
"""

# The first loader worker of the second epoch sends Ctrl-C to everyone as the first thing it does.
CTRL_C_AS_WORKERS_START = """
import os, signal
from pathlib import Path
from torch.utils.data._utils import worker

loop = worker._worker_loop

def interrupted(*args):
    if Path("model_phase0.torch").exists():
        try:
            Path("sent").touch(exist_ok=False)
            os.killpg(os.getpgrp(), signal.SIGINT)
        except FileExistsError:
            pass
    loop(*args)

worker._worker_loop = interrupted
"""

# Before the first step, while the data and the model are made.
CTRL_C_IN_PREPARE = """
import os, signal
from vissl_barlow.vissl_plugin.components.task import BarlowTask

def prepare(self, pin_memory):
    if os.environ["RANK"] == "0":
        os.killpg(os.getpgrp(), signal.SIGINT)
    signal.pause()

BarlowTask.prepare = prepare
"""


# One of the SVM tools while its child trains.
SVM_TOOL = """
import os, time
from pathlib import Path
from vissl_barlow.vissl_plugin.mends.svm_tools import _CheckedProcess
from vissl_barlow.vissl_plugin.wrap import note_config

def train():
    Path("pid").write_text(str(os.getpid()))
    os.rename("pid", "training")
    while True:
        time.sleep(1)

note_config({"BARLOW": {}})
process = _CheckedProcess(target=train)
process.start()
process.join()
"""


@PROCESSES
def test_twice_ends_every_process_at_once(server, tmp_path, processes):
    run = server.start(tmp_path, *processes, prepare=ENDLESS_STEP)
    ranks = 2 if processes else 1
    run.wait_until(lambda: len(list(tmp_path.glob("in_step_3_*"))) == ranks)
    started = run.ranks()
    run.send_to_all(signal.SIGINT)
    run.wait_until(lambda: "once more stops at once" in run.output)
    with pytest.raises(ConfigError, match="another run is writing there"):
        lock(tmp_path)
    run.send_to_all(signal.SIGINT)
    assert run.wait() == CTRL_C, run.output[-3000:]
    assert all(map(is_gone, started))
    assert "All Done" not in run.output
    assert last_line(run) == "vissl_barlow: stopped by SIGINT"


@PROCESSES
def test_loader_workers_that_only_start_leave_it_to_the_run(server, tmp_path, processes):
    run = server.start(
        tmp_path,
        *processes,
        f"config.OPTIMIZER.num_epochs={EPOCHS}",
        "config.DATA.NUM_DATALOADER_WORKERS=2",
        "config.MULTI_PROCESSING_METHOD=fork",
        prepare=CTRL_C_AS_WORKERS_START,
    )
    assert run.wait() == CTRL_C, run.output[-3000:]
    last = run.steps()[-1]
    assert STEPS_PER_EPOCH < last < EPOCHS * STEPS_PER_EPOCH
    assert f"stopped by SIGINT after step {last}, saved" in last_line(run)


@PROCESSES
def test_before_the_first_step_it_ends_the_run_all_the_same(server, tmp_path, processes):
    run = server.start(tmp_path, *processes, prepare=CTRL_C_IN_PREPARE)
    assert run.wait() == CTRL_C, run.output[-3000:]
    assert "Traceback" not in run.output and "All Done" not in run.output
    assert not checkpoints(tmp_path)


def test_without_their_launcher_processes_write_nothing_more(server, tmp_path):
    run = server.start(
        tmp_path,
        *TWO_PROCESSES,
        "config.OPTIMIZER.num_epochs=1000",
        "config.CHECKPOINT.CHECKPOINT_FREQUENCY=1000",
    )
    run.wait_for_steps(2)
    ranks = run.ranks()
    run.send(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    run.wait_until(lambda: all(map(is_gone, ranks)))
    assert not checkpoints(tmp_path)  # the lock is gone: another run may be writing there


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, CTRL_C), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_svms_are_not_trained_without_their_tool(server, tmp_path, number, status):
    run = server.start(tmp_path, prepare=SVM_TOOL)
    run.wait_until((tmp_path / "training").exists)
    run.send(number)
    assert run.wait() == status, run.output[-3000:]
    run.wait_until(lambda: is_gone(int((tmp_path / "training").read_text())))
    assert "Traceback" not in run.output


def test_an_ignored_ctrl_c_stays_ignored(server, tmp_path):
    """As of `command &` in a script, whose Ctrl-C is for what is in front."""
    run = server.start(
        tmp_path, prepare="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    )
    run.wait_for_steps(2)
    run.send(signal.SIGINT)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM, run.output[-3000:]
