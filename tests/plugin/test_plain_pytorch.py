"""docs/plain-pytorch.md: its loop, without VISSL, leaves the bits of VISSL's run of the config."""

import re

import pytest
import torch
from documented import ROOT
from vissl_runs import run_engines, succeeded

import vissl_barlow.checkpoint
from vissl_barlow.checkpoint import load_trunk, read_checkpoint, save_atomically

PAGE = (ROOT / "docs" / "plain-pytorch.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
# The page's settings, and those of a run of seconds.
SMALLER = {
    "epochs, warmup_epochs, batch, seed = 40, 1, 128, 0": (
        "epochs, warmup_epochs, batch, seed = 2, 1, 256, 0"
    ),
    "width, dims = 18, 0.5, [512, 512, 512]": "width, dims = 18, 0.125, [32, 48, 64]",
}
OVERRIDES = (
    "config.OPTIMIZER.num_epochs=2",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=256",
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:64,dims:[32,48,64]}]]",
    "config.BARLOW.PROBE.KIND=none",
)


class Stopped(Exception):
    pass


def test_the_page_is_short_and_needs_no_vissl():
    assert len(CODE.splitlines()) <= 60
    imported = re.findall(r"^(?:from|import) (\w+)", CODE, re.MULTILINE)
    assert set(imported) == {"random", "pathlib", "torch", "vissl_barlow"}


def test_its_loop_leaves_the_bits_of_vissls_run(tmp_path, monkeypatch):
    code = CODE
    for documented, smaller in SMALLER.items():
        assert documented in code
        code = code.replace(documented, smaller)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as VISSL's process has it: sums keep their order
    try:
        with torch.random.fork_rng(devices=[]):
            with monkeypatch.context() as patch, pytest.raises(Stopped):
                patch.setattr(vissl_barlow.checkpoint, "save_atomically", save_and_stop)
                exec(code, {"__name__": "page"})
            assert read_checkpoint("checkpoint.pth")["epochs"] == 1
            exec(code, {"__name__": "page"})  # goes on
    finally:
        torch.set_num_threads(threads)
    config = "config=pretrain/vissl_barlow/digits_quickstart"
    succeeded(run_engines(tmp_path, config, "config.CHECKPOINT.DIR=vissl", *OVERRIDES))
    ours, theirs = load_trunk("checkpoint.pth"), load_trunk("vissl/checkpoint.torch")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    ours = read_checkpoint("checkpoint.pth")["projector"]
    saved = read_checkpoint("vissl/checkpoint.torch")["classy_state_dict"]["base_model"]["model"]
    theirs = {name.removeprefix("0.projector."): value for name, value in saved["heads"].items()}
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def save_and_stop(content, path):
    save_atomically(content, path)
    raise Stopped
