"""The data sets and the pretrained model that the transfer runs start from."""

from types import SimpleNamespace

import pytest
import torch
import torchvision
from detection_datasets import draw_coco, draw_voc
from torch import nn

from vissl_barlow.checkpoint import to_vissl


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    from vissl_barlow.detection import compat  # noqa: F401, I001
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
    from detectron2.data.datasets.pascal_voc import CLASS_NAMES

    root = tmp_path_factory.mktemp("datasets")
    draw_voc(root, CLASS_NAMES)
    things = [c for c in COCO_CATEGORIES if c["isthing"]]
    draw_coco(root, [{"id": c["id"], "name": c["name"]} for c in things])
    return root


@pytest.fixture(scope="session")
def resnet():
    """Weights of pretraining's initialisation, with running statistics and scales of their own."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    model.fc = nn.Identity()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model.eval()


@pytest.fixture(scope="session")
def checkpoints(resnet, tmp_path_factory):
    """The authors' format and VISSL's."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = SimpleNamespace(authors=folder / "resnet50.pth", vissl=folder / "final.torch")
    torch.save(resnet.state_dict(), paths.authors)
    torch.save(to_vissl(resnet.state_dict()), paths.vissl)
    return paths
