"""Stops a run that is asked to stop, without losing a step."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from classy_vision.generic.distributed_util import barrier, get_world_size, is_primary

from vissl_barlow.stop_signals import StopSignals, say_stopped
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook
from vissl_barlow.vissl_plugin.hooks.checkpoints import BarlowCheckpointHook

# Steps between a request to stop and its answer on several GPUs: reading it sooner would make every
# step wait for the device.
GPU_DELAY = 2


class BarlowStop(BarlowHook):
    """On one of `STOP_SIGNALS` to any process of the run, ends all of them after the same step.

    The step under way is finished first (on several GPUs, `GPU_DELAY` more) and a checkpoint written.
    """

    def __init__(self, check_finite: Callable) -> None:
        """`check_finite(task)` raises for a state that is not worth saving."""
        super().__init__()
        self.check_finite = check_finite

    def on_start(self, task) -> None:
        (self.saver,) = (h for h in task.hooks if isinstance(h, BarlowCheckpointHook))
        self.signals = StopSignals()
        self.pending: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()

    def on_step(self, task) -> None:
        if not task.train:
            return
        number = self._signal_received_anywhere(task.device)
        if not number:
            return
        self.check_finite(task)
        self.saver.save(task, 1, task.iteration, mode="iteration")
        barrier()  # nobody leaves, and so ends the others, while the primary process saves
        if is_primary():
            saved = Path(task.checkpoint_folder, f"model_iteration{task.iteration}.torch").exists()
            outcome = "saved" if saved else "NOT saved"
            say_stopped(number, f"after step {task.iteration}, {outcome}; the same command resumes")
        self.signals.leave(number)

    def on_end(self, task) -> None:
        self.signals.restore()  # the final checkpoint is written: the default loses nothing

    def on_exception(self, task) -> None:
        self.signals.restore()

    def _signal_received_anywhere(self, device: torch.device) -> int:
        """A signal that some process has received, or 0; the same in every process at each step."""
        if get_world_size() == 1:
            return self.signals.received
        received = torch.full((), self.signals.received, dtype=torch.long, device=device)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        if device.type != "cuda":
            return int(received)
        answer = torch.empty((), dtype=torch.long, pin_memory=True)
        answer.copy_(received, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self.pending.append((arrived, answer))
        if len(self.pending) <= GPU_DELAY:
            return 0
        arrived, answer = self.pending.popleft()
        arrived.synchronize()
        return int(answer)
