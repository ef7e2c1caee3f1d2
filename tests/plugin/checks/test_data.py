"""A run is of the images the user named: keys that nothing would read, and lists that are none."""

import os

import numpy as np
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
        ("DATASET_NAMES=[mine]", "DATA_SOURCES=[barlow_folder], or remove it"),
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


def test_two_folders_are_refused_as_one_alone_would_be_read(tmp_path, images):
    two = f'config.DATA.TRAIN.DATA_PATHS=["{images}/train","{images}/val"]'
    line = refusal(
        tmp_path,
        "config.DATA.TRAIN.DATA_SOURCES=[barlow_folder,barlow_folder]",
        "config.DATA.TRAIN.DATASET_NAMES=[a,b]",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
        two,
    )
    assert "a run is of the images of one source; name one" in line


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["DATA_LIMIT=2000"], "DATA_LIMIT=2000: the 1437 images there cannot give so many"),
        (["DATA_LIMIT=100"], "DATA_LIMIT=100: 100 images are fewer than one global batch of 128"),
        (["DATA_LIMIT=0"], "DATA_LIMIT=0: 0 images are fewer than one global batch"),
        (
            ["DATA_LIMIT=200", "DATA_LIMIT_SAMPLING.IS_BALANCED=true"],
            "cannot give so many as it asks for (Balanced sampling requires labels)",
        ),
        (["BATCHSIZE_PER_REPLICA=2000"], "1437 images are fewer than one global batch of 2000"),
    ],
)
def test_more_images_than_there_are(tmp_path, overrides, line):
    assert line in refusal(tmp_path, *(f"config.DATA.TRAIN.{word}" for word in overrides))


def test_a_list_of_images_without_labels_is_looked_at(tmp_path, images):
    source = ("config.DATA.TRAIN.DATA_SOURCES=disk_filelist", FOLDER[1])
    np.save(tmp_path / "list.npy", [str(images / "train" / "9.png"), str(images / "train/0.png")])
    (tmp_path / "list.txt").touch()
    for name, remedy in (
        ("list.npy", "1 of the 2 images checked are missing or cannot be read"),
        ("absent.npy", "there is no such file; name a list (.npy)"),
        ("list.txt", "not a plain array of numbers or strings"),
    ):
        assert remedy in refusal(tmp_path, *source, paths(tmp_path / name))


def test_a_data_set_of_torchvision_that_is_not_there(tmp_path):
    source = ("config.DATA.TRAIN.DATA_SOURCES=torchvision_dataset", paths(tmp_path))
    line = refusal(tmp_path, *source, "config.DATA.TRAIN.DATASET_NAMES=CIFAR10")
    assert f"config.DATA.TRAIN.DATA_PATHS=[{tmp_path}]: torchvision finds no whole CIFAR10" in line
    line = refusal(tmp_path, *source, "config.DATA.TRAIN.DATASET_NAMES=CIFAR1000")
    assert "torchvision_dataset has CIFAR10, CIFAR100, STL10, MNIST, SVHN; name one" in line


def test_a_probe_on_other_images_is_none_and_refused_where_it_was_typed(tmp_path, images, caplog):
    own = (*FOLDER, paths(images / "train"))
    cfg = resolve(tmp_path / "run", DIGITS, *own)
    assert cfg.BARLOW.PROBE.KIND == ""
    assert "PROBE.KIND=linear: there is no probe: config.DATA.TRAIN.DATA_SOURCES=" in caplog.text
    typed = '+config.BARLOW.COMMAND=["config.BARLOW.PROBE.KIND=linear"]'
    assert refusal(tmp_path, *own, typed).startswith("config.BARLOW.PROBE.KIND=linear: ")


def test_a_probe_of_folders_wants_the_same_classes(tmp_path, images):
    for part, classes in (("train", "ab"), ("val", "abc")):
        for number, name in enumerate(classes):
            folder = images / part / name
            folder.mkdir()
            (images / part / f"{number}.png").rename(folder / "0.png")
            Image.new("RGB", (8, 8)).save(folder / "1.png")
    own = (
        *FOLDER,
        paths(images / "train"),
        "config.DATA.TEST.DATA_SOURCES=barlow_folder",
        f'config.DATA.TEST.DATA_PATHS="{images}/val"',
        '+config.BARLOW.COMMAND=["config.BARLOW.PROBE.KIND=linear"]',
    )
    line = refusal(tmp_path, *own)
    assert f"{images}/train has the classes a, b, {images}/val a, b, c; name labelled" in line
    (images / "train" / "c").mkdir()
    Image.new("RGB", (8, 8)).save(images / "train" / "c" / "0.png")
    assert resolve(tmp_path / "run", DIGITS, *own).BARLOW.PROBE.KIND == "linear"


def test_a_test_phase_of_one_view(tmp_path):
    line = refusal(tmp_path, "config.TEST_MODEL=true")
    assert line.startswith("config.TEST_MODEL=True: a pretraining's test phase computes its loss")
