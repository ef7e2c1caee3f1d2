"""vissl/data: images, and lists of images and labels."""

import contextlib
import os

from iopath.common.file_io import g_pathmgr
from PIL import Image
from vissl.data import dataset_catalog, disk_dataset
from vissl.data.ssl_dataset import GenericSSLDataset

from vissl_barlow.datasets.file_lists import load_list
from vissl_barlow.images import read_image
from vissl_barlow.vissl_plugin.wrap import in_barlow_run, of_barlow_owner, overlay, wrap


def accept_data_paths_without_label_paths() -> None:
    """vissl/data/dataset_catalog.py:293: the catalogue is asked for labels nobody uses.

    A fault of VISSL 0.1.6: DATA_PATHS without LABEL_PATHS is a KeyError unless the data set happens
    to be in the catalogue, even where LABEL_SOURCES is empty.
    """

    @wrap(dataset_catalog, "get_data_files", applies=in_barlow_run)
    def get_data_files(original, split, dataset_config):
        section = dataset_config[split]
        if len(section.DATA_PATHS) > 0 and len(section.LABEL_PATHS) == 0:
            section.LABEL_PATHS = list(section.DATA_PATHS)
        return original(split, dataset_config)


def load_labels_without_code() -> None:
    """vissl/data/ssl_dataset.py:176: `np.load(fopen, allow_pickle=True)`.

    A fault of VISSL 0.1.6: a file of labels can run code. Plain arrays, of numbers or of strings,
    need no pickle.
    """

    @wrap(GenericSSLDataset, "load_single_label_file", applies=of_barlow_owner)
    def load_single_label_file(original, dataset, path):
        return load_list(path, mmap=dataset.cfg["DATA"][dataset.split].MMAP_MODE)


def read_images_as_barlow_folder_does() -> None:
    """vissl/data/disk_dataset.py:148 and 85: `Image.open`, of a list's images and, in torchvision's
    ImageFolder, of a folder's.

    A fault of VISSL 0.1.6: a pipe or a device among the images stops the run for good, an EPS file
    starts Ghostscript, and no image costs too much to decode.
    """

    def open_later(path, *args, **kwargs):
        if in_barlow_run():
            return contextlib.nullcontext(g_pathmgr.get_local_path(path))
        return g_pathmgr.open(path, *args, **kwargs)

    def open_image(file, *args, **kwargs):
        return _read_pil(file) if in_barlow_run() else Image.open(file, *args, **kwargs)

    overlay(disk_dataset, "g_pathmgr", open=open_later)
    overlay(disk_dataset, "Image", open=open_image)

    @wrap(disk_dataset.DiskImageDataset, "_load_data", applies=of_barlow_owner)
    def load_data(original, dataset, path):
        original(dataset, path)
        if isinstance(dataset.image_dataset, disk_dataset.ImageFolder):
            dataset.image_dataset.loader = _read_pil


def _read_pil(path: str | os.PathLike) -> Image.Image:
    return Image.fromarray(read_image(path))
