"""The processes of a run: started together, ended together."""

import signal

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from vissl_barlow.vissl_plugin.errors import RankFailed
from vissl_barlow.vissl_plugin.run.signals import STOP_SIGNALS, StopSignals

# How a process fails that was talking to one that is gone.
_LOST_CONNECTION = ("gloo", "nccl", "connection", "distbackenderror", "timed out", "pair closure")


def spawn(fn, nprocs: int, args: tuple) -> None:
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
        raise RankFailed(_account(context.processes, error, first_rank)) from None
    finally:
        signals.restore()


def _account(processes: list, error, first_rank: int) -> str:
    """Which rank failed first and how; a process that lost its connection to it is not the one."""
    fallen, text = error.error_index, str(error).strip()
    if any(sign in text.lower() for sign in _LOST_CONNECTION):
        killed = [
            i for i, p in enumerate(processes) if p.exitcode < 0 and p.exitcode != -signal.SIGTERM
        ]
        fallen = killed[0] if killed else fallen
    process = processes[fallen]
    how, trace = "failed", f"{text}\n"
    if process.exitcode < 0:
        how, trace = f"was ended by {signal.Signals(-process.exitcode).name}", ""
    return (
        f"{trace}rank {first_rank + fallen} (pid {process.pid}) {how}; the other processes of the "
        "run were ended too, and the same command resumes from the last checkpoint"
    )
