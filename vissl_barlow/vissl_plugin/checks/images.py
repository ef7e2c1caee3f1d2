"""Refuses folders and lists of images that are missing, too short, or hold what cannot be decoded."""

import copy
import logging
import os
from collections.abc import Sequence
from typing import cast

import numpy as np
from vissl.data import DATASET_SOURCE_MAP, build_dataset
from vissl.data.torchvision_dataset import TorchvisionDataset, TorchvisionDatasetName

from vissl_barlow.datasets.file_lists import load_list
from vissl_barlow.images import (
    UnreadableFolder,
    UnreadableImage,
    image_listing,
    parts_of_data_set,
    read_image,
    unreadable_images,
)
from vissl_barlow.messages import listed
from vissl_barlow.own_images import FolderRefused, read_folder
from vissl_barlow.vissl_plugin.checks.common import Refusals, data_path, world_size
from vissl_barlow.vissl_plugin.errors import ConfigError

# VISSL's own source that reads a folder of images; the plugin's say so themselves.
_FOLDER_OF_VISSL = "disk_folder"
_OF_TORCHVISION = "torchvision_dataset"
OWN_FOLDER = "barlow_own_folder"
# Grey levels of 255. Of 12 bits in a file of 16 there are 15.
_LEAST_CONTRAST = 32
_NAMES_OF_TORCHVISION = [
    value for name, value in vars(TorchvisionDatasetName).items() if name.isupper()
]


def check_images(cfg, split: str) -> None:
    """Raises ConfigError unless every image folder of a split can be trained on."""
    section = cfg.DATA[split]
    for index, source in enumerate(section.DATA_SOURCES):
        if source == "disk_filelist" and source not in section.LABEL_SOURCES:
            _check_list(cfg, split, index)
        if source == OWN_FOLDER:
            _check_own_folder(cfg, split, data_path(cfg, split, "DATA_PATHS", index))
        check_files = getattr(DATASET_SOURCE_MAP.get(source), "check_files", None)
        if not (_reads_folder(source) or source == _OF_TORCHVISION or check_files):
            continue
        key = f"DATA.{split}.DATA_PATHS"
        folder, name = data_path(cfg, split, "DATA_PATHS", index), section.DATASET_NAMES[index]
        if folder is None:
            raise ConfigError(
                key,
                "[]",
                f"nothing says where the images are; set config.{key}=[FOLDER], or add "
                f'"{name}" to VISSL\'s dataset_catalog.json',
            )
        if check_files:
            check_files(folder, split)
        elif source != _OF_TORCHVISION:
            _check_folder(cfg, split, folder, source)
        elif name not in _NAMES_OF_TORCHVISION:
            remedy = f"{source} has {', '.join(_NAMES_OF_TORCHVISION)}; name one of these"
            raise ConfigError(f"DATA.{split}.DATASET_NAMES", section.DATASET_NAMES, remedy)
        else:
            _check_torchvision(cfg, split, folder, name)


def _check_torchvision(cfg, split: str, folder: str, name: str) -> None:
    """Raises ConfigError unless torchvision finds the data set, with the MD5 of each of its files: some
    of them are pickles, which it reads only then."""
    try:
        TorchvisionDataset(cfg, _OF_TORCHVISION, folder, split, name)
    except (RuntimeError, OSError, AssertionError) as error:
        raise ConfigError(
            f"DATA.{split}.DATA_PATHS",
            f"[{folder}]",
            f"torchvision finds no whole {name} there ({' '.join(str(error).split())[:100]}); name the "
            f"folder that torchvision.datasets.{name} downloads it to",
        ) from None


