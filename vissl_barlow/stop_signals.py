"""Requests to stop, by signal: noted, passed on, and answered by the exit status 128 + signal."""

import contextlib
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vissl_barlow.screen import ERASE_LINE

# SIGTERM is the usual request to stop, SIGINT is Ctrl-C; SLURM's `--signal` and submitit send the
# other two.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# Of these two a handler that someone else has installed stays.
_LEFT_TO_OTHERS = (signal.SIGTERM, signal.SIGINT)
_NOBODYS = (signal.SIG_DFL, signal.default_int_handler)


class StopSignals:
    """Notes a request to stop in `received`, instead of ending the process, until `restore` or `leave`.

    A second Ctrl-C raises SystemExit(130), wherever the process is, in the process that was started by
    the user. Those that multiprocessing has started get each Ctrl-C twice, from the terminal and from
    that process, so they leave the counting to it. When it dies, torch sends them SIGINT as well: then
    they end at once, because the lock on what they write is gone with it.

    SIGTERM and SIGINT are left to a handler that someone else has installed, and an ignored SIGINT (of
    `command &` in a script) stays ignored: submitit's ignores SIGTERM, because the signal that asks
    for a new submission comes as well. That signal's handler runs in `leave`.

    Attributes:
        received: number of the signal, 0 for none.
    """

    def __init__(self, forward: Callable[[int], object] = lambda number: None) -> None:
        """`forward(number)` is called with every signal, for processes that are to get it too."""
        self.received, self.interrupted = 0, False
        self.forward = forward
        self.previous: dict[int, Any] = {}  # handlers by signal
        self.owner, self.parent = os.getpid(), os.getppid()
        self.counts = multiprocessing.parent_process() is None
        if threading.current_thread() is not threading.main_thread():
            return  # where Python allows no handlers
        for number in STOP_SIGNALS:
            current = signal.getsignal(number)
            if number not in _LEFT_TO_OTHERS or current in _NOBODYS:
                self.previous[number] = current
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        if os.getpid() != self.owner:  # a loader worker that was forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and self.counts:
            if self.interrupted:
                raise stopped_by_ctrl_c()
            self.interrupted = True
            # Past Python's buffers, which the interrupted code may be writing to, and over a bar.
            begin = ERASE_LINE if os.isatty(2) else ""
            said = f"{begin}vissl_barlow: stopping after SIGINT; once more stops at once\n"
            os.write(2, said.encode())
        elif number == signal.SIGINT and os.getppid() != self.parent:
            os._exit(128 + number)
        self.received = number
        self.forward(number)

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
        if callable(handler) and handler not in _NOBODYS:
            handler(number, None)
        raise SystemExit(128 + number)


def say_stopped(number: int, how: str = "") -> None:
    """Says which signal ended a run, and `how`: after which step, and what goes on from there."""
    sys.stdout.flush()
    said = f"vissl_barlow: stopped by {signal.Signals(number).name} {how}"
    print(said.rstrip(), file=sys.stderr, flush=True)


def stopped_by_ctrl_c() -> SystemExit:
    """Says so; what to raise where nothing is left to save."""
    say_stopped(signal.SIGINT)
    return SystemExit(128 + signal.SIGINT)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Within it, requests to stop wait for its end, here and in the processes that it starts.

    Those hold them back until `let_through`: before a process knows what to do about a request, it
    would die of it, and take the run with it.
    """
    # It lets SIGINT and SIGTERM through, whatever was before, when it starts its process.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    """In a process that a run has started: a request to stop, held back or to come, ends it at once.

    So it is until the process has something to save. (Python's KeyboardInterrupt waits for C code to
    return, and torch takes it for success.)
    """
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def leave_signals_to_the_run(worker_id: int = 0) -> None:
    """Ignores requests to stop in a loader worker; a DataLoader's `worker_init_fn`.

    SLURM and a terminal signal it like every process of the job, but the run needs its images to
    finish the step.
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
