"""A full disk costs a checkpoint, not the run."""

import json

import pytest
from forked_runs import STEPS_PER_EPOCH
from interrupted_runs import EPOCHS, SHORT, assert_same_end, at_steps, checkpoints, final_state
from small_disks import FILL, small_disk

# From the checkpoint with number FIRST on, four in a row do not fit; the small records do.
FULL_DISK = """
import errno, os, stat
sync, calls = os.fsync, []
def full(descriptor):
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode) or status.st_size < 100_000:
        return sync(descriptor)
    calls.append(1)
    if FIRST <= len(calls) < FIRST + 4:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return sync(descriptor)
os.fsync = full
"""


@pytest.mark.parametrize("kind", ["bytes", "inodes"])
def test_a_disk_that_is_full_over_the_end_of_an_epoch_costs_nothing(
    kind, server, uninterrupted, tmp_path
):
    """From step 10 to step 20, in the folder that the output goes to as well."""
    prepare = f"{FILL}\nfirst = lambda: fill({kind!r})\nsecond = free\n{at_steps(10, 20)}"
    with small_disk(tmp_path / "run") as folder:
        server.finish(folder, *SHORT, prepare=prepare)
        assert_same_end(folder, uninterrupted[1])
        assert_whole_logs(folder)
        assert checkpoints(folder) >= {"model_iteration21.torch", "model_iteration24.torch"}
        assert "iter: 20" in (folder / "log.txt").read_text()
        assert not list(folder.glob(".unfinished-*"))


def assert_whole_logs(folder) -> None:
    """Of all steps of `SHORT`, in one start."""
    steps = range(1, EPOCHS * STEPS_PER_EPOCH + 1)
    logged = [json.loads(line) for line in (folder / "barlow.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in logged] == list(steps)
    logged = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert [entry["iteration"] for entry in logged] == [8, 16, 24]
    logged = [json.loads(line) for line in (folder / "stdout.json").read_text().splitlines()]
    assert [entry["iter"] for entry in logged] == list(range(24))
    (start,) = json.loads((folder / "barlow_run.json").read_text())
    assert start["hours"] > 0


def test_a_full_disk_is_reported_and_training_goes_on(server, uninterrupted, tmp_path):
    # The first is at step 3, the second at 6.
    run = server.start(tmp_path, *SHORT, prepare=FULL_DISK.replace("FIRST", "2"))
    run.wait_for_steps(12)
    assert "model_iteration3.torch" in checkpoints(tmp_path)  # the last good one
    assert run.wait() == 0, run.output[-3000:]
    failed = [line for line in run.output.splitlines() if "not saved" in line]
    assert ["of step 6 " in failed[0], "of step 8 " in failed[1]] == [True, True]
    assert len(failed) == 4 and "No space left on device" in failed[0]
    assert_same_end(tmp_path, uninterrupted[1])
    assert not list(tmp_path.glob(".unfinished-*"))


def test_a_final_checkpoint_that_does_not_fit_fails_and_the_next_start_writes_it(
    server, uninterrupted, tmp_path
):
    run = server.start(
        tmp_path, f"config.OPTIMIZER.num_epochs={EPOCHS}", prepare=FULL_DISK.replace("FIRST", "3")
    )
    assert run.wait() == 1
    assert "No space left on device" in run.output
    assert checkpoints(tmp_path) == {"model_phase0.torch", "model_phase1.torch"}
    server.finish(tmp_path, f"config.OPTIMIZER.num_epochs={EPOCHS}")
    assert_same_end(tmp_path, uninterrupted[1])


def test_logs_that_cannot_be_written_do_not_end_the_run(server, tmp_path):
    for name in ("barlow.jsonl", "metrics.json", "stdout.json"):
        (tmp_path / name).symlink_to("/dev/full")
    run = server.finish(tmp_path, *SHORT)
    assert "metrics not written" in run.output
    assert final_state(tmp_path)["iteration"] == EPOCHS * STEPS_PER_EPOCH
