"""Requests to stop (Ctrl-C, SIGTERM and their like): a training saves first, in all its processes."""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator

from detectron2.engine import hooks
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from vissl_barlow.stop_signals import STOP_SIGNALS, StopSignals, say_stopped


class StopHook(hooks.HookBase):
    """Asked to stop in any process, saves after the step and leaves in all, with 128 + the signal.

    Not after the last step: the training then saves and is evaluated.
    """

    def __init__(self) -> None:
        self.signals = StopSignals()

    def after_step(self) -> None:
        trainer = self.trainer
        number = max(comm.all_gather(self.signals.received))
        if not number or trainer.iter + 1 >= trainer.max_iter:
            return
        trainer.checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
        comm.synchronize()  # nobody leaves, and so ends the others, while the main process saves
        if comm.is_main_process():
            done = trainer.iter + 1
            say_stopped(
                number, f"after iteration {done}, saved; the same command with --resume goes on"
            )
        self.signals.leave(number)

    def after_train(self) -> None:
        self.signals.restore()


@contextlib.contextmanager
def passed_on() -> Iterator[None]:
    """Requests to stop reach the processes that are started within it; none of them outlives it.

    Raises:
        SystemExit: this process or one of those was asked to stop, with the status of the signal.
    """

    def processes() -> list[multiprocessing.process.BaseProcess]:
        return [child for child in multiprocessing.active_children() if not child.daemon]

    def forward(number: int) -> None:
        for process in processes():
            if process.pid is not None:
                os.kill(process.pid, number)

    signals = StopSignals(forward)
    try:
        yield
    except (ProcessExitedException, ProcessRaisedException) as error:
        status = getattr(error, "exit_code", 1)
        if not signals.received and status - 128 in STOP_SIGNALS:
            raise SystemExit(status) from None
        if not signals.received:
            raise
    finally:
        for process in processes():
            process.kill()
            process.join()
        signals.restore()
    if signals.received:
        raise SystemExit(128 + signals.received)
