"""Requests to stop, by signal."""

import multiprocessing.util
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

# SIGTERM is the usual request to stop; SLURM's `--signal` and submitit send the other two.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """Notes a request to stop in `received`, instead of ending the process, until `restore` or `leave`.

    SIGTERM is left to a handler that someone else has installed: submitit's ignores it, because the
    signal that asks for a new submission comes as well. That signal's handler runs in `leave`.

    Attributes:
        received: number of the signal, 0 for none.
        forward_to: processes (multiprocessing's) that get every signal too.
    """

    def __init__(self) -> None:
        self.received = 0
        self.forward_to: Sequence = ()
        self.previous: dict[int, Any] = {}  # handlers by signal
        self.owner = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return  # where Python allows no handlers
        for number in STOP_SIGNALS:
            current = signal.getsignal(number)
            if number != signal.SIGTERM or current == signal.SIG_DFL:
                self.previous[number] = current
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        if os.getpid() != self.owner:  # a loader worker that was forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        self.forward(number)

    def forward(self, number: int) -> None:
        """Sends the signal to those processes in `forward_to` that still run."""
        for process in self.forward_to:
            if process.is_alive():
                os.kill(process.pid, number)

    def restore(self) -> None:
        """Puts the handlers back that were there before."""
        while self.previous:
            number, handler = self.previous.popitem()
            signal.signal(number, handler)

    def leave(self, number: int) -> None:
        """Ends the process as the signal asked: by its own handler if it had one (submitit's submits
        the job anew and exits), else with the shell's status for that signal."""
        handler = self.previous.get(number)
        self.restore()
        if callable(handler):
            handler(number, None)
        raise SystemExit(128 + number)


def leave_signals_to_the_run() -> None:
    """Ignores requests to stop in a loader worker.

    SLURM signals it like every process of the job, but the run needs its images to finish the step.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_loader_workers_at_exit() -> None:
    """Kills loader workers when this process exits.

    Python sends its daemons SIGTERM at exit and waits for them; these ignore it.
    """

    def kill() -> None:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    multiprocessing.util.Finalize(None, kill, exitpriority=100)
