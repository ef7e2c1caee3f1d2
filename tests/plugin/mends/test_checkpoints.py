"""The mends of VISSL's checkpoints: each does what its docstring says, and once."""

import errno
import os
from pathlib import Path

import pytest
import torch
from gloo import run_gloo
from vissl_runs import resolve

from vissl_barlow.vissl_plugin import mends

DIGITS = "pretrain/vissl_barlow/digits_quickstart"


pytestmark = pytest.mark.usefixtures("barlow_run")


def test_mends_are_applied_once():
    from vissl.utils import checkpoint

    mended = checkpoint.get_resume_checkpoint
    mends.apply()
    assert checkpoint.get_resume_checkpoint is mended


def test_a_final_checkpoint_to_overwrite_is_no_checkpoint_to_resume(tmp_path):
    from vissl.utils import checkpoint

    config = resolve(tmp_path, DIGITS, "config.CHECKPOINT.OVERWRITE_EXISTING=true")
    (tmp_path / "model_final_checkpoint_phase1.torch").touch()
    (tmp_path / "checkpoint.torch").symlink_to("model_final_checkpoint_phase1.torch")
    assert checkpoint.get_resume_checkpoint(config, str(tmp_path)) is None


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    from vissl.utils import checkpoint

    checkpoint.save_checkpoint(str(tmp_path), {"epoch": 1}, "model.torch")
    before = (tmp_path / "model.torch").read_bytes()

    def half(state, file):
        file.write(b"half a checkpoint")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_checkpoint(str(tmp_path), {"epoch": 2}, "model.torch")
    assert (tmp_path / "model.torch").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.torch"]


def test_the_link_to_the_newest_checkpoint_moves_on_in_a_relative_folder(tmp_path, monkeypatch):
    from vissl.utils import checkpoint

    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for name in ("first", "second"):
        Path(f"run/{name}.torch").write_text(name)
        checkpoint.create_file_symlink(f"run/{name}.torch", "run/checkpoint.torch")
        assert Path("run/checkpoint.torch").read_text() == name
    # Moved elsewhere with its folder, it still points at its neighbour.
    Path("run").rename("moved")
    assert Path("moved/checkpoint.torch").read_text() == "second"


def broadcast(rank: int, path: str):
    import vissl_barlow

    vissl_barlow.register()
    from classy_vision.generic.distributed_util import set_cpu_device
    from vissl.utils.checkpoint import CheckpointLoader

    from vissl_barlow.vissl_plugin import wrap

    set_cpu_device()
    wrap.note_config({"BARLOW": {}})
    torch.ByteTensor = None  # VISSL's way, a byte at a time
    # Only the primary process has the file.
    path = path if rank == 0 else "/nowhere"
    return CheckpointLoader.load_and_broadcast_checkpoint("", path, torch.device("cpu"))


def test_every_process_gets_the_primary_s_checkpoint(tmp_path):
    state = {"weights": torch.randn(1000), "epoch": 3}
    torch.save(state, tmp_path / "model.torch")
    for received in run_gloo(broadcast, 2, str(tmp_path / "model.torch")):
        assert received["epoch"] == 3
        torch.testing.assert_close(received["weights"], state["weights"], rtol=0, atol=0)
