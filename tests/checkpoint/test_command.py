"""`python -m vissl_barlow.checkpoint`."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from fvcore.common.config import CfgNode
from torch import nn
from trunks import assert_same, authors_training_checkpoint, convert

from vissl_barlow.checkpoint import load_trunk, to_vissl, trunk_depth
from vissl_barlow.detection.config import check_input, check_trunk
from vissl_barlow.resnet import build_trunk

ROOT = Path(__file__).resolve().parents[2]


def test_command_line_reports_and_refuses_in_one_line(tmp_path, resnet18, capsys):
    source, target = tmp_path / "in.pth", tmp_path / "out.torch"
    torch.save(authors_training_checkpoint(resnet18.state_dict()), source)
    assert convert(source, target, "vissl") == 0
    report = capsys.readouterr().out
    assert report.count("\n") == 1
    for part in ("authors", "ResNet-18", "120 tensors", "2 beside", str(target), "vissl"):
        assert part in report

    before = target.read_bytes()
    refusals = {
        "--force replaces it": (source, target, "torchvision"),
        "No such file": (tmp_path / "gone", tmp_path / "new", "vissl"),
        "No such file or directory: '" + str(tmp_path / "no"): (
            source,
            tmp_path / "no" / "x",
            "vissl",
        ),
        "name it .pth": (source, tmp_path / "r50.pkl", "detectron2"),
        "is IN itself": (target, target, "torchvision", "--force"),
        "nothing is downloaded here": ("https://example.org/x.pth", tmp_path / "new", "vissl"),
    }
    for reason, arguments in refusals.items():
        assert convert(*arguments) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert reason in err
    assert target.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["in.pth", "out.torch"]

    assert convert(source, target, "torchvision", "--force") == 0
    assert_same(torch.load(target, weights_only=True), resnet18.state_dict())


def test_it_runs_as_a_module_without_a_warning(tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "in.pth")
    command = [sys.executable, "-m", "vissl_barlow.checkpoint", "--to", "vissl"]
    ran = subprocess.run(
        [*command, tmp_path / "in.pth", tmp_path / "out.torch"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "ResNet-18" in ran.stdout
    assert_same(load_trunk(tmp_path / "out.torch"), resnet18.state_dict())


def test_a_runs_folder_is_no_checkpoint_and_the_one_in_it_is_named(tmp_path, resnet18, capsys):
    newest = tmp_path / "checkpoint.torch"
    torch.save(resnet18.state_dict(), newest)
    assert convert(tmp_path, tmp_path / "out.pth", "torchvision") == 1
    assert capsys.readouterr().err.rstrip().endswith(f"; {newest} is one")


def test_what_a_small_stem_wants_is_said_and_gives_its_features(tmp_path, capsys):
    """torchvision's model with another first convolution alone would pool, and give other features."""
    trunk = build_trunk(18, small_stem=True).eval()
    torch.save(trunk.state_dict(), tmp_path / "in.pth")
    for to in ("vissl", "torchvision"):
        assert convert(tmp_path / "in.pth", tmp_path / f"{to}.pth", to) == 0
    of_vissl, of_torchvision = capsys.readouterr().out.splitlines()
    assert of_vissl.endswith("(vissl)")
    model = torchvision.models.resnet18()
    model.fc = nn.Identity()
    exec(of_torchvision.partition("before it is loaded: ")[2], {"model": model, "nn": nn})
    model.load_state_dict(torch.load(tmp_path / "torchvision.pth", weights_only=True))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.eval()(images), trunk(images))


def test_what_detectron2s_config_wants_is_said(tmp_path, capsys):
    """Under its own configs the weights load as well, and see other colours, scales and strides."""
    trunk = build_trunk(50, width_multiplier=0.125).state_dict()
    torch.save(trunk, tmp_path / "in.pth")
    assert convert(tmp_path / "in.pth", tmp_path / "out.pth", "detectron2") == 0
    resnets = {"DEPTH": 50, "STEM_OUT_CHANNELS": 64, "WIDTH_PER_GROUP": 64}
    resnets |= {"RES2_OUT_CHANNELS": 256, "STRIDE_IN_1X1": True, "OUT_FEATURES": ["res4"]}
    pixels = {"PIXEL_MEAN": [103.53, 116.28, 123.675], "PIXEL_STD": [1.0, 1.0, 1.0]}
    model = {"RESNETS": resnets, "WEIGHTS": "out.pth", **pixels}
    own = CfgNode({"MODEL": model, "INPUT": {"FORMAT": "BGR"}})
    with pytest.raises(ValueError, match="STRIDE_IN_1X1 is True"):
        check_input(own)
    wanted = capsys.readouterr().out.partition("its config must have ")[2]
    own.merge_from_list(shlex.split(wanted))
    check_input(own)
    check_trunk(own, trunk_depth(trunk))


def test_how_the_views_were_normalised_is_said(tmp_path, capsys):
    """Of a checkpoint that knows, where it is not as everywhere; other formats have no place for it."""
    checkpoint = to_vissl(build_trunk(18, width_multiplier=0.125).state_dict())
    torch.save(checkpoint, tmp_path / "unknown.torch")
    numbers = {"mean": [0.5, 0.25, 0.75], "std": [0.25, 0.25, 0.5]}
    options = {f"{name}.{i}": n for name in numbers for i, n in enumerate(numbers[name])}
    checkpoint["classy_state_dict"]["experiment"] = {
        f"DATA.TRAIN.TRANSFORMS.0.{key}": value
        for key, value in {"name": "BarlowTwoViews", **options}.items()
    }
    torch.save(checkpoint, tmp_path / "own.torch")

    def said(source, target, to):
        assert convert(tmp_path / source, tmp_path / target, to) == 0
        return capsys.readouterr().out.strip()

    own = said("own.torch", "own.pth", "torchvision")
    assert own.endswith(f"of images normalised by mean {numbers['mean']}, std {numbers['std']}")
    assert said("unknown.torch", "unknown.pth", "torchvision").endswith("(torchvision)")
    pixels = {name: [255 * n for n in numbers[name]] for name in numbers}
    told = f"PIXEL_MEAN '{pixels['mean']}' MODEL.PIXEL_STD '{pixels['std']}'"
    assert told in said("own.torch", "own.d2.pth", "detectron2")
