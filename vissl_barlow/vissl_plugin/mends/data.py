"""vissl/data: lists of images and labels."""

import numpy as np

from vissl_barlow.vissl_plugin.wrap import wrap


def data_paths_without_label_paths() -> None:
    """vissl/data/dataset_catalog.py:330, the catalogue is asked for labels nobody uses.

    Always broken: DATA_PATHS without LABEL_PATHS is a KeyError unless the data set happens to be in
    the catalogue, even where LABEL_SOURCES is empty.
    """
    from vissl.data import dataset_catalog

    @wrap(dataset_catalog, "get_data_files")
    def get_data_files(original, split, dataset_config):
        section = dataset_config[split]
        if len(section.DATA_PATHS) > 0 and len(section.LABEL_PATHS) == 0:
            section.LABEL_PATHS = list(section.DATA_PATHS)
        return original(split, dataset_config)


def labels_without_code() -> None:
    """vissl/data/ssl_dataset.py:176, `np.load(fopen, allow_pickle=True)`.

    Always so: a file of labels can run code. Plain arrays, of numbers or of strings, need no pickle.
    """
    from vissl.data.ssl_dataset import GenericSSLDataset

    @wrap(GenericSSLDataset, "load_single_label_file")
    def load_single_label_file(original, dataset, path):
        return load_list(path, mmap=dataset.cfg["DATA"][dataset.split].MMAP_MODE)


def load_list(path: str, mmap: bool = False) -> np.ndarray:
    """The array in one of VISSL's lists (`.npy`) of image paths or labels.

    Raises:
        ValueError: not an array of numbers or strings; a pickle, which could run code, is none.
        OSError: the file is missing or cannot be opened.
    """
    try:
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: not a plain array of numbers or strings, as numpy.save writes it ({error})"
        ) from None
