"""The processes of a run: started together, ended together."""

import os
import signal
from collections.abc import Callable

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from vissl_barlow.stop_signals import STOP_SIGNALS, StopSignals, held_back, let_through
from vissl_barlow.vissl_plugin.errors import RankFailed

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
        first_rank = node_id * cfg.DISTRIBUTED.NUM_PROC_PER_NODE
        raise RankFailed(_describe_failure(processes, error, first_rank)) from None
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        signals.restore()


def _run(local_rank: int, fn: Callable, *args) -> None:
    """`fn` in a process of its own, which a request to stop ends until it has something to save."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        # Its KeyboardInterrupt waits for C code to return, and torch takes it for success.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    let_through()
    fn(local_rank, *args)


def _describe_failure(
    processes: list, error: ProcessExitedException | ProcessRaisedException, first_rank: int
) -> str:
    """Which rank failed first, and how.

    torch reports the process that it found ended first. If that one lost its connection to another,
    and another was killed by a signal other than this launcher's SIGTERM, the killed one is named.
    """
    failed, text = error.error_index, str(error).strip()
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
