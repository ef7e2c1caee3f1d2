"""Files that are whole or not there, whatever happens while they are written."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vissl_barlow import atomic_files
from vissl_barlow.atomic_files import (
    atomic_file,
    file_state,
    remove_leftovers,
    temporary_path,
    write_text_atomically,
)
from vissl_barlow.checkpoint import save_atomically

ROOT = Path(__file__).resolve().parents[2]


def test_text_is_utf_8_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "table.md"
    path.write_text("a longer text than the new one")
    write_text_atomically(path, "λ = 0.005\n")
    assert path.read_bytes() == "λ = 0.005\n".encode()
    assert os.listdir(tmp_path) == [path.name]


def test_the_old_content_stays_until_the_block_ends_and_after_an_exception(tmp_path):
    path = tmp_path / "x.json"
    write_text_atomically(path, "old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == [path.name]


def test_writers_of_one_stem_or_one_file_do_not_meet(tmp_path):
    with atomic_file(tmp_path / "x.csv") as csv, atomic_file(tmp_path / "x.md") as md:
        csv.write(b"csv")
        md.write(b"md")
        with atomic_file(tmp_path / "x.md") as again:
            again.write(b"first to end")
        assert (tmp_path / "x.md").read_text() == "first to end"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "x.csv": "csv",
        "x.md": "md",
    }
    names = {temporary_path(tmp_path) for _ in range(1000)}
    assert len(names) == 1000 and all(str(os.getpid()) in name.name for name in names)


def test_a_write_that_fails_names_the_file_and_why(tmp_path):
    path = tmp_path / "checkpoint.torch"
    write_text_atomically(path, "old")
    with pytest.raises(FileNotFoundError, match="missing/x"):
        write_text_atomically(tmp_path / "missing" / "x", "")
    with pytest.raises(OSError, match="No space left on device") as full, atomic_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(path))
    # numpy's: a sentence, no number.
    with pytest.raises(OSError, match="400 requested and 0 written") as short, atomic_file(path):
        raise OSError("400 requested and 0 written")
    assert short.value.filename == str(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]


def test_a_file_s_state_differs_after_any_write_whatever_its_times_say(tmp_path):
    path = tmp_path / "x"
    states = set()
    for text in ("one", "two", "six"):
        write_text_atomically(path, text)
        os.utime(path, (1, 1))
        states.add(file_state(path))
    path.write_text("ten")  # in place
    os.utime(path, (1, 1))
    assert len(states | {file_state(path)}) == 4
    assert file_state(path) == file_state(path)


def test_numpys_lists_go_through_it(tmp_path):
    with atomic_file(tmp_path / "a.npy") as file:
        np.save(file, np.arange(5), allow_pickle=False)
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_flushed_is_an_error_unless_there_is_nothing_to_flush(
    number, tmp_path, monkeypatch
):
    sync = os.fsync

    def refuse_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(atomic_files.os, "fsync", refuse_folders)
    if number == errno.EINVAL:
        write_text_atomically(tmp_path / "x", "text")
    else:
        with pytest.raises(OSError, match="Input/output error"):
            write_text_atomically(tmp_path / "x", "text")


KILLED = """
import os, signal, sys
from vissl_barlow.atomic_files import write_text_atomically
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
write_text_atomically(sys.argv[1], "text")
"""


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    whole = tmp_path / "checkpoint.torch"
    save_atomically({"epoch": 3}, whole)
    for name in ("table.csv", "table.md"):
        killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / name], cwd=ROOT)
        assert killed.returncode == -signal.SIGKILL
    os.symlink(whole, temporary_path(tmp_path))  # the mend's link to the newest checkpoint
    (tmp_path / "notes.tmp").write_text("somebody's own")
    assert len(os.listdir(tmp_path)) == 5
    assert remove_leftovers(tmp_path) == 3
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.torch", "notes.tmp"]
    assert whole.exists()
