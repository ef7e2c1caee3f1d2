"""The record of what made a run."""

import hashlib
import json
import time
from datetime import UTC, datetime, timedelta

import pytest

import vissl_barlow
from vissl_barlow.provenance import (
    PROVENANCE_FILE,
    counted_starts,
    file_sha256,
    has_left_something,
    note_hours,
    note_left,
    read_provenance,
    write_provenance,
)


def test_every_start_is_appended_with_what_made_it(tmp_path):
    assert read_provenance(tmp_path) == []
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    write_provenance(tmp_path, 3, ["python", "-m", "x"], weights=weights, processes=4)
    weights.unlink()  # a resumed run does not need it any more
    write_provenance(tmp_path, 3, ["python", "-m", "x"], weights=weights)
    train = {"images": 9, "classes": None, "paths": ["/a"], "source": "barlow_folder"}
    write_provenance(tmp_path, 5, ["y"], data={"train": train})
    first, second, third = read_provenance(tmp_path)
    digest = hashlib.sha256(b"weights").hexdigest()
    assert first["weights"] == {"path": str(weights), "sha256": digest}
    assert second["weights"] == {"path": str(weights), "sha256": None}
    assert third["weights"] is None
    assert [start["data"] for start in (first, second, third)] == [{}, {}, {"train": train}]
    assert [start["seed"] for start in (first, second, third)] == [3, 3, 5]
    assert [start["processes"] for start in (first, second, third)] == [4, 1, 1]
    assert first["command"] == ["python", "-m", "x"] and first["hours"] is None
    assert first["versions"]["vissl_barlow"] == vissl_barlow.__version__
    assert first["versions"]["torch"] and "vissl" in first["versions"]


def test_a_start_that_left_nothing_is_not_the_runs(tmp_path):
    def commands(starts) -> list[str]:
        return [command for start in starts for command in start["command"]]

    def start(command: str, anew: bool) -> None:
        write_provenance(tmp_path, 0, [command], anew=anew)

    assert not has_left_something(tmp_path)
    start("failed", anew=True)
    assert commands(counted_starts(read_provenance(tmp_path))) == ["failed"]
    assert not has_left_something(tmp_path)
    start("first", anew=True)
    note_left(tmp_path)
    start("failed resume", anew=False)
    assert commands(counted_starts(read_provenance(tmp_path))) == ["first"]
    start("resume", anew=False)
    note_left(tmp_path)
    note_left(tmp_path)
    start("failed", anew=True)
    assert commands(counted_starts(read_provenance(tmp_path))) == ["first", "resume"]
    start("another", anew=True)
    assert commands(read_provenance(tmp_path)) == ["first", "resume", "another"]
    (tmp_path / "train_config.yaml").write_text("the run's")
    (tmp_path / "train_config.next.yaml").write_text("another's")
    note_left(tmp_path)
    assert commands(read_provenance(tmp_path)) == ["another"]
    assert (tmp_path / "train_config.yaml").read_text() == "another's"


def test_the_hours_are_those_since_the_last_start(tmp_path):
    write_provenance(tmp_path, 0, [])
    write_provenance(tmp_path, 0, [])
    path = tmp_path / PROVENANCE_FILE
    first, last = json.loads(path.read_text())
    last["started"] = (datetime.now(UTC) - timedelta(hours=2.5)).isoformat(timespec="seconds")
    path.write_text(json.dumps([first, last]))
    note_hours(tmp_path)
    first, last = read_provenance(tmp_path)
    assert first["hours"] is None
    assert last["hours"] == pytest.approx(2.5, abs=0.01)


def test_a_clock_that_is_set_back_takes_no_hours_away(tmp_path, monkeypatch):
    from vissl_barlow import provenance

    class SetBack(datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) - timedelta(hours=3)

    write_provenance(tmp_path, 0, [])
    began = time.monotonic()
    monkeypatch.setattr(provenance, "datetime", SetBack)
    monkeypatch.setattr(provenance.time, "monotonic", lambda: began + 1800)
    note_hours(tmp_path)
    assert read_provenance(tmp_path)[-1]["hours"] == pytest.approx(0.5, abs=0.1)
    provenance._noted.clear()  # another process, which has the wall's clock alone
    note_hours(tmp_path)
    assert read_provenance(tmp_path)[-1]["hours"] == 0


def test_the_hash_is_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert file_sha256(tmp_path / "a") == empty
