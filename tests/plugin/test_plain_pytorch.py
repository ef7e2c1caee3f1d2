"""docs/plain-pytorch.md: its loop, without VISSL, leaves the bits of VISSL's run of the config, and in
several processes the weights that it leaves in one."""

import os
import re

import pytest
import torch
from documented import ROOT
from gloo import run_gloo
from vissl_runs import run_engines, succeeded

import vissl_barlow.checkpoint
from vissl_barlow.checkpoint import load_trunk, read_checkpoint, save_atomically

PAGE = (ROOT / "docs" / "plain-pytorch.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(IN_PROCESSES,) = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
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
    code = replaced(CODE, SMALLER)
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


# Of fewer images, in float64, where rounding does not add up to other weights. 24 in a batch.
TINY = SMALLER | {
    "epochs, warmup_epochs, batch, seed = 40, 1, 128, 0": (
        "epochs, warmup_epochs, batch, seed = 2, 1, 24, 0"
    ),
    'images, _ = digits("train")': 'images = digits("train")[0][:72]',
    "torch.manual_seed(seed)\ntrunk": (
        "torch.set_default_dtype(torch.float64)\ntorch.manual_seed(seed)\ntrunk"
    ),
    "model(y_a), model(y_b)": "model(y_a.double()), model(y_b.double())",
}


def test_several_processes_take_the_steps_of_one(tmp_path, monkeypatch):
    ours, theirs = tmp_path / "one", tmp_path / "two"
    for folder in (ours, theirs):
        folder.mkdir()
    monkeypatch.chdir(ours)
    # A worker draws what the process itself would.
    one = replaced(CODE, TINY | {"collate_fn=views": "collate_fn=views, num_workers=1"})
    with torch.random.fork_rng(devices=[]):
        try:
            exec(one, {"__name__": "page"})
        finally:
            torch.set_default_dtype(torch.float32)
    two = replaced(CODE, TINY).replace("2, 1, 24, 0", "2, 1, 12, 0")
    run_gloo(run, 2, in_processes(two), theirs)
    ours, theirs = (read_checkpoint(folder / "checkpoint.pth") for folder in (ours, theirs))
    for part in ("model", "projector"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=1e-7, atol=1e-9)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_atomically({"epochs": 40, "settings": [40, 1, 256]}, "checkpoint.pth")
    with pytest.raises(SystemExit, match=r"checkpoint.pth is of other settings, \[40, 1, 256\]"):
        exec(CODE, {"__name__": "page"})


def replaced(code, replacements):
    for documented, other in replacements.items():
        assert documented in code
        code = code.replace(documented, other)
    return code


def in_processes(code):
    """The page's loop after the page's changes, in a group that is there already."""
    begin = 'dist.init_process_group("gloo")\n'
    assert begin in IN_PROCESSES
    lines, at = code.splitlines(), 0
    for mark, line in ((line[0], line[1:]) for line in IN_PROCESSES.splitlines()):
        if mark == "+":
            lines.insert(at, line)
            at += 1
        else:
            at = lines.index(line)
            if mark == "-":
                del lines[at]
            else:
                at += 1
    return "\n".join(lines).replace(begin, "\n")


def run(rank, code, folder):
    os.chdir(folder)
    exec(code, {"__name__": "page"})
