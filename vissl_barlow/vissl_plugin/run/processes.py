"""The processes of a run: started together, ended together."""

import os
import signal
from collections.abc import Callable

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from vissl_barlow.patient_files import FolderGone
from vissl_barlow.stop_signals import STOP_SIGNALS, StopSignals, held_back, let_through
from vissl_barlow.vissl_plugin.errors import ConfigError, RankFailed

# In the message of a process that fails because another one, which it was talking to, is gone.
_LOST_CONNECTION = ("gloo", "nccl", "connection", "distbackenderror", "timed out", "pair closure")


def spawn(fn: Callable, nprocs: int, args: tuple) -> None:
    """torch.multiprocessing.spawn for VISSL's launcher, whose `args` begin with (cfg, node_id).

    Signals that ask this process to stop are passed on to all of them. When one ends, the others get
    `config.BARLOW.GRACE_SECONDS` to end as well, are then terminated and, after as long again, killed.
    A second Ctrl-C kills them at once. None is left when this returns or raises.

    Raises:
        RankFailed: one failed or was killed; the message names the one that did first.
        SystemExit: they were asked to stop, with the status of that signal.
    """
    cfg, node_id = args[:2]
    processes: list = []

    def forward(number: int) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    signals = StopSignals(forward)
    try:
        with held_back():
            context = torch.multiprocessing.spawn(_run, args=(fn, *args), nprocs=nprocs, join=False)
            processes += context.processes
        while not context.join(grace_period=cfg.BARLOW.GRACE_SECONDS):
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        if signals.received:
            signals.leave(signals.received)
        status = processes[error.error_index].exitcode
        if status - 128 in STOP_SIGNALS:  # a process was asked to stop, not the launcher
            raise SystemExit(status) from None
        distributed = cfg.DISTRIBUTED
        first_rank = node_id * distributed.NUM_PROC_PER_NODE
        world_size = distributed.NUM_NODES * distributed.NUM_PROC_PER_NODE
        raise RankFailed(_describe_failure(processes, error, first_rank, world_size)) from None
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        signals.restore()


def _run(local_rank: int, fn: Callable, *args) -> None:
    """`fn` in a process of its own, which a request to stop ends until it has something to save."""
    let_through()
    fn(local_rank, *args)


def _describe_failure(
    processes: list,
    error: ProcessExitedException | ProcessRaisedException,
    first_rank: int,
    world_size: int,
) -> str:
    """Which rank failed first, and how.

    torch reports the process that it found ended first. If that one lost its connection to another,
    and another was killed by a signal other than this launcher's SIGTERM, the killed one is named. If
    none of this node was, it is one of another node's.
    """
    failed, text, how = error.error_index, str(error).strip(), "failed"
    kind, _, message = text.rpartition("\n")[2].partition(": ")
    if kind.endswith((FolderGone.__name__, f".{ConfigError.__name__}")):
        return message
    if any(sign in text.lower() for sign in _LOST_CONNECTION):
        killed = [
            i for i, p in enumerate(processes) if p.exitcode < 0 and p.exitcode != -signal.SIGTERM
        ]
        failed = killed[0] if killed else failed
        elsewhere = _ranges((0, first_rank), (first_rank + len(processes), world_size))
        if elsewhere:
            how = f"lost its connection to a process of another node, one of rank {elsewhere}"
    process = processes[failed]
    if process.exitcode < 0:
        # The traceback, if there is one, is of the process that lost its connection.
        trace, how = "", f"was ended by {signal.Signals(-process.exitcode).name}"
    else:
        trace = f"{text}\n"
    return (
        f"{trace}rank {first_rank + failed} (pid {process.pid}) {how}; the other processes of the "
        "run were ended too, and the same command resumes from the last checkpoint"
    )


def _ranges(*ranges: tuple[int, int]) -> str:
    """Those of half-open `ranges` that are not empty, in words."""
    words = [
        str(start) if end == start + 1 else f"{start} to {end - 1}"
        for start, end in ranges
        if start < end
    ]
    return " or ".join(words)
