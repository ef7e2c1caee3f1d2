"""Data sources: `barlow_folder`, images below a folder; `barlow_own_folder`, those of them that are to
be trained or tested on; `barlow_digits`, scikit-learn's digits.

An image that cannot be read is reported with its path and the running count, the next readable one
takes its place, and the sample is marked in `data_valid`, which the monitor counts.
"""

import hashlib
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from vissl.data import DATA_SOURCES_WITH_SUBSET_SUPPORT, DATASET_SOURCE_MAP
from vissl.data.dataset_catalog import VisslDatasetCatalog

from vissl_barlow.digits import digits
from vissl_barlow.images import UnreadableImage, list_images, read_image
from vissl_barlow.own_images import read_folder
from vissl_barlow.regular_files import open_regular
from vissl_barlow.vissl_plugin.components.reproducible import view_seed
from vissl_barlow.vissl_plugin.components.views import ImageWithRng, with_rng
from vissl_barlow.vissl_plugin.settings import Settings

# Enough to tell two data sets apart whose files have the same names.
_COMPARED_FILES, _COMPARED_BYTES = 64, 1 << 16


def register_source(name: str) -> Callable[[type], type]:
    """Decorator: makes a class the data source `name` of VISSL's configs."""

    def register(source: type) -> type:
        DATASET_SOURCE_MAP[name] = source
        DATA_SOURCES_WITH_SUBSET_SUPPORT.add(name)
        return source

    return register


class BarlowSource(Dataset):
    """What the sources share, and what the checks ask of one before training starts.

    Views are drawn from the seed, the epoch and the image alone.

    Each image brings a generator of its own for `BarlowTwoViews`, so that its views depend neither on
    the number of loader workers nor on where a run was interrupted. A subclass has `read` and
    `__len__`.
    """

    # Whether its path is a folder, whose images (`list_images`) the checks then count and try.
    reads_folder = False
    # Of a source with files of its own: (path, split), raises ConfigError unless they are there.
    check_files: Callable[[str, str], None] | None = None
    # The keys of a split that it reads, of those that mean nothing to some sources.
    keys = frozenset({"DATA_PATHS"})

    def __init__(self, cfg, data_source: str, path: str, split: str, dataset_name: str) -> None:
        """VISSL's arguments to every source."""
        self.seed, self.epoch = cfg.SEED_VALUE, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by VISSL's task before each epoch's loader starts."""
        self.epoch = epoch

    def num_samples(self) -> int:
        return len(self)

    def __getitem__(self, index: int) -> tuple[ImageWithRng, bool]:
        """The image, (H, W, 3) uint8 RGB, and whether it is the one asked for."""
        image, is_own = self.read(int(index))
        rng = random.Random(view_seed(self.seed, self.epoch, int(index)))
        return with_rng(image, rng), is_own

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> tuple[np.ndarray, bool]:
        """As `__getitem__`, without a generator."""
        raise NotImplementedError


@register_source("barlow_folder")
class BarlowImageFolder(BarlowSource):
    """VISSL data source over the images below a folder, labelled by their top-level sub-folder."""

    reads_folder = True

    def __init__(self, cfg, data_source: str, path: str, split: str, dataset_name: str) -> None:
        super().__init__(cfg, data_source, path, split, dataset_name)
        self.root = path
        # A folder of nothing but bad files must end in an error, not in a search that lasts for hours.
        default = Settings.MAX_CONSECUTIVE_UNREADABLE  # configs of VISSL's may use this source too
        self.max_consecutive_unreadable = cfg.get("BARLOW", {}).get(
            "MAX_CONSECUTIVE_UNREADABLE", default
        )
        # One array of bytes instead of a million strings: a loader's workers unpickle it at once.
        names = self.list_images(path, split)
        self.names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        self.unreadable = 0

    def list_images(self, path: str, split: str) -> list[str]:
        """Paths of the images of `split`, relative to `path`."""
        return list_images(path)

    def __len__(self) -> int:
        return len(self.names)

    def get_image_paths(self) -> list[str]:
        return [self._path(index) for index in range(len(self))]

    def get_labels(self) -> list[int]:
        """Index of each image's top-level sub-folder, in sorted order, as ImageFolder numbers them."""
        folders = [Path(os.fsdecode(name)).parts[0] for name in self.names]
        index = {folder: label for label, folder in enumerate(sorted(set(folders)))}
        return [index[folder] for folder in folders]

    def identity(self) -> str:
        """A digest of the images' names below the folder, and of how some of their files begin."""
        digest = hashlib.blake2b(digest_size=6)
        for name in self.names:
            digest.update(name + b"\n")
        count = min(len(self), _COMPARED_FILES)
        for index in sorted(random.Random(0).sample(range(len(self)), count)):
            try:
                with open_regular(self._path(index)) as file:
                    digest.update(file.read(_COMPARED_BYTES))
            except OSError:  # it may be gone for a while
                digest.update(b"unreadable")
        return digest.hexdigest()

    def read(self, index: int) -> tuple[np.ndarray, bool]:
        for attempt in range(min(len(self), self.max_consecutive_unreadable)):
            path = self._path((index + attempt) % len(self))
            try:
                return read_image(path), attempt == 0
            except UnreadableImage as error:
                self.unreadable += 1
                logging.getLogger(__name__).warning(
                    "unreadable image %d of this process, replaced by its neighbour: %s",
                    self.unreadable,
                    error,
                )
        raise UnreadableImage(f"{attempt + 1} images in a row are unreadable, the last is {path}")

    def _path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index]))


@register_source("barlow_own_folder")
class BarlowOwnFolder(BarlowImageFolder):
    """VISSL data source over a folder of any layout (`vissl_barlow.own_images`): of DATA.TRAIN what is
    to be trained on, of DATA.TEST what is held out of the same folder."""

    # `checks/own_images.py` does.
    reads_folder = False

    def list_images(self, path: str, split: str) -> list[str]:
        folder = read_folder(path)
        trains = split.upper() == "TRAIN"
        # What the log and the run's record say (`run/images.py`).
        self.description = folder.description
        self.labels = folder.train_labels if trains else folder.test_labels
        return folder.train if trains else folder.test

    def get_labels(self) -> list[int]:
        """Place of each image's class among the names of the training images' classes, sorted."""
        if self.labels is None:
            raise ValueError(f"{self.root}: images without labels")
        return self.labels.tolist()


@register_source("barlow_digits")
class BarlowDigits(BarlowSource):
    """VISSL data source over scikit-learn's digits."""

    keys = frozenset()

    def __init__(self, cfg, data_source: str, path: str, split: str, dataset_name: str) -> None:
        super().__init__(cfg, data_source, path, split, dataset_name)
        self.images, self.labels = digits(split.lower())

    def __len__(self) -> int:
        return len(self.labels)

    def get_labels(self) -> list[int]:
        return self.labels.tolist()

    def read(self, index: int) -> tuple[np.ndarray, bool]:
        return self.images[index], True


if not VisslDatasetCatalog.has_data("barlow_digits"):
    # VISSL looks every data set without DATA_PATHS up here; the digits have no path.
    VisslDatasetCatalog.register_data("barlow_digits", {"train": ["", ""], "val": ["", ""]})
