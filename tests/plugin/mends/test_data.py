"""The mends of VISSL's lists of images and labels."""

import numpy as np
import pytest
from files_with_code import Code

import vissl_barlow

vissl_barlow.register()

from vissl.config import AttrDict  # noqa: E402
from vissl.data import dataset_catalog  # noqa: E402
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
