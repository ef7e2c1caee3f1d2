"""vissl/data: lists of images and labels."""

from vissl.data import dataset_catalog
from vissl.data.ssl_dataset import GenericSSLDataset

from vissl_barlow.datasets.file_lists import load_list
from vissl_barlow.vissl_plugin.wrap import in_barlow_run, of_barlow_owner, wrap


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
