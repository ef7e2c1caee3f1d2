"""Runs a function in several real processes joined over gloo."""

from __future__ import annotations

import contextlib
import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Before the group exists: the default arguments of its functions are the default group of that moment,
# and a group that something still holds after `destroy_process_group` keeps its threads, one of which
# may abort the process while the interpreter exits. DistributedDataParallel imports it.
import torch.distributed.nn
import torch.multiprocessing as mp
from patience import Patience

# Processes that disagree fail instead of hanging, but not by gloo's clock.
LIMIT = 300  # seconds
NEVER = datetime.timedelta(days=1)


def _child(rank: int, fn: Callable, world_size: int, folder: str, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=NEVER,
    )
    try:
        torch.save(fn(rank, *args), f"{folder}/{rank}.pt")
        # No process leaves while another still sends to it. One that failed has raised already.
        with contextlib.suppress(RuntimeError):
            dist.barrier()
    finally:
        dist.destroy_process_group()


def run_gloo(fn: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Calls `fn(rank, *args)` in `world_size` processes of one default gloo group.

    `fn` is a module-level function; arguments and results are picklable. Returns the results in
    order of rank. A child's exception is raised here, with its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        group = mp.spawn(_child, (fn, world_size, folder, args), nprocs=world_size, join=False)
        patience = Patience(LIMIT)
        try:
            while not group.join(timeout=1):
                assert not patience.is_over(), f"{fn} has no end"
        finally:
            for process in group.processes:
                process.kill()
        return [
            torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world_size)
        ]
