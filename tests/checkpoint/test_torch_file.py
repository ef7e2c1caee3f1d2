"""Files of torch: untrusted ones are read or refused, ours are whole or not there."""

import contextlib
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trunks import assert_same

from vissl_barlow import checkpoint as ck
from vissl_barlow.atomic_files import remove_leftovers

ROOT = Path(__file__).resolve().parents[2]


class Code:
    """Creates a folder when unpickled without care."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_files_with_code_are_refused_and_do_not_run(tmp_path, resnet18):
    witness = tmp_path / "ran"
    malicious = {"state_dict": dict(resnet18.state_dict()), "hyper_parameters": Code(witness)}
    torch.save(malicious, tmp_path / "zip.pth")
    torch.save(malicious, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        (tmp_path / f"bare{protocol}.pkl").write_bytes(pickle.dumps(Code(witness), protocol))
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    reasons = {
        "zip.pth": r"refused: it holds posix.mkdir.*ask its author",
        "old.pth": r"refused: it holds posix.mkdir.*ask its author",
        "bare2.pkl": r"refused: it holds posix.mkdir",
        f"bare{pickle.HIGHEST_PROTOCOL}.pkl": r"bare pickle",
        "script.pt": r"TorchScript.*state_dict",
    }
    for name, reason in reasons.items():
        for read in (ck.load_trunk, ck.as_vissl_checkpoint):
            with pytest.raises(ck.CheckpointError, match=rf"{name}: .*{reason}"):
                read(tmp_path / name)
    assert not witness.exists()


def test_torchscript_is_told_by_its_content(tmp_path):
    script = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    # What remains is a file that torch.load would read.
    with zipfile.ZipFile(script) as source, zipfile.ZipFile(tmp_path / "x.pth", "w") as target:
        for name in source.namelist():
            if not name.endswith("constants.pkl"):
                target.writestr(name, source.read(name))
    with pytest.raises(
        ck.CheckpointError, match=r"x\.pth: refused: a TorchScript archive holds code"
    ):
        ck.read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x/CODE/a.py", "x/Constants.PKL", "/constants.pkl"])
def test_torchscript_is_told_by_names_that_torch_would_find(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr(name, b"")
    with pytest.raises(ck.CheckpointError, match=r"refused: a TorchScript archive"):
        ck.read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("way", ["compressed", "listed often"])
def test_a_file_of_few_bytes_is_not_unpacked_to_many(tmp_path, way, monkeypatch):
    path = tmp_path / "x.pth"
    compression = zipfile.ZIP_DEFLATED if way == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data/0", bytes(100_000))
        if way == "listed often":
            archive.filelist *= 3
    monkeypatch.delattr(zipfile.ZipFile, "testzip")  # which unpacks each record
    with pytest.raises(ck.CheckpointError, match="records are larger than the file"):
        ck.read_checkpoint(path)


SMALL = {"epoch": 3, "model": {"weight": torch.arange(300.0)}, "names": ["a", "b"]}


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.pth"
    torch.save(SMALL, path)
    return path


def assert_refused_or_intact(path):
    try:
        content = ck.read_checkpoint(path)
    except ck.CheckpointError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert content["epoch"] == 3 and content["names"] == ["a", "b"]
        assert_same(content["model"], SMALL["model"])


@settings(max_examples=150)
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path, small_file, data):
    whole = small_file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["flip", "zero", "cut"]))
    damaged = bytearray(whole)
    if kind == "flip":
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "zero":
        damaged[at : at + 64] = bytes(len(damaged[at : at + 64]))
    else:
        del damaged[at:]
    path = tmp_path / "damaged.pth"
    path.write_bytes(damaged)
    assert_refused_or_intact(path)


def test_flipped_bit_inside_a_tensor_is_noticed(tmp_path, small_file):
    damaged = bytearray(small_file.read_bytes())
    at = damaged.find(SMALL["model"]["weight"].numpy().tobytes())
    damaged[at + 100] ^= 4
    (tmp_path / "flipped.pth").write_bytes(damaged)
    assert torch.load(tmp_path / "flipped.pth", weights_only=True)["epoch"] == 3
    with pytest.raises(ck.CheckpointError, match="checksum"):
        ck.read_checkpoint(tmp_path / "flipped.pth")


@pytest.mark.parametrize("content", [b"", b"epoch,loss\n1,2\n", b"<!DOCTYPE html>", bytes(99)])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(ck.CheckpointError, match=r"other\.pth: .+") as refused:
        ck.load_trunk(tmp_path / "other.pth")
    assert "\n" not in str(refused.value)


@contextlib.contextmanager
def files_limited_to(n_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failed_save_keeps_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model_phase3.torch"
    ck.save_atomically(SMALL, path)
    # A limit on file sizes stands for a full disk: the system refuses the write half-way.
    with files_limited_to(100_000), pytest.raises(OSError, match=r"File too large.*model_phase3"):
        ck.save_atomically({"weight": torch.zeros(1_000_000)}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        ck.save_atomically({"weight": torch.zeros(3), "code": lambda: None}, path)
    with pytest.raises(FileNotFoundError, match="missing/x"):
        ck.save_atomically(SMALL, tmp_path / "missing" / "x")
    assert_refused_or_intact(path)
    assert os.listdir(tmp_path) == [path.name]


def test_save_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace

    def recorded_sync(descriptor):
        mode = os.fstat(descriptor)
        events.append("folder" if stat.S_ISDIR(mode.st_mode) else mode.st_size)
        sync(descriptor)

    def recorded_replace(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    path = tmp_path / "x.pth"
    umask = os.umask(0o027)
    try:
        ck.save_atomically(SMALL, path)
    finally:
        os.umask(umask)
    assert events == [path.stat().st_size, "rename", "folder"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_kill_before_the_rename_leaves_the_old_file_for_vissl(tmp_path):
    from vissl.config import AttrDict
    from vissl.utils.checkpoint import get_checkpoint_resume_files

    old, new = tmp_path / "model_phase3.torch", tmp_path / "model_final_checkpoint_phase4.torch"
    ck.save_atomically(SMALL, old)
    script = (
        "import os, signal, sys; from vissl_barlow.checkpoint import save_atomically\n"
        "os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_atomically({'epoch': 4}, sys.argv[1])"
    )
    killed = subprocess.run([sys.executable, "-c", script, new], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    config = AttrDict({"CHECKPOINT": {"CHECKPOINT_ITER_FREQUENCY": -1}})
    assert get_checkpoint_resume_files(str(tmp_path), config) == old.name
    assert remove_leftovers(tmp_path) == 1
    assert os.listdir(tmp_path) == [old.name]


def test_a_link_is_replaced_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    link = tmp_path / "checkpoint.torch"
    link.symlink_to(outside)
    ck.save_atomically(SMALL, link)
    assert outside.read_text() == "precious"
    assert not link.is_symlink()
    assert_refused_or_intact(link)
