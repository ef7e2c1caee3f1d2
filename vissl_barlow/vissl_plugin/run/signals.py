"""Requests to stop, by signal."""

import multiprocessing.util
import os
import signal
import threading

# SIGTERM is the usual request to stop; SLURM's `--signal` and submitit send the other two.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """Takes down the request instead of ending the process, until `restore` or `leave`.

    SIGTERM is left to a handler that someone else has installed: submitit's ignores it, because the
    signal that asks for a new submission comes as well. That signal's handler runs in `leave`.
    """

    def __init__(self) -> None:
        self.received = 0
        self.forward_to: list = []
        self.previous: dict[int, object] = {}
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
        """Sends the signal to the processes in `forward_to`."""
        for process in self.forward_to:
            if process.is_alive():
                os.kill(process.pid, number)

    def restore(self) -> None:
        while self.previous:
            signal.signal(*self.previous.popitem())

    def leave(self, number: int) -> None:
        """Ends the process as the signal asked: by its own handler if it had one (submitit's submits
        the job anew and exits), else with the shell's status for that signal."""
        handler = self.previous.get(number)
        self.restore()
        if callable(handler):
            handler(number, None)
        raise SystemExit(128 + number)


def leave_signals_to_the_run() -> None:
    """For a loader worker: SLURM signals it too, and without it the step cannot be finished."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_loader_workers_at_exit() -> None:
    """For a process with such workers: at its exit Python terminates them, in vain, and waits."""

    def kill() -> None:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    multiprocessing.util.Finalize(None, kill, exitpriority=100)
