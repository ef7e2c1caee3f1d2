"""Which ResNet a state dict is."""

import pytest
import torch
from trunks import resnet, vissl_model_config

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
