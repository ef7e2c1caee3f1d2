"""Refuses folders and lists of images that are missing, too short, or hold what cannot be decoded."""

import os
from collections.abc import Sequence

from vissl.data import DATASET_SOURCE_MAP

from vissl_barlow.images import (
    UnreadableFolder,
    image_listing,
    parts_of_data_set,
    unreadable_images,
)
from vissl_barlow.messages import listed
from vissl_barlow.vissl_plugin.checks.common import data_path, world_size
from vissl_barlow.vissl_plugin.errors import ConfigError

# VISSL's own source that reads a folder of images; the plugin's say so themselves.
_FOLDER_OF_VISSL = "disk_folder"


def check_images(cfg, split: str) -> None:
    """Raises ConfigError unless every image folder of a split can be trained on."""
    section = cfg.DATA[split]
    for index, source in enumerate(section.DATA_SOURCES):
        own = DATASET_SOURCE_MAP.get(source)
        if not getattr(own, "reads_folder", source == _FOLDER_OF_VISSL):
            continue
        key = f"DATA.{split}.DATA_PATHS"
        folder = data_path(cfg, split, "DATA_PATHS", index)
        if folder is None:
            raise ConfigError(
                key,
                "[]",
                f"nothing says where the images are; set config.{key}=[FOLDER], or add "
                f'"{section.DATASET_NAMES[index]}" to VISSL\'s dataset_catalog.json',
            )
        _check_folder(cfg, split, folder, source)


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
    checked, unreadable = unreadable_images(
        images, cfg.BARLOW.CHECK_IMAGES, locate=lambda name: os.path.join(folder, name)
    )
    if unreadable:
        raise ConfigError(
            key,
            f"[{folder}]",
            f"{len(unreadable)} of the {checked} images checked cannot be read "
            f"({listed(unreadable)}); remove or replace them, or "
            "start all the same with config.BARLOW.CHECK_IMAGES=0: each is then replaced by its "
            "neighbour, and counted",
        )


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
            f"({listed([locate(image) for image in unreadable])}); make the list anew, or start all "
            "the same with config.BARLOW.CHECK_IMAGES=0",
        )