def _check_folder(cfg, split: str, folder: str, source: str) -> None:
    key = f"DATA.{split}.DATA_PATHS"
    try:
        images, repeated = image_listing(folder)
    except FileNotFoundError:
        raise ConfigError(key, f"[{folder}]", "there is no such folder; name the images'") from None
    except UnreadableFolder as error:
        remedy = f"{error}; its images would be missing: make it readable, or remove it"
        raise ConfigError(key, f"[{folder}]", remedy) from None
    if repeated and source == _FOLDER_OF_VISSL:
        raise ConfigError(
            key,
            f"[{folder}]",
            f"{listed(repeated)} lead to folders that are there already, and {source} would list "
            "their images again; remove these links",
        )
    # Of labelled folders, `check_labels` says what it expects.
    labelled = "disk_folder" in cfg.DATA[split].LABEL_SOURCES
    parts = [] if labelled else parts_of_data_set(images)
    if parts:
        raise ConfigError(
            key,
            f"[{folder}]",
            f"expected images to use together, found {', '.join(parts)}; name one of these instead "
            "of the folder above",
        )
    if not images:
        raise ConfigError(
            key, f"[{folder}]", "the folder holds no image; expected .jpg, .png, ... in or below it"
        )
    batch = cfg.DATA[split].BATCHSIZE_PER_REPLICA * world_size(cfg)
    if cfg.DATA[split].DROP_LAST and len(images) < batch:
        raise ConfigError(
            key,
            f"[{folder}]",
            f"the folder holds {len(images)} images, fewer than one global batch of {batch}; "
            f"lower config.DATA.{split}.BATCHSIZE_PER_REPLICA",
        )
    _check_decodable(cfg, key, folder, images)


