"""tests/helpers/patience.py: a test that hangs is given up, one that is only slow is not."""

import subprocess
import sys
import time

import patience
import pytest


def test_what_never_happens_fails_with_what_is_said():
    with pytest.raises(AssertionError, match="nobody came"):
        patience.wait_until(lambda: False, lambda: "nobody came", seconds=0.05)


@pytest.mark.parametrize("wait", [patience.wait_for, patience.finish])
def test_a_process_without_an_end_is_killed(wait):
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as endless:
        with pytest.raises(AssertionError, match="has no end"):
            wait(endless, seconds=0.05)
        assert endless.poll() is not None


def test_time_in_which_something_waited_for_the_machine_does_not_count(monkeypatch):
    began = time.monotonic()
    now = [began]
    stalled = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(patience, "_stalled", lambda: stalled[0])
    waiting = patience.Patience(10)
    now[0], stalled[0] = began + 60, 59.0
    assert not waiting.is_over() and waiting.left == pytest.approx(8.8)
    now[0], stalled[0] = began + 70, 59.5
    assert waiting.is_over()


def test_a_machine_that_never_is_idle_does_not_keep_a_test_for_ever(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(patience, "_stalled", lambda: now[0])
    waiting = patience.Patience(10)
    now[0] = 499.0
    assert not waiting.is_over()
    now[0] = 501.0
    assert waiting.is_over()
