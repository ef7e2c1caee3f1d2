"""The record of what made a run."""

import hashlib
import json
import time
from datetime import UTC, datetime, timedelta

import pytest

import vissl_barlow
from vissl_barlow.provenance import (
    PROVENANCE_FILE,
    file_sha256,
    note_hours,
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
    write_provenance(tmp_path, 5, ["y"])
    first, second, third = read_provenance(tmp_path)
    digest = hashlib.sha256(b"weights").hexdigest()
    assert first["weights"] == {"path": str(weights), "sha256": digest}
    assert second["weights"] == {"path": str(weights), "sha256": None}
    assert third["weights"] is None
    assert [start["seed"] for start in (first, second, third)] == [3, 3, 5]
    assert [start["processes"] for start in (first, second, third)] == [4, 1, 1]
    assert first["command"] == ["python", "-m", "x"] and first["hours"] is None
    assert first["versions"]["vissl_barlow"] == vissl_barlow.__version__
    assert first["versions"]["torch"] and "vissl" in first["versions"]


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
