"""Which ResNet a state dict is."""

import pytest
import torch
from trunks import assert_same, resnet, vissl_model_config

from vissl_barlow import checkpoint as ck


@pytest.mark.parametrize("small_stem", [False, True])
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_depth_is_told_from_names_and_shapes(depth, small_stem):
    with torch.device("meta"):
        trunk = resnet(depth, small_stem).state_dict()
    assert ck.trunk_depth(trunk) == (depth, small_stem, 1)


def test_width_is_told_as_vissl_widens():
    from vissl.models.trunks.resnext import ResNeXt

    config = vissl_model_config()
    config.TRUNK.RESNETS.WIDTH_MULTIPLIER = 2
    with torch.device("meta"):
        trunk = ResNeXt(config, "resnet").state_dict()
    names = {name.removeprefix("_feature_blocks."): tensor for name, tensor in trunk.items()}
    assert ck.trunk_depth(names) == (50, False, 2)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("layer2.0.conv1.weight", lambda t: t * float("nan"), "not finite"),
        ("bn1.running_mean", lambda t: t + float("inf"), "not finite"),
        ("layer4.1.bn2.running_var", lambda t: -t, "variances below 0 in 1 tensors"),
        ("conv1.weight", lambda t: (100 * t).to(torch.int8), "weight is torch.int8"),
        ("conv1.weight", lambda t: t.to(torch.float8_e4m3fn), "weight is torch.float8_e4m3fn"),
        ("conv1.weight", lambda t: t.to(torch.complex64), "weight is torch.complex64"),
        ("conv1.weight", lambda t: t.to_sparse(), "weight is torch.sparse_coo"),
        ("conv1.weight", lambda t: t.to("meta"), "weight is without data"),
    ],
)
def test_tensors_that_are_no_trained_models_are_refused(tmp_path, resnet18, name, change, told):
    """torch loads each of them, or a part of them, and the evaluation would have a number."""
    trunk = dict(resnet18.state_dict())
    torch.save(trunk | {name: change(trunk[name])}, tmp_path / "in.pth")
    with pytest.raises(ck.CheckpointError, match=rf"in\.pth: .*{told}") as raised:
        ck.load_trunk(tmp_path / "in.pth")
    assert name in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read(tmp_path, resnet18, dtype):
    trunk = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in resnet18.state_dict().items()
    }
    torch.save(trunk, tmp_path / "in.pth")
    assert_same(ck.load_trunk(tmp_path / "in.pth"), trunk)