def _check_own_folder(cfg, split: str, folder: str | None) -> None:
    """Of what is wrong with the folder itself `choose_values` has spoken."""
    try:
        own = read_folder(folder or "")
    except (FolderRefused, UnreadableFolder):
        return
    images = own.train if split == "TRAIN" else own.test
    batch = cfg.DATA[split].BATCHSIZE_PER_REPLICA * world_size(cfg)
    refusals = Refusals()
    key = f"DATA.{split}.BATCHSIZE_PER_REPLICA"
    with refusals:
        # A chosen batch fits, or it has been said that the images are too few.
        chosen = any(each["key"] == key for each in cfg.BARLOW.get("DERIVED", ()))
        if cfg.DATA[split].DROP_LAST and len(images) < batch and not chosen:
            most = max(len(images) // world_size(cfg), 1)
            raise ConfigError(
                key,
                cfg.DATA[split].BATCHSIZE_PER_REPLICA,
                f"{own.root} has {len(images)} images to train on, fewer than one global batch of "
                f"{batch}; leave it out, or type config.{key}={most}",
            )
    with refusals:
        _check_decodable(cfg, f"DATA.{split}.DATA_PATHS", own.root, images)
    refusals.raise_all()


def _check_decodable(cfg, key: str, folder: str, images: Sequence[str]) -> None:
    contrasts: list[int] = []

    def locate(name: str) -> str:
        return os.path.join(folder, name)

    checked, unreadable = unreadable_images(
        images,
        cfg.BARLOW.CHECK_IMAGES,
        locate=locate,
        see=lambda image: contrasts.append(int(np.ptp(image))),
    )
    if contrasts and np.median(contrasts) < _LEAST_CONTRAST:
        logging.warning(
            "half of the %d images checked in %s have at most %d of 255 grey levels between their "
            "darkest and their lightest pixel: they are blank, or hold 12 bits in files of 16; scale "
            "them to the whole range",
            len(contrasts),
            folder,
            np.median(contrasts),
        )
    if unreadable:
        raise ConfigError(
            key,
            f"[{folder}]",
            f"{len(unreadable)} of the {checked} images checked cannot be read "
            f"({listed(unreadable)}{_why(locate(unreadable[0]))}); remove or replace them, or "
            "start all the same with config.BARLOW.CHECK_IMAGES=0: each is then replaced by its "
            "neighbour, and counted",
        )


def _why(path: str) -> str:
    """Why the first of those that are named cannot be read."""
    try:
        read_image(path)
    except UnreadableImage as error:
        return f": the first since {str(error).removeprefix(f'{path}: ')}"
    return ""


def _check_list(cfg, split: str, index: int) -> None:
    """Of lists with labels, `check_labels` looks at both."""
    key, path = f"DATA.{split}.DATA_PATHS", data_path(cfg, split, "DATA_PATHS", index)
    if path is None:
        raise ConfigError(key, "[]", f"nothing says where the list is; set config.{key}=[LIST.npy]")
    check_listed_images(cfg, split, path, listed_images(key, path, read_list(key, path)))


def read_list(key: str, path: str, how_to_make: str = "") -> np.ndarray:
    """VISSL's list at `path`, mapped; raises ConfigError where there is none."""
    if not os.path.isfile(path):
        remedy = f"there is no such file{how_to_make or '; name a list (.npy)'}"
        raise ConfigError(key, f"[{path}]", remedy)
    try:
        return load_list(path, mmap=True)
    except ValueError as error:
        raise ConfigError(key, f"[{path}]", str(error)) from None


def listed_images(key: str, path: str, images: np.ndarray) -> Sequence[str]:
    """`images`, the content of a list, as paths; raises ConfigError where they are none."""
    if images.ndim != 1 or images.dtype.kind != "U":
        raise ConfigError(
            key,
            f"[{path}]",
            "expected a list of the images' paths, found an array of "
            f"{images.dtype} of shape {images.shape}",
        )
    # As a sequence, so that of a mapped file only the images tried are read.
    return cast(Sequence[str], images)


def check_number(cfg, split: str) -> None:
    """Raises ConfigError unless a split has the images that DATA_LIMIT and one batch ask for."""
    section = cfg.DATA[split]
    limit = section.DATA_LIMIT
    if limit < 0 and _reads_folder(section.DATA_SOURCES[0]):
        return  # `check_images` has counted them: a large folder is listed but once
    key = f"DATA.{split}.DATA_PATHS"
    try:
        dataset = build_dataset(copy.deepcopy(cfg), split)  # VISSL writes into it
    except (AssertionError, OSError, RuntimeError) as error:
        raise ConfigError(key, section.DATA_PATHS, str(error).partition("\n")[0]) from None
    if limit >= 0:
        key = f"DATA.{split}.DATA_LIMIT"
        _check_limit(key, limit, dataset)
    images = len(dataset)
    batch = section.BATCHSIZE_PER_REPLICA * world_size(cfg)
    if images == 0 or (split == "TRAIN" and section.DROP_LAST and images < batch):
        raise ConfigError(
            key,
            limit if limit >= 0 else section.DATA_PATHS,
            f"{images} images are fewer than one global batch of {batch}, and no step would be taken; "
            f"lower config.DATA.{split}.BATCHSIZE_PER_REPLICA, or take more images",
        )


def _check_limit(key: str, limit: int, dataset) -> None:
    try:
        if dataset.label_sources:
            dataset.load_labels()
        dataset._init_image_and_label_subset()
    except (AssertionError, ValueError) as error:
        there = len(dataset.data_objs[0])
        remedy = (
            f"the {there} images there cannot give so many as it asks for ({error}); set at most"
        )
        raise ConfigError(key, limit, f"{remedy} {there}, or -1 for all") from None


def _reads_folder(source: str) -> bool:
    return getattr(DATASET_SOURCE_MAP.get(source), "reads_folder", source == _FOLDER_OF_VISSL)


def check_listed_images(cfg, split: str, path: str, images: Sequence[str]) -> None:
    """Raises ConfigError unless the images of the list at `path` that are decoded can be."""
    section = cfg.DATA[split]

    def locate(image: str) -> str:
        prefix = section.REMOVE_IMG_PATH_PREFIX
        if prefix and image.startswith(prefix):
            return section.NEW_IMG_PATH_PREFIX + image.removeprefix(prefix)
        return image

    checked, unreadable = unreadable_images(images, cfg.BARLOW.CHECK_IMAGES, locate=locate)
    if unreadable:
        raise ConfigError(
            f"DATA.{split}.DATA_PATHS",
            f"[{path}]",
            f"{len(unreadable)} of the {checked} images checked are missing or cannot be read "
            f"({listed([locate(image) for image in unreadable])}{_why(locate(unreadable[0]))}); make "
            "the list anew, or start all "
            "the same with config.BARLOW.CHECK_IMAGES=0",
        )
