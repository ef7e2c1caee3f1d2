"""What a row's folder keeps: whose results it holds, and the job that was submitted."""

import errno
import json
import os
from pathlib import Path

import pytest

from vissl_barlow.provenance import file_sha256
from vissl_barlow.reproduce.execution import claim, sbatch


def test_a_folder_is_one_checkpoints(tmp_path):
    mine, other = tmp_path / "mine.torch", tmp_path / "other.torch"
    mine.write_bytes(b"mine")
    other.write_bytes(b"other")
    claim(tmp_path / "row", str(mine))
    with pytest.raises(ValueError, match=r"row holds the results of another checkpoint, .*mine"):
        claim(tmp_path / "row", str(other))
    state = json.loads((tmp_path / "row" / "reproduce.json").read_text())
    assert state == {"checkpoint": str(mine), "sha256": file_sha256(mine)}


@pytest.mark.parametrize("content", ["", "[1]", '{"job":'])
def test_a_damaged_state_is_set_aside(content, tmp_path):
    checkpoint = tmp_path / "mine.torch"
    checkpoint.write_bytes(b"mine")
    (tmp_path / "reproduce.json").write_text(content)
    claim(tmp_path, str(checkpoint))
    assert json.loads((tmp_path / "reproduce.json").read_text())["checkpoint"] == str(checkpoint)
    assert (tmp_path / "reproduce.json.damaged1").read_text() == content


def test_the_state_outlives_a_write_that_fails(tmp_path, monkeypatch):
    checkpoint = tmp_path / "mine.torch"
    checkpoint.write_bytes(b"mine")
    state = tmp_path / "reproduce.json"
    state.write_text('{"job": "815"}')

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        claim(tmp_path, str(checkpoint))
    assert state.read_text() == '{"job": "815"}'


def test_a_job_has_the_configs_settings_and_its_command_as_one_word():
    command = ["python", "-m", "tools.train_svm", "config.SLURM.NUM_CPU_PER_PROC=3", "a='b c'"]
    asked = sbatch([*command, "config.SLURM.PARTITION=learn"], Path("/out/row"), "4")
    assert asked == [
        *("sbatch", "--parsable", "--partition=learn", "--nodes=1", "--ntasks=1"),
        *("--gpus-per-node=4", "--cpus-per-task=3", "--output=/out/row/slurm-%j.out"),
        "--wrap=python -m tools.train_svm config.SLURM.NUM_CPU_PER_PROC=3 'a='\"'\"'b c'\"'\"''"
        " config.SLURM.PARTITION=learn",
    ]
