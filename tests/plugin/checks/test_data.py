"""A run is of the images the user named: keys that nothing would read, and lists that are none."""

import os

import pytest
from PIL import Image
from vissl_runs import resolve

from vissl_barlow.vissl_plugin.errors import ConfigError

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
FOLDER = (
    "config.DATA.TRAIN.DATA_SOURCES=barlow_folder",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
)


@pytest.fixture
def images(tmp_path):
    """Four images in each of train/ and val/."""
    for part in ("train", "val"):
        folder = tmp_path / "my images é" / part
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    return tmp_path / "my images é"


def paths(folder) -> str:
    return f'config.DATA.TRAIN.DATA_PATHS="{folder}"'


def refusal(folder, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        resolve(folder / "run", DIGITS, *overrides)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_single_path_is_a_list_of_one_and_a_tilde_is_home(tmp_path, images, monkeypatch):
    cfg = resolve(tmp_path / "run", DIGITS, *FOLDER, paths(images / "train"))
    assert cfg.DATA.TRAIN.DATA_PATHS == [str(images / "train")]
    assert cfg.DATA.TRAIN.DATA_SOURCES == ["barlow_folder"]
    monkeypatch.setenv("HOME", str(images))
    cfg = resolve(tmp_path / "run", DIGITS, *FOLDER, paths("~/train"))
    assert cfg.DATA.TRAIN.DATA_PATHS == [str(images / "train")]


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("DATA_PATHS=[/my/images]", "config.DATA.TRAIN.DATA_SOURCES=[barlow_folder], or remove it"),
        ("ENABLE_QUEUE_DATASET=true", "DATA_SOURCES=[disk_folder]"),
        ("REMOVE_IMG_PATH_PREFIX=/a", "DATA_SOURCES=[disk_filelist]"),
        ("LABEL_PATHS=labels.npy", "LABEL_SOURCES=[disk_filelist]"),
        ("DATASET_NAMES=[a,b]", "2 for the 1 of config.DATA.TRAIN.DATA_SOURCES"),
        ("DATA_SOURCES=[barlow_digits,barlow_digits]", "1 for the 2 of"),
        ("DATA_PATHS=2024", 'config.DATA.TRAIN.DATA_PATHS=["2024"]'),
    ],
)
def test_what_would_not_be_read_is_refused(tmp_path, override, remedy):
    assert remedy in refusal(tmp_path, f"config.DATA.TRAIN.{override}")


def test_more_folders_than_sources(tmp_path, images):
    two = f'config.DATA.TRAIN.DATA_PATHS=["{images}/train","{images}/val"]'
    assert "2 for the 1 of config.DATA.TRAIN.DATA_SOURCES" in refusal(tmp_path, *FOLDER, two)


def test_the_folder_above_train_and_val(tmp_path, images):
    assert "found train, val; name one of these" in refusal(tmp_path, *FOLDER, paths(images))


def test_a_link_that_leads_nowhere_and_one_that_leads_back(tmp_path, images):
    os.symlink(".", images / "train" / "self")
    resolve(tmp_path / "run", DIGITS, *FOLDER, paths(images / "train"))
    vissls = (*FOLDER, "config.DATA.TRAIN.DATA_SOURCES=disk_folder", paths(images / "train"))
    assert "self lead to folders that are there already" in refusal(tmp_path, *vissls)
    os.symlink(tmp_path / "unmounted", images / "train" / "class")
    message = refusal(tmp_path, *FOLDER, paths(images / "train"))
    assert "/train/class is a link that leads nowhere; its images would be missing" in message
