"""The probe's labelled images, of a folder of the user's own."""

import pytest
from PIL import Image
from vissl_runs import resolve

from vissl_barlow.vissl_plugin.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    for part in ("train", "val"):
        for width, name in ((8, "a"), (9, "b"), (10, "b")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (width, 8)).save(folder / f"{width}.png")
    return resolve(
        tmp_path / "run",
        "pretrain/vissl_barlow/digits_quickstart",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=2",
        *(
            word
            for split, part in (("TRAIN", "train"), ("TEST", "val"))
            for word in (
                f"config.DATA.{split}.DATA_SOURCES=barlow_folder",
                f"config.DATA.{split}.DATA_PATHS={tmp_path}/{part}",
            )
        ),
    )


def test_images_of_several_sizes_want_a_resize(config):
    from vissl_barlow.vissl_plugin.hooks.probe import BarlowProbe

    probe = BarlowProbe("knn", 0, 1)
    with pytest.raises(
        ConfigError, match=r"TRANSFORMS=.*: the probe's images \(TRAIN\) have 3 sizes"
    ):
        probe._labelled_images(config, "TRAIN")
    config.DATA.TEST.TRANSFORMS = [{"name": "Resize", "size": [8, 8]}, {"name": "ToTensor"}]
    for split in ("TRAIN", "TEST"):
        images, labels = probe._labelled_images(config, split)
        assert images.shape == (3, 3, 8, 8) and labels.tolist() == [0, 1, 1]
