"""Requests to stop, by signal and from SLURM: a run loses nothing."""

import signal

import pytest
from forked_runs import STEPS_PER_EPOCH, TWO_PROCESSES
from interrupted_runs import EPOCHS, assert_same_end, last_line

LOADER_WORKERS = (
    "config.DATA.NUM_DATALOADER_WORKERS=1",
    "config.MULTI_PROCESSING_METHOD=fork",
)


@pytest.mark.parametrize(
    ("number", "processes", "receiver", "workers"),
    [
        (signal.SIGTERM, 1, "launcher", False),
        (signal.SIGUSR1, 2, "launcher", False),
        (signal.SIGTERM, 2, "everyone", True),
        (signal.SIGUSR2, 2, "rank 1", False),
        (signal.SIGINT, 1, "everyone", True),
        (signal.SIGINT, 2, "launcher", False),
        (signal.SIGINT, 2, "everyone", True),
        (signal.SIGINT, 2, "rank 1", False),
    ],
)
def test_a_signal_loses_nothing(
    server, uninterrupted, tmp_path, number, processes, receiver, workers
):
    command = (
        f"config.OPTIMIZER.num_epochs={EPOCHS}",
        *(TWO_PROCESSES if processes == 2 else ()),
        *(LOADER_WORKERS if workers else ()),
    )
    run = server.start(tmp_path, *command)
    run.wait_for_steps(STEPS_PER_EPOCH + 2)
    if receiver == "everyone":
        run.send_to_all(number)
    else:
        run.send(number, run.ranks()[1] if receiver == "rank 1" else None)
    assert run.wait() == 128 + number, run.output[-3000:]
    last = run.steps()[-1]
    assert run.steps() == list(range(1, last + 1)) and last < EPOCHS * STEPS_PER_EPOCH
    assert f"stopped by {number.name} after step {last}, saved" in last_line(run)

    server.finish(tmp_path, *command)
    assert run.steps() == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert_same_end(tmp_path, uninterrupted[processes])


# As submitit sets a job up: SIGTERM is waved through, SIGUSR2 asks for a new submission.
SUBMITIT = """
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission
from vissl.utils.distributed_launcher import _ResumableSlurmJob

def requeue(countdown):
    saved = sorted(path.name for path in Path(".").glob("model_iteration*.torch"))
    Path("requeued").write_text(" ".join(saved))

delayed = DelayedSubmission(_ResumableSlurmJob("train", {"NAME": "x"}))
delayed.set_timeout(600, 3)
handler = SignalHandler(
    SimpleNamespace(global_rank=0, _requeue=requeue),
    SimpleNamespace(submitted_pickle=Path("submitted.pkl").absolute()),
    delayed,
)
signal.signal(signal.SIGTERM, handler.bypass)
signal.signal(signal.SIGUSR2, handler.checkpoint_and_try_requeue)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_preempted_slurm_job_is_saved_and_then_submitted_anew(
    server, uninterrupted, tmp_path, processes
):
    command = (
        f"config.OPTIMIZER.num_epochs={EPOCHS}",
        *(TWO_PROCESSES if processes == 2 else ()),
    )
    run = server.start(tmp_path, *command, prepare=SUBMITIT)
    run.wait_for_steps(2)
    run.send(signal.SIGTERM)
    run.wait_for_steps(5)
    run.send(signal.SIGUSR2)
    assert run.wait() == 255, run.output[-3000:]  # submitit's exit status
    assert (tmp_path / "requeued").read_text() == f"model_iteration{run.steps()[-1]}.torch"
    assert (tmp_path / "submitted.pkl").exists()
    server.finish(tmp_path, *command)
    assert_same_end(tmp_path, uninterrupted[processes])
