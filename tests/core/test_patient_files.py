"""What a run writes besides its checkpoints, on disks that are really full, and damaged files."""

import logging
import os
import shutil
import threading

import pytest
from small_disks import full, small_disk

from vissl_barlow import patient_files
from vissl_barlow.patient_files import (
    FolderGone,
    append,
    read_bytes,
    read_json,
    replace,
    set_aside,
)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Without what an earlier test of this process left: a log of VISSL's, and what waits for it."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    for name in ("_to_replace", "_to_append"):
        monkeypatch.setattr(patient_files, name, {})


def is_waiting() -> bool:
    return bool(patient_files._to_replace or patient_files._to_append)


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", megabytes=1) as folder:
        yield folder
    assert not is_waiting()


@pytest.mark.parametrize("kind", ["bytes", "inodes"])
def test_what_a_full_disk_refuses_is_said_once_and_written_when_it_can_be(kind, disk, caplog):
    caplog.set_level("INFO")
    replace(disk / "record.json", "old")
    append(disk / "log.jsonl", "line 0\n")
    with full(disk, kind):
        for number in range(1, 1000):
            append(disk / "log.jsonl", f"line {number}\n")
            append(disk / "new.jsonl", f"line {number}\n")
            replace(disk / "record.json", f"record {number}")
        assert (disk / "record.json").read_text() == "old"
        assert read_bytes(disk / "record.json") == b"record 999"
        said = [message for message in caplog.messages if "not written" in message]
        assert len(said) == (3 if kind == "bytes" else 2)  # a log that is there still grows
        assert all("No space left on device" in message for message in said)
        assert any("metrics not written" in message and "new.jsonl" in message for message in said)
    append(disk / "log.jsonl", "line 1000\n")  # any write will do
    assert not is_waiting()
    assert (disk / "record.json").read_text() == "record 999"
    lines = "".join(f"line {number}\n" for number in range(1, 1000))
    assert (disk / "new.jsonl").read_text() == lines
    assert (disk / "log.jsonl").read_text() == f"line 0\n{lines}line 1000\n"
    assert sum("written, with all that had to wait" in m for m in caplog.messages) == len(said)
    assert sorted(os.listdir(disk)) == ["log.jsonl", "new.jsonl", "record.json"]


def test_what_waits_has_a_bound(disk, monkeypatch):
    monkeypatch.setattr(patient_files, "LIMIT", 1000)
    with full(disk, "inodes"):
        for number in range(1000):
            append(disk / "log", f"line {number:03}\n")
    append(disk / "log", "the end\n")
    lines = (disk / "log").read_text().splitlines()
    assert 100 < len(lines) < 112 and lines[-2:] == ["line 999", "the end"]
    assert all(len(line) == 8 for line in lines[:-1])


def test_a_line_that_a_kill_cut_short_ends_where_the_next_begins(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"a": 1}\n{"a":')
    append(path, '{"a": 2}\n')
    append(path, '{"a": 3}\n')
    assert path.read_text() == '{"a": 1}\n{"a":\n{"a": 2}\n{"a": 3}\n'


def test_a_forked_child_leaves_what_waits_to_its_parent(disk):
    with full(disk, "inodes"):
        append(disk / "log", "parent's\n")
    child = os.fork()
    if child == 0:
        append(disk / "log", "child's\n")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (disk / "log").read_text() == "child's\n"
    append(disk / "log", "parent's again\n")
    assert (disk / "log").read_text().splitlines() == ["child's", "parent's", "parent's again"]


def test_threads_do_not_meet(disk):
    def write(name: str) -> None:
        for number in range(200):
            append(disk / "log", f"{name} {number}\n")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    with full(disk, "inodes"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    append(disk / "log", "the end\n")
    lines = (disk / "log").read_text().splitlines()
    expected = [f"{name} {number}" for name in "abcd" for number in range(200)]
    assert sorted(lines) == sorted([*expected, "the end"])


@pytest.mark.parametrize("write", [replace, append])
def test_a_folder_that_is_gone_is_said_and_not_made_again(write, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder / "x", "text\n")
    shutil.rmtree(folder)
    with pytest.raises(FolderGone, match=f"^{folder}: removed while the run was writing there"):
        write(folder / "x", "text\n")
    assert not folder.exists() and not is_waiting()
    write(tmp_path / "y", "text\n")  # nobody else's folder is asked for


def a_number(value) -> bool:
    return isinstance(value, dict) and isinstance(value.get("number"), int)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"number": 1',
        b"[1]",
        b"1",
        b"null",
        b'{"number": "1"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * (patient_files.LIMIT + 1),
    ],
)
def test_a_file_that_is_damaged_is_set_aside_and_nothing_of_it_lost(content, tmp_path, caplog):
    path = tmp_path / "x.json"
    for number in (1, 2):
        path.write_bytes(content)
        assert read_json(path, a_number) is None
        assert (tmp_path / f"x.json.damaged{number}").read_bytes() == content
        assert (
            f"{path} is damaged (" in caplog.text
            and f"aside as x.json.damaged{number}" in caplog.text
        )
    replace(path, '{"number": 1}')
    assert read_json(path, a_number) == {"number": 1}


def test_so_is_what_is_no_file(tmp_path):
    path = tmp_path / "x.json"
    (path / "folder").mkdir(parents=True)
    assert read_json(path, a_number) is None
    assert (tmp_path / "x.json.damaged1" / "folder").is_dir()
    path.symlink_to("missing")
    assert read_json(path, a_number) is None
    os.mkfifo(path)
    assert read_json(path, a_number) is None  # and nobody waits for a writer
    path.mkdir()
    append(path, "text\n")
    assert path.read_text() == "text\n"
    assert len(os.listdir(tmp_path)) == 5
    assert read_json(tmp_path / "missing", a_number) is None


def test_a_damaged_file_that_cannot_be_renamed_ends_nothing(tmp_path, caplog):
    set_aside(tmp_path / "missing", ValueError("damage"))
    assert "cannot be renamed" in caplog.text
