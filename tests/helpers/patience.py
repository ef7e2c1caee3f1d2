"""How long tests wait for what may never come: none fails because the machine is slow or busy.

By the clock it would: beside fifteen others, seconds become minutes. Here time counts in which nothing
on the machine waited for a processor, a disk or memory, as the kernel tells (its pressure stall
information; where it does not, all time counts). So what is only slow is waited for, and what hangs is
given up when the others leave the machine alone.
"""

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Seconds; ten times what the slowest takes on an idle machine.
LIMIT = 1500.0
# What counts of each second on a machine that never is idle.
_LEAST = 0.02


class Patience:
    """Is over after `seconds` that count."""

    def __init__(self, seconds: float = LIMIT) -> None:
        self.left = seconds
        self.asked = time.monotonic(), _stalled()

    def is_over(self) -> bool:
        now = time.monotonic(), _stalled()
        passed, stalled = (after - before for before, after in zip(self.asked, now))
        self.asked = now
        self.left -= max(passed - stalled, _LEAST * passed)
        return self.left < 0


def _stalled() -> float:
    """Seconds so far in which something on this machine waited for a processor, a disk or memory."""
    total = 0
    for what in ("cpu", "io", "memory"):
        try:
            told = Path("/proc/pressure", what).read_text()
        except OSError:
            continue
        total += int(re.search(r"^some .*total=(\d+)", told, re.MULTILINE)[1])
    return total / 1e6


def slowdown() -> float:
    """How many times as long this process takes for its work, just now, as with a processor to itself.

    For the waits that a test sets in what it tests, which goes by the clock.
    """
    work = 0.2
    began, used = time.monotonic(), time.process_time()
    while time.process_time() - used < work:
        pass
    return max(1.0, (time.monotonic() - began) / work)


def wait_until(
    happened: Callable[[], object], said: Callable[[], str], seconds: float = LIMIT
) -> None:
    """Returns when `happened` holds; fails with what is `said` by then when patience is over."""
    patience = Patience(seconds)
    while True:
        began = time.monotonic()
        if happened():
            return
        assert not patience.is_over(), said()
        # Asking can cost more than what is waited for, of SLURM's programs above all.
        time.sleep(max(0.01, 5 * (time.monotonic() - began)))


def wait_for(process: subprocess.Popen, seconds: float = LIMIT) -> int:
    """Its exit status; it is killed, and the test fails, when patience is over."""
    said = f"has no end: {process.args}"
    try:
        wait_until(lambda: process.poll() is not None, lambda: said, seconds)
    finally:
        process.kill()
        process.wait()
    return process.returncode


def finish(process: subprocess.Popen, seconds: float = LIMIT) -> subprocess.CompletedProcess:
    """As `wait_for`, with what it prints, as far as that comes through pipes."""
    patience = Patience(seconds)
    try:
        while True:
            try:
                output = process.communicate(timeout=min(1, seconds))
                return subprocess.CompletedProcess(process.args, process.returncode, *output)
            except subprocess.TimeoutExpired:
                assert not patience.is_over(), f"has no end: {process.args}"
    finally:
        process.kill()
        process.wait()


def run(command: Sequence[str], **options) -> subprocess.CompletedProcess:
    """`subprocess.run` with its output as text, whatever its exit status."""
    pipe = subprocess.PIPE
    return finish(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options))
