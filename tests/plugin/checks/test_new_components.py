"""A new trunk or data source needs no line in the checks: it says itself what they ask."""

import numpy as np
import pytest
from PIL import Image
from torch import nn
from vissl_runs import resolve

from vissl_barlow.vissl_plugin.errors import ConfigError

DIGITS = "pretrain/vissl_barlow/digits_quickstart"


def refusal(folder, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        resolve(folder / "run", DIGITS, *overrides)
    return str(raised.value)


def test_a_trunk_says_its_keys_and_the_dimensions_of_its_representations(tmp_path, monkeypatch):
    from vissl.models.trunks import MODEL_TRUNKS_REGISTRY

    class Plain(nn.Module):
        section = "PLAIN"
        keys = frozenset({"WIDTH"})

        @staticmethod
        def representation_dim(options) -> int:
            return 2 * options.WIDTH

        def __init__(self, model_config, model_name):
            super().__init__()
            self.linear = nn.Linear(3 * 32 * 32, 2 * model_config.TRUNK.PLAIN.WIDTH)

        def forward(self, images, out_feat_keys):
            return [self.linear(images.flatten(1))]

    monkeypatch.setitem(MODEL_TRUNKS_REGISTRY, "plain", Plain)
    trunk = ("config.MODEL.TRUNK.NAME=plain", "+config.MODEL.TRUNK.PLAIN.WIDTH=64")
    head = "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:128,dims:[512]}]]"
    resolve(tmp_path / "run", DIGITS, *trunk, head)
    assert "have 128 dimensions; set barlow_projector's in_dim to 128" in refusal(tmp_path, *trunk)
    assert refusal(tmp_path, *trunk, head, "+config.MODEL.TRUNK.PLAIN.FILTER=3") == (
        "config.MODEL.TRUNK.PLAIN.FILTER=3: plain has no FILTER; it has WIDTH"
    )


@pytest.mark.parametrize("reads_folder", [True, False])
def test_a_source_says_whether_it_reads_a_folder_of_images(reads_folder, tmp_path, monkeypatch):
    from vissl.data import DATASET_SOURCE_MAP

    from vissl_barlow.vissl_plugin.components.data import BarlowSource

    members = {"reads_folder": reads_folder, "__len__": lambda self: 128}
    source = type("Source", (BarlowSource,), members)
    monkeypatch.setitem(DATASET_SOURCE_MAP, "source", source)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "one.png")
    overrides = (
        "config.DATA.TRAIN.DATA_SOURCES=[source]",
        f"config.DATA.TRAIN.DATA_PATHS=[{tmp_path}]",
    )
    if reads_folder:
        assert "holds 1 images, fewer than one global batch of 128" in refusal(tmp_path, *overrides)
    else:
        resolve(tmp_path / "run", DIGITS, *overrides)
