"""The names of the three formats: literally, and there and back without loss."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trunks import assert_same, convert, features, resnet

from vissl_barlow import checkpoint as ck
from vissl_barlow.checkpoint.__main__ import main
from vissl_barlow.resnet import build_trunk


@pytest.mark.parametrize("depth", [18, 50])
def test_every_pair_of_formats_is_lossless(tmp_path, depth, request):
    model = request.getfixturevalue(f"resnet{depth}")
    torch.save(model.state_dict(), tmp_path / "0")
    # A circuit through each ordered pair of the three formats, starting from torchvision.
    circuit = ["vissl", "detectron2", "torchvision", "detectron2", "vissl", "torchvision"]
    for step, to in enumerate(circuit):
        assert convert(tmp_path / str(step), tmp_path / str(step + 1), to) == 0
    final = torch.load(tmp_path / str(len(circuit)), weights_only=True)
    assert_same(final, model.state_dict())
    arrived = getattr(torchvision.models, f"resnet{depth}")()
    arrived.fc = nn.Identity()
    arrived.load_state_dict(final, strict=True)
    assert torch.equal(features(arrived.eval()), features(model))


@settings(max_examples=10)
@given(
    st.sampled_from([18, 50]),
    st.permutations(["vissl", "torchvision", "detectron2"]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.booleans(),
)
def test_converters_compose_to_the_identity(tmp_path_factory, depth, route, dtype, contiguous):
    folder = tmp_path_factory.mktemp("converted")
    with torch.device("meta"):
        shapes = build_trunk(depth).state_dict()
    weights = {}
    for index, (name, tensor) in enumerate(shapes.items()):
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        # One number behind a whole tensor: small files, and a stride of 0.
        value = torch.tensor(index, dtype=kind).expand(tensor.shape)
        weights[name] = value.clone() if contiguous and value.numel() < 5000 else value
    torch.save(weights, folder / "0.pth")
    for step, to in enumerate(route):
        source, target = folder / f"{step}.pth", folder / f"{step + 1}.pth"
        assert main(["--to", to, str(source), str(target)]) == 0
    back = ck.load_trunk(folder / f"{len(route)}.pth")
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def test_detectron2_names_are_those_of_its_resnet(resnet50):
    written = ck.to_detectron2(resnet50.state_dict())
    assert written["matching_heuristics"] is True
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    convolutions = {"stem.conv1": (64, 3, 7, 7)}
    channels = 64
    for stage, blocks, width in [(2, 3, 64), (3, 4, 128), (4, 6, 256), (5, 3, 512)]:
        for block in range(blocks):
            convolutions |= {
                f"res{stage}.{block}.conv1": (width, channels, 1, 1),
                f"res{stage}.{block}.conv2": (width, width, 3, 3),
                f"res{stage}.{block}.conv3": (4 * width, width, 1, 1),
            }
            if block == 0:
                convolutions[f"res{stage}.0.shortcut"] = (4 * width, channels, 1, 1)
            channels = 4 * width
    expected = {f"{name}.weight": shape for name, shape in convolutions.items()}
    for name, shape in convolutions.items():
        for field in norm:
            expected[f"{name}.norm.{field}"] = () if field == norm[-1] else shape[:1]
    assert {name: tuple(t.shape) for name, t in written["model"].items()} == expected
    assert sum("num_batches_tracked" not in name for name in written["model"]) == 265
    # Pairs of equal shape, which the shapes above cannot tell apart.
    for theirs, ours in {
        "stem.conv1.norm.bias": "bn1.bias",
        "res2.0.conv1.norm.weight": "layer1.0.bn1.weight",
        "res2.0.conv2.norm.weight": "layer1.0.bn2.weight",
        "res5.0.conv3.norm.running_mean": "layer4.0.bn3.running_mean",
        "res5.0.shortcut.norm.running_mean": "layer4.0.downsample.1.running_mean",
        "res4.5.conv2.weight": "layer3.5.conv2.weight",
    }.items():
        assert torch.equal(written["model"][theirs], resnet50.state_dict()[ours])


def test_detectron2_without_num_batches_tracked_is_read(tmp_path, resnet18):
    written = ck.to_detectron2(resnet18.state_dict())
    kept = {k: v for k, v in written["model"].items() if "num_batches_tracked" not in k}
    torch.save(written | {"model": kept}, tmp_path / "frozen.pth")
    trunk = ck.load_trunk(tmp_path / "frozen.pth")
    ck.check_fits(trunk, resnet18)
    resnet18_again = torchvision.models.resnet18()
    resnet18_again.fc = nn.Identity()
    resnet18_again.load_state_dict(trunk, strict=True)
    assert torch.equal(features(resnet18_again.eval()), features(resnet18))


def test_small_stem_travels_but_not_to_detectron2(tmp_path, capsys):
    model = resnet(18, small_stem=True)
    torch.save(model.state_dict(), tmp_path / "a")
    assert convert(tmp_path / "a", tmp_path / "b", "vissl") == 0
    assert_same(ck.load_trunk(tmp_path / "b"), model.state_dict())
    assert convert(tmp_path / "b", tmp_path / "c", "detectron2") == 1
    assert "small stem" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
