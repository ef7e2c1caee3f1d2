"""Processes of a run that die, and two runs in one folder."""

import os
import signal
from pathlib import Path

import pytest
from forked_runs import TWO_PROCESSES
from interrupted_runs import SHORT, assert_same_end, last_line
from patience import slowdown
from two_nodes import as_node, meet_here

# Seconds instead of ten, twice, that the survivors of a run get to end by themselves.
SHORT_GRACE = "config.BARLOW.GRACE_SECONDS=1"

FAIL_ON_RANK_1 = """
import vissl_barlow.vissl_plugin.components.train_step as step, os
normalize, calls = step._prepare, []
def fail(*args):
    calls.append(1)
    if len(calls) == 5 and os.environ["RANK"] == "1":
        raise ValueError("a mishap")
    return normalize(*args)
step._prepare = fail
"""


def short_timeout() -> str:
    """Three seconds, and more on a busy machine: while all is well, no process may keep the other
    waiting for so long."""
    return f"config.BARLOW.TIMEOUT_MINUTES={0.05 * slowdown():.3f}"


@pytest.mark.parametrize("way", ["killed", "raised", "silent"])
def test_a_dead_process_ends_the_others_and_is_named(server, uninterrupted, tmp_path, way):
    command = (*SHORT, *TWO_PROCESSES, SHORT_GRACE)
    prepare = FAIL_ON_RANK_1 if way == "raised" else ""
    limit = (short_timeout(),) if way == "silent" else ()
    run = server.start(tmp_path, *command, *limit, prepare=prepare)
    run.wait_for_steps(4)
    ranks = run.ranks()
    if way == "killed":
        run.send(signal.SIGKILL, ranks[1])
    elif way == "silent":
        run.send(signal.SIGSTOP, ranks[1])
    assert run.wait() == 1
    ending = {
        "killed": f"rank 1 (pid {ranks[1]}) was ended by SIGKILL",
        "raised": f"rank 1 (pid {ranks[1]}) failed",
        "silent": f"rank 1 (pid {ranks[1]}) was ended by SIGKILL",
    }[way]
    assert ending in run.output, run.output[-3000:]
    assert ("ValueError: a mishap" in run.output) == (way == "raised")
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    server.finish(tmp_path, *command)
    assert_same_end(tmp_path, uninterrupted[2])


@pytest.mark.parametrize("way", [signal.SIGSTOP, signal.SIGKILL])
def test_a_lost_node_is_named_by_the_ranks_it_may_be(server, tmp_path, way):
    command = (
        *meet_here(),
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
        f"config.CHECKPOINT.DIR={tmp_path / 'run'}",
        short_timeout(),
        "config.OPTIMIZER.num_epochs=1000",
        SHORT_GRACE,
    )
    first, second = (
        server.start(tmp_path / folder, *command, **as_node(node))
        for node, folder in (("0", "run"), ("1", "other"))
    )
    first.wait_for_steps(3)
    second.send_to_all(way)
    assert first.wait() == 1
    if way == signal.SIGSTOP:
        second.send_to_all(signal.SIGKILL)
    second.wait()
    lost = "lost its connection to a process of another node, one of rank 1; "
    assert lost in first.output, first.output[-3000:]


def test_a_second_run_in_the_folder_refuses_and_names_the_first(server, tmp_path):
    first = server.start(tmp_path, "config.OPTIMIZER.num_epochs=100")
    first.wait_for_steps(3)
    second = server.start(tmp_path, "config.OPTIMIZER.num_epochs=100", *TWO_PROCESSES)
    assert second.wait() == 1
    line = last_line(second)
    assert line.startswith(f"vissl_barlow: config.CHECKPOINT.DIR={tmp_path}: another run")
    assert f"pid {first.pid} on {os.uname().nodename}, started 20" in line
    steps = len(first.steps())
    first.wait_for_steps(steps + 2)
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    # Its lock is gone with it, though its file is not.
    assert (tmp_path / "barlow_run.lock").exists()
    third = server.start(tmp_path, "config.OPTIMIZER.num_epochs=100")
    third.wait_for_steps(len(first.steps()) + 2)
    third.send(signal.SIGKILL)
    third.wait()
