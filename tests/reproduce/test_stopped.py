"""Ctrl-C and the other requests to stop, while `reproduce` has a command running."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import wait_for, wait_until

# `first` is a command that saves when it is asked to stop, as a run does, or never stops.
REPRODUCE = """
import sys
from pathlib import Path
from vissl_barlow.reproduce.execution import execute

COMMAND = '''
import os, signal, sys, time
from pathlib import Path

received = []
for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, lambda number, frame: received.append(number))
Path("pid").write_text(str(os.getpid()))
os.rename("pid", "running")
while not received or sys.argv[1] == "endless":
    time.sleep(0.01)
Path("saved").touch()
sys.exit(128 + received[0])
'''
execute("first", [sys.executable, "-c", COMMAND, sys.argv[1]], Path("first.log"))
execute("second", [sys.executable, "-c", "open('second', 'w')"], Path("second.log"))
"""


class Reproduce:
    def __init__(self, folder: Path, command: str) -> None:
        self.folder = folder
        with (folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", REPRODUCE, command],
                cwd=folder,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.wait_until((folder / "running").exists)

    def wait_until(self, happened) -> None:
        wait_until(lambda: happened() or self.process.poll() is not None, lambda: self.output)
        assert happened(), self.output

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def wait(self) -> int:
        return wait_for(self.process)


@pytest.fixture
def reproduce(tmp_path):
    started = []

    def start(command: str) -> Reproduce:
        started.append(Reproduce(tmp_path, command))
        return started[0]

    yield start
    for each in started:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.wait()


@pytest.mark.parametrize(
    ("send", "number"),
    [(os.kill, signal.SIGINT), (os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)],
    ids=["Ctrl-C, alone", "Ctrl-C in a terminal", "SIGTERM"],
)
def test_the_command_saves_and_the_next_is_not_started(reproduce, tmp_path, send, number):
    run = reproduce("saving")
    send(run.process.pid, number)
    assert run.wait() == 128 + number, run.output
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "second").exists()
    assert f"first: stopped by {number.name}; the same command goes on" in run.output


def test_ctrl_c_twice_ends_a_command_that_does_not_stop(reproduce, tmp_path):
    run = reproduce("endless")
    command = int((tmp_path / "running").read_text())
    os.kill(run.process.pid, signal.SIGINT)
    run.wait_until(lambda: "once more stops at once" in run.output)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait() == 128 + signal.SIGINT, run.output
    assert not Path(f"/proc/{command}").exists()
    assert not (tmp_path / "saved").exists()
    assert not (tmp_path / "second").exists()
