"""The mends of VISSL's lists of images and labels."""

import os

import numpy as np
import pytest
from files_with_code import Code
from PIL import Image
from sklearn.datasets import load_sample_images

import vissl_barlow

vissl_barlow.register()

from vissl.config import AttrDict  # noqa: E402
from vissl.data import dataset_catalog  # noqa: E402
from vissl.data.disk_dataset import DiskImageDataset  # noqa: E402
from vissl.data.ssl_dataset import GenericSSLDataset  # noqa: E402


def label_loader(**config):
    data_set = GenericSSLDataset.__new__(GenericSSLDataset)
    data_set.split, data_set.cfg = "TRAIN", config
    return data_set.load_single_label_file


def test_labels_with_code_are_refused_by_the_data_set(tmp_path):
    path = tmp_path / "labels.npy"
    np.save(path, np.array([Code(tmp_path / "ran")], dtype=object), allow_pickle=True)
    for mmap in (True, False):
        load = label_loader(BARLOW={}, DATA={"TRAIN": AttrDict({"MMAP_MODE": mmap})})
        with pytest.raises(ValueError, match="not a plain array"):
            load(str(path))
    assert not (tmp_path / "ran").exists()
    np.save(path, np.array(["cat", "dog"]))
    assert load(str(path)).tolist() == ["cat", "dog"]


def unlabelled(folder) -> AttrDict:
    names = {"DATASET_NAMES": ["not in the catalogue"], "DATA_SOURCES": ["disk_folder"]}
    paths = {"DATA_PATHS": [str(folder)], "LABEL_PATHS": [], "COPY_TO_LOCAL_DISK": False}
    return AttrDict({"TRAIN": {**names, **paths}})


@pytest.mark.usefixtures("barlow_run")
def test_images_need_no_labels(tmp_path):
    assert dataset_catalog.get_data_files("TRAIN", unlabelled(tmp_path))[0] == [str(tmp_path)]


def disk_images(kind: str, folder, paths) -> DiskImageDataset:
    """VISSL's own source over the images `paths` in `folder`."""
    section = {
        "BATCHSIZE_PER_REPLICA": 2,
        "MMAP_MODE": False,
        "REMOVE_IMG_PATH_PREFIX": "",
        "NEW_IMG_PATH_PREFIX": "",
        "ENABLE_QUEUE_DATASET": False,
        "DEFAULT_GRAY_IMG_SIZE": 7,
    }
    path = folder
    if kind == "disk_filelist":
        path = folder.parent / "images.npy"
        np.save(path, [str(path) for path in paths])
    cfg = AttrDict({"BARLOW": {}, "DATA": {"TRAIN": AttrDict(section)}})
    return DiskImageDataset(cfg, kind, str(path), "TRAIN", "x")


@pytest.mark.usefixtures("barlow_run")
@pytest.mark.parametrize("kind", ["disk_filelist", "disk_folder"])
def test_vissls_sources_give_pillows_pixels_of_what_is_read_alone(kind, tmp_path, monkeypatch):
    folder = tmp_path / "images"
    paths = [folder / "a" / name for name in ("0.jpg", "1.jpg", "2.jpg")]
    paths[0].parent.mkdir(parents=True)
    photo = Image.fromarray(load_sample_images().images[0][:60, :80])
    photo.save(paths[0])
    os.mkfifo(paths[1])
    photo.save(paths[2], "EPS")
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args: started.append(args))
    source = disk_images(kind, folder, paths)
    image, is_own = source[0]
    assert is_own
    np.testing.assert_array_equal(image, Image.open(paths[0]).convert("RGB"))
    for bad in (1, 2):
        if kind == "disk_folder":  # VISSL opens it outside of its try
            with pytest.raises(ValueError, match=rf"{bad}\.jpg: no"):
                source[bad]
        else:
            image, is_own = source[bad]
            assert not is_own and image.size == (7, 7)
    assert not started


@pytest.mark.usefixtures("plain_run")
def test_vissls_runs_open_images_as_before(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "0.jpg"
    Image.new("RGB", (5, 4)).save(path, "TGA")
    assert disk_images("disk_filelist", path.parent, [path])[0][0].size == (5, 4)
