"""Refuses labelled data that do not fit one another or the classifier: class folders and lists."""

import os

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from vissl_barlow.images import UnreadableFolder, list_images
from vissl_barlow.messages import listed
from vissl_barlow.vissl_plugin.checks.common import data_path
from vissl_barlow.vissl_plugin.checks.images import check_listed_images, listed_images, read_list
from vissl_barlow.vissl_plugin.errors import ConfigError

# What makes the lists of the data sets the benchmarks name.
_COMMANDS = {
    "google-imagenet1k-per01": "python -m vissl_barlow.datasets.imagenet_subsets",
    "google-imagenet1k-per10": "python -m vissl_barlow.datasets.imagenet_subsets",
    "places205_filelist": "python -m vissl_barlow.datasets.places205",
    "inaturalist2018_filelist": "python -m extra_scripts.datasets.create_inaturalist2018_data_files",
    "voc2007": "python -m extra_scripts.datasets.create_voc_data_files",
}


def check_labels(cfg, splits: list[str], classes: int | None) -> None:
    """Raises ConfigError for labelled images that do not fit one another or the classifier.

    `splits`: those of "TRAIN" and "TEST" that will be read; `classes`: the outputs of the classifier
    that is trained on them, None if there is none.
    """
    named = {}
    for split in splits:
        section = cfg.DATA[split]
        for index, source in enumerate(section.LABEL_SOURCES):
            if source == "disk_folder":
                key, folder = _path(cfg, split, "DATA_PATHS", index)
                named[split] = key, _check_class_folders(key, folder)
                _check_class_count(cfg, classes, folder, len(named[split][1]), exact=True)
            elif source == "disk_filelist":
                path, labels = _check_lists(cfg, split, index)
                if labels.ndim == 1 and labels.dtype.kind == "U":
                    named[split] = f"DATA.{split}.LABEL_PATHS", np.unique(labels).tolist()
                if classes is not None:
                    found = _count_classes(split, path, labels)
                    _check_class_count(cfg, classes, path, found, exact=split == "TRAIN")
    if len(named) == 2:
        _check_same_classes(cfg, named["TRAIN"][1], *named["TEST"])


def _path(cfg, split: str, paths: str, index: int) -> tuple[str, str]:
    """The key and the path of a data set's images (`paths` "DATA_PATHS") or labels."""
    key, name = f"DATA.{split}.{paths}", cfg.DATA[split].DATASET_NAMES[index]
    path = data_path(cfg, split, paths, index)
    if path is None:
        raise ConfigError(
            key,
            "[]",
            f"nothing says where {name} is; set config.{key}=[PATH], or add it to VISSL's "
            f"dataset_catalog.json{_how_to_make(name)}",
        )
    return key, path


def _how_to_make(name: str) -> str:
    return f"; `{_COMMANDS[name]}` makes the lists" if name in _COMMANDS else ""


def _check_class_folders(key: str, folder: str) -> list[str]:
    """The classes of an image folder, in the order in which VISSL numbers them."""
    expected = "expected one sub-folder of images per class"
    if not os.path.isdir(folder):
        raise ConfigError(key, f"[{folder}]", f"there is no such folder; {expected}")
    entries = list(os.scandir(folder))
    classes = class_folders(folder)
    images = sum(entry.name.lower().endswith(IMG_EXTENSIONS) for entry in entries)
    if not classes:
        raise ConfigError(
            key, f"[{folder}]", f"{expected}, found {images} images and no sub-folder"
        )
    parts = [name for name in classes if name in ("train", "val", "test")]
    if parts:
        raise ConfigError(
            key,
            f"[{folder}]",
            f"{expected}, found {', '.join(parts)}; name one of these instead of the folder above",
        )
    try:
        empty = [name for name in classes if not list_images(os.path.join(folder, name))]
    except UnreadableFolder as error:
        remedy = f"{error}; its images would be missing: make it readable, or remove it"
        raise ConfigError(key, f"[{folder}]", remedy) from None
    if empty:
        raise ConfigError(
            key,
            f"[{folder}]",
            f"{expected}, found {len(empty)} without any ({listed(empty)}); remove or fill them",
        )
    return classes


def class_folders(folder: str) -> list[str]:
    """Names of the sub-folders, in order; none where there is no such folder."""
    if not os.path.isdir(folder):
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _check_same_classes(cfg, train: list[str], key: str, test: list[str]) -> None:
    """`train` and `test`: sorted names; `key`: of the paths that the latter are from."""
    if train == test:
        return
    missing, unexpected = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    differences = [
        f"{len(names)} {kind} ({listed(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    raise ConfigError(
        key,
        cfg.DATA.TEST[key.rpartition(".")[2]],
        f"its classes are not those of the training images: {', '.join(differences)}; VISSL numbers "
        "the names of each split by themselves, so the labels would not agree",
    )


def _check_lists(cfg, split: str, index: int) -> tuple[str, np.ndarray]:
    """Path and content of the labels' list, after a look at both lists and some images."""
    name = cfg.DATA[split].DATASET_NAMES[index]
    loaded = {}
    for paths in ("DATA_PATHS", "LABEL_PATHS"):
        key, path = _path(cfg, split, paths, index)
        loaded[paths] = key, path, read_list(key, path, _how_to_make(name))
    key, path, images = loaded["DATA_PATHS"]
    paths_of_images = listed_images(key, path, images)
    label_key, label_path, labels = loaded["LABEL_PATHS"]
    if len(labels) != len(images):
        raise ConfigError(
            label_key,
            f"[{label_path}]",
            f"{len(labels)} labels for the {len(images)} images of {path}; make both lists anew",
        )
    check_listed_images(cfg, split, path, paths_of_images)
    return label_path, labels


def _count_classes(split: str, path: str, labels: np.ndarray) -> int:
    """How many classes VISSL makes of a list of labels, which it takes for 0, 1, ..."""
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise ConfigError(
            f"DATA.{split}.LABEL_PATHS",
            f"[{path}]",
            "expected one whole number or name per image, found an array of "
            f"{labels.dtype} of shape {labels.shape}",
        )
    distinct = np.unique(labels)
    if labels.dtype.kind == "U":
        return len(distinct)
    if distinct[0] < 0:
        raise ConfigError(
            f"DATA.{split}.LABEL_PATHS", f"[{path}]", f"label {distinct[0]}; expected 0, 1, ..."
        )
    count = int(distinct[-1]) + 1
    if split == "TRAIN" and len(distinct) < count:
        absent = np.setdiff1d(np.arange(count), distinct)
        raise ConfigError(
            f"DATA.{split}.LABEL_PATHS",
            f"[{path}]",
            f"labels up to {distinct[-1]}, and no image of {listed(map(str, absent))}; number the "
            "classes 0, 1, ... without gaps",
        )
    return count


def _check_class_count(cfg, classes: int | None, where: str, found: int, exact: bool) -> None:
    if classes is None or (found == classes if exact else found <= classes):
        return
    raise ConfigError(
        "MODEL.HEAD.PARAMS",
        cfg.MODEL.HEAD.PARAMS,
        f"the classifier has {classes} outputs and {where} has {found} classes; make the two equal",
    )
