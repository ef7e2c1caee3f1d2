"""The lock of a checkpoint folder, and the handlers of stop signals, within one process."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest
from small_disks import full, small_disk

from vissl_barlow.stop_signals import STOP_SIGNALS, StopSignals
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.run.lock import LOCK_FILE, lock, unlock

# Prints the refusal of another process that wants the folder.
OTHER = """
import sys; from pathlib import Path
from vissl_barlow.vissl_plugin.run.lock import lock
try:
    lock(Path(sys.argv[1]))
except ValueError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def unlocked():
    yield
    unlock()


def other(folder) -> str:
    command = [sys.executable, "-W", "ignore", "-c", OTHER, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_folder_is_this_processs_until_it_gives_it_back(tmp_path):
    (tmp_path / LOCK_FILE).write_text(json.dumps({"pid": 1, "host": "x" * 500, "started": "then"}))
    lock(tmp_path)
    lock(tmp_path)  # it has it already
    holder = json.loads((tmp_path / LOCK_FILE).read_text())
    assert (holder["pid"], holder["host"]) == (os.getpid(), os.uname().nodename)
    refused = other(tmp_path)
    assert f"another run is writing there (pid {os.getpid()} on {holder['host']}" in refused
    assert json.loads((tmp_path / LOCK_FILE).read_text()) == holder  # who asks leaves no trace
    unlock()
    assert other(tmp_path) == ""


@pytest.mark.parametrize("content", ["", "[1]", '{"pid": 1}', "1", "[" * 1000])
def test_a_holder_that_has_not_written_its_name_yet(content, tmp_path):
    (tmp_path / LOCK_FILE).write_text(content)
    with (tmp_path / LOCK_FILE).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="which has only just started"):
            lock(tmp_path)


def test_on_a_full_disk_it_is_taken_without_a_name_or_refused(tmp_path, caplog):
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        with full(disk, "bytes"):
            lock(disk)
            assert "the name of this run is not written" in caplog.text
            assert "which has only just started" in other(disk)
        unlock()
        (disk / LOCK_FILE).unlink()
        with full(disk, "inodes"), pytest.raises(ConfigError, match="No space left on device"):
            lock(disk)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_is_said_and_other_errors_are_not_hidden(
    number, tmp_path, monkeypatch, caplog
):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    if number == errno.EIO:
        with pytest.raises(OSError, match="put/output error"):
            lock(tmp_path)
        return
    lock(tmp_path)
    assert f"{tmp_path}: the file system has no locks" in caplog.text


@pytest.fixture
def signals():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signals = StopSignals()
    yield signals
    signals.restore()
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_a_signal_is_noted_and_ends_the_process_when_it_leaves(signals):
    os.kill(os.getpid(), signal.SIGUSR2)
    assert signals.received == signal.SIGUSR2
    with pytest.raises(SystemExit) as left:
        signals.leave(signal.SIGUSR2)
    assert left.value.code == 128 + signal.SIGUSR2


def test_a_forked_child_ends_by_the_signal(signals):
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert signals.received == 0
