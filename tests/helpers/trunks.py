"""ResNet trunks and the files in which training codes leave them."""

from pathlib import Path

import torch
import torchvision
from torch import nn

from vissl_barlow.checkpoint.__main__ import main


def resnet(depth, small_stem=False):
    """Trunk with statistics of its own in every BN layer, so that no two tensors can be swapped."""
    torch.manual_seed(depth)
    model = getattr(torchvision.models, f"resnet{depth}")()
    model.fc = nn.Identity()
    if small_stem:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.8, 1.2)
            layer.num_batches_tracked.fill_(12_345)
    return model.eval()


def features(model, *arguments):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(images, *arguments)


def prefixed(prefix, state_dict):
    return {prefix + name: tensor for name, tensor in state_dict.items()}


def vissl_training_checkpoint(trunk, prefix="_feature_blocks."):
    heads = {"0.clf.0.weight": torch.ones(4, 2), "0.clf.0.bias": torch.ones(4)}
    model = {"model": {"trunk": prefixed(prefix, trunk), "heads": heads}, "meta": {"trunk": {}}}
    return {
        "phase_idx": 3,
        "iteration": 12,
        "loss": 0.5,
        "type": "consolidated",
        "classy_state_dict": {"base_model": model, "optimizer": {"momentum": torch.ones(3)}},
    }


def authors_training_checkpoint(trunk):
    projector = {
        "module.projector.0.weight": torch.ones(8, 2),
        "module.bn.running_mean": torch.ones(2),
    }
    optimizer = {"state": {0: {"mu": torch.zeros(3)}}, "param_groups": [{"lr": 0.2, "params": [0]}]}
    model = prefixed("module.backbone.", trunk) | projector
    return {"epoch": 1000, "model": model, "optimizer": optimizer}


LAYOUTS = {
    "authors' resnet50.pth": dict,
    "authors' checkpoint.pth": authors_training_checkpoint,
    "torchvision with fc": lambda trunk: (
        trunk | {"fc.weight": torch.ones(9, 2), "fc.bias": torch.ones(9)}
    ),
    "Lightning": lambda trunk: {"state_dict": prefixed("encoder.", trunk), "epoch": 1},
    "MoCo, query only": lambda trunk: {
        "state_dict": prefixed("module.encoder_q.", trunk | {"fc.0.weight": torch.ones(2, 2)}),
        "arch": "resnet18",
    },
    "VISSL": vissl_training_checkpoint,
    "VISSL feature extractor": lambda trunk: vissl_training_checkpoint(
        trunk, "base_model._feature_blocks."
    ),
    "VISSL converted zoo": lambda trunk: {"model_state_dict": prefixed("_feature_blocks.", trunk)},
    "VISSL whole model": lambda trunk: (
        prefixed("trunk._feature_blocks.", trunk) | {"heads.0.clf.0.weight": torch.ones(2, 2)}
    ),
}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def convert(source, target, to, *options):
    return main(["--to", to, *options, str(source), str(target)])


def vissl_model_config(**feature_eval):
    import vissl.config
    from omegaconf import OmegaConf

    defaults = Path(vissl.config.__file__).with_name("defaults.yaml")
    config = OmegaConf.to_container(OmegaConf.load(defaults))["config"]["MODEL"]
    config["FEATURE_EVAL_SETTINGS"] |= feature_eval
    return vissl.config.AttrDict(config)
