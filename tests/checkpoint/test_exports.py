"""Trunks in others' formats, each loaded back by its own program and compared."""

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from trunks import assert_same, convert, features, resnet

from vissl_barlow.checkpoint import load_trunk
from vissl_barlow.resnet import build_trunk

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A narrow trunk with a small stem in a file, its weights as channels_last leaves them."""
    torch.manual_seed(0)
    trunk = build_trunk(18, small_stem=True, width_multiplier=0.25, zero_init_residual=False).eval()
    path = tmp_path_factory.mktemp("small") / "small.pth"
    torch.save(trunk.to(memory_format=torch.channels_last).state_dict(), path)
    return trunk, path


def test_torchvision_loads_its_names(tmp_path, resnet18):
    torch.save({"state_dict": resnet18.state_dict()}, tmp_path / "in.pth")
    assert convert(tmp_path / "in.pth", tmp_path / "out.pth", "torchvision") == 0
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True))
    assert torch.allclose(features(model.eval()), features(resnet18), atol=TOLERANCE)


@pytest.mark.parametrize("depth", (18, 50))
def test_timm_loads_its_names(tmp_path, depth):
    import timm

    trunk = resnet(depth)
    torch.save(trunk.state_dict(), tmp_path / "in.pth")
    for to, name in (("timm", "out.pth"), ("safetensors", "out.safetensors")):
        assert convert(tmp_path / "in.pth", tmp_path / name, to) == 0
        model = timm.create_model(
            f"resnet{depth}", num_classes=0, checkpoint_path=str(tmp_path / name)
        )
        expected = features(trunk)
        assert torch.allclose(features(model.eval()), expected, atol=TOLERANCE), to


def test_safetensors_have_every_tensor(tmp_path, small):
    trunk, source = small
    target = tmp_path / "out.safetensors"
    assert convert(source, target, "safetensors") == 0
    assert_same(safetensors.torch.load_file(target), trunk.state_dict())
    assert_same(load_trunk(target), trunk.state_dict())


def test_onnxruntime_gives_the_representations(tmp_path, small, capfd):
    import onnx
    import onnxruntime

    trunk, source = small
    target = tmp_path / "out.onnx"
    assert convert(source, target, "onnx") == 0
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and err == ""
    onnx.checker.check_model(onnx.load(target), full_check=True)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 32, 32), (5, 3, 40, 64)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        (found,) = session.run(["representations"], {"images": images.numpy()})
        with torch.no_grad():
            expected = trunk(images).numpy()
        assert found.shape == (len(images), 128)
        assert np.abs(found - expected).max() < TOLERANCE


def test_onnx_is_refused_with_the_command_that_installs_it(tmp_path, small, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert convert(small[1], tmp_path / "out.onnx", "onnx") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "pip install onnx onnxruntime" in err and not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    "to, name, remedy",
    (
        ("onnx", "out.pth", "name it .onnx"),
        ("safetensors", "out.pth", "name it .safetensors"),
        ("timm", "out.safetensors", "--to safetensors"),
        ("vissl", "out.onnx", "--to onnx"),
    ),
)
def test_endings_that_mean_another_format_are_refused(tmp_path, small, capsys, to, name, remedy):
    assert convert(small[1], tmp_path / name, to) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and remedy in err
    assert not (tmp_path / name).exists()
