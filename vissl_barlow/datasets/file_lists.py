"""VISSL's file lists: `<split>_images.npy`, the images' paths, and `<split>_labels.npy`."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vissl_barlow.atomic_files import atomic_file
from vissl_barlow.regular_files import regular_size


class DatasetError(ValueError):
    """Files that are not the data set they should be; the message says what was expected."""


def write_file_lists(
    folder: str | os.PathLike, split: str, images: Sequence[str], labels: Sequence[int]
) -> None:
    """Writes both lists of `split` into `folder`, which is made; plain arrays, no pickles.

    The images come last: where they are, the labels are whole.

    Args:
        split: "train" or "val", the lists' names begin with it.
        images: N paths.
        labels: their N classes, 0, 1, ...

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"labels": np.asarray(labels, dtype=np.int64), "images": np.asarray(images, dtype=str)}
    for kind, array in arrays.items():
        # A list cut short by a kill would pass for a smaller data set.
        with atomic_file(folder / f"{split}_{kind}.npy") as file:
            np.save(file, array, allow_pickle=False)


def load_list(path: str | os.PathLike, mmap: bool = False) -> np.ndarray:
    """The array in one of VISSL's lists (`.npy`) of image paths or labels.

    Raises:
        ValueError: not an array of numbers or strings; a pickle, which could run code, is none.
        OSError: the file is missing, no regular file, or cannot be opened.
    """
    try:
        if regular_size(path) == 0:
            raise EOFError("the file is empty")
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        raise ValueError(
            f"{path}: not a plain array of numbers or strings, as numpy.save writes it ({error})"
        ) from None
