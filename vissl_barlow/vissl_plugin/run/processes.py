"""The processes of a run: started together, ended together."""

import signal
from collections.abc import Callable

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from vissl_barlow.patient_files import FolderGone
from vissl_barlow.vissl_plugin.errors import RankFailed
from vissl_barlow.vissl_plugin.run.signals import STOP_SIGNALS, StopSignals

# In the message of a process that fails because another one, which it was talking to, is gone.
_LOST_CONNECTION = ("gloo", "nccl", "connection", "distbackenderror", "timed out", "pair closure")


def spawn(fn: Callable, nprocs: int, args: tuple) -> None:
    """torch.multiprocessing.spawn for VISSL's launcher, whose `args` begin with (cfg, node_id).

    Signals that ask this process to stop are passed on to all of them. When one ends, the others get
    `config.BARLOW.GRACE_SECONDS` to end as well, are then terminated and, after as long again, killed.

    Raises:
        RankFailed: one failed or was killed; the message names the one that did first.
        SystemExit: they were asked to stop, with the status of that signal.
    """
    cfg, node_id = args[:2]
    signals = StopSignals()
    context = torch.multiprocessing.spawn(fn, args=args, nprocs=nprocs, join=False)
    signals.forward_to = context.processes
    if signals.received:
        signals.forward(signals.received)
    try:
        while not context.join(grace_period=cfg.BARLOW.GRACE_SECONDS):
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        if signals.received:
            signals.leave(signals.received)
        status = context.processes[error.error_index].exitcode
        if status - 128 in STOP_SIGNALS:  # a process was asked to stop, not the launcher
            raise SystemExit(status) from None
        first_rank = node_id * cfg.DISTRIBUTED.NUM_PROC_PER_NODE
        raise RankFailed(_describe_failure(context.processes, error, first_rank)) from None
    finally:
        signals.restore()


def _describe_failure(
    processes: list, error: ProcessExitedException | ProcessRaisedException, first_rank: int
) -> str:
    """Which rank failed first, and how.

    torch reports the process that it found ended first. If that one lost its connection to another,
    and another was killed by a signal other than this launcher's SIGTERM, the killed one is named.
    """
    failed, text = error.error_index, str(error).strip()
    kind, _, message = text.rpartition("\n")[2].partition(": ")
    if kind.endswith(FolderGone.__name__):
        return message
    if any(sign in text.lower() for sign in _LOST_CONNECTION):
        killed = [
            i for i, p in enumerate(processes) if p.exitcode < 0 and p.exitcode != -signal.SIGTERM
        ]
        failed = killed[0] if killed else failed
    process = processes[failed]
    if process.exitcode < 0:
        # The traceback, if there is one, is of the process that lost its connection.
        trace, how = "", f"was ended by {signal.Signals(-process.exitcode).name}"
    else:
        trace, how = f"{text}\n", "failed"
    return (
        f"{trace}rank {first_rank + failed} (pid {process.pid}) {how}; the other processes of the "
        "run were ended too, and the same command resumes from the last checkpoint"
    )
