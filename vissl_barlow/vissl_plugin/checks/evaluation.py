"""Refuses an evaluation that cannot work, or would mislead, before it starts."""

import logging
import os
import random

import numpy as np
from classy_vision.optim.param_scheduler import build_param_scheduler
from torchvision.datasets.folder import IMG_EXTENSIONS
from vissl.data.dataset_catalog import VisslDatasetCatalog
from vissl.utils.checkpoint import get_resume_checkpoint, is_training_finished
from vissl.utils.io import is_url

from vissl_barlow.checkpoint import CheckpointError
from vissl_barlow.datasets.file_lists import load_list
from vissl_barlow.images import UnreadableImage, read_image
from vissl_barlow.resnet import representation_dim
from vissl_barlow.vissl_plugin.checks.common import listed, model_on_meta
from vissl_barlow.vissl_plugin.components.weights import model_weights
from vissl_barlow.vissl_plugin.errors import ConfigError

CLASSIFICATION_LOSS = "cross_entropy_multiple_output_single_target"


# What makes the lists of the data sets the benchmarks name.
_COMMANDS = {
    "google-imagenet1k-per01": "python -m vissl_barlow.datasets.imagenet_subsets",
    "google-imagenet1k-per10": "python -m vissl_barlow.datasets.imagenet_subsets",
    "places205_filelist": "python -m vissl_barlow.datasets.places205",
    "inaturalist2018_filelist": "python -m extra_scripts.datasets.create_inaturalist2018_data_files",
    "voc2007": "python -m extra_scripts.datasets.create_voc_data_files",
}


def check_evaluation(cfg, splits: list[str]) -> None:
    """Raises ConfigError for data, a classifier or weights that do not fit one another.

    `splits`: those of "TRAIN" and "TEST" that will be read.
    """
    classes = _classifier_outputs(cfg)
    folders = {}
    for split in splits:
        section = cfg.DATA[split]
        for index, source in enumerate(section.LABEL_SOURCES):
            if source == "disk_folder":
                key, folder = _path(cfg, split, "DATA_PATHS", index)
                folders[split] = _check_class_folders(key, folder)
                _check_class_count(cfg, classes, folder, len(folders[split]), exact=True)
            elif source == "disk_filelist":
                path, labels = _check_lists(cfg, split, index)
                if classes is not None:
                    found = _count_classes(cfg, split, path, labels)
                    _check_class_count(cfg, classes, path, found, exact=split == "TRAIN")
    if len(folders) == 2:
        _check_same_classes(cfg, folders["TRAIN"], folders["TEST"])
    if classes is not None:
        _check_classifier_inputs(cfg)
        _check_meters(cfg, classes)
        _check_schedules(cfg)
    _check_weights(cfg)


def _classifier_outputs(cfg) -> int | None:
    """The number of classes of a classifier trained on labels; None if nothing of the kind is."""
    settings = cfg.MODEL.FEATURE_EVAL_SETTINGS
    if cfg.LOSS.name != CLASSIFICATION_LOSS or settings.EXTRACT_TRUNK_FEATURES_ONLY:
        return None
    if not cfg.MODEL.HEAD.PARAMS:
        return None
    name, options = cfg.MODEL.HEAD.PARAMS[-1]
    return options["num_classes"] if name == "barlow_linear" else options["dims"][-1]


def _path(cfg, split: str, paths: str, index: int) -> tuple[str, str]:
    """The key and the path of a data set's images (`paths` "DATA_PATHS") or labels."""
    section = cfg.DATA[split]
    key, name = f"DATA.{split}.{paths}", section.DATASET_NAMES[index]
    if len(section[paths]) > index:
        return key, section[paths][index]
    if VisslDatasetCatalog.has_data(name):
        entry = VisslDatasetCatalog.get(name)["train" if split == "TRAIN" else "val"]
        return key, entry[0 if paths == "DATA_PATHS" else 1]
    raise ConfigError(
        key,
        "[]",
        f"nothing says where {name} is; set config.{key}=[PATH], or add it to VISSL's "
        f"dataset_catalog.json{_how_to_make(name)}",
    )


def _how_to_make(name: str) -> str:
    return f"; `{_COMMANDS[name]}` makes the lists" if name in _COMMANDS else ""


def _check_class_folders(key: str, folder: str) -> list[str]:
    """The classes of an image folder, in the order in which VISSL numbers them."""
    expected = "expected one sub-folder of images per class"
    if not os.path.isdir(folder):
        raise ConfigError(key, f"[{folder}]", f"there is no such folder; {expected}")
    entries = list(os.scandir(folder))
    classes = sorted(entry.name for entry in entries if entry.is_dir())
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
    empty = [name for name in classes if not _holds_an_image(os.path.join(folder, name))]
    if empty:
        raise ConfigError(
            key,
            f"[{folder}]",
            f"{expected}, found {len(empty)} without any ({listed(empty)}); remove or fill them",
        )
    return classes


def _holds_an_image(folder: str) -> bool:
    return any(
        name.lower().endswith(IMG_EXTENSIONS)
        for _, _, names in os.walk(folder, followlinks=True)
        for name in names
    )


def _check_same_classes(cfg, train: list[str], test: list[str]) -> None:
    if train == test:
        return
    missing, unexpected = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    differences = [
        f"{len(names)} {kind} ({listed(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    raise ConfigError(
        "DATA.TEST.DATA_PATHS",
        cfg.DATA.TEST.DATA_PATHS,
        f"its classes are not the training folder's: {', '.join(differences)}; VISSL numbers each "
        "folder's own sub-folders, so the labels would not agree",
    )


def _check_lists(cfg, split: str, index: int) -> tuple[str, np.ndarray]:
    """Path and content of the labels' list, after a look at both lists and some images."""
    name = cfg.DATA[split].DATASET_NAMES[index]
    loaded = {}
    for paths in ("DATA_PATHS", "LABEL_PATHS"):
        key, path = _path(cfg, split, paths, index)
        if not os.path.isfile(path):
            remedy = f"there is no such file{_how_to_make(name) or '; name a list (.npy)'}"
            raise ConfigError(key, f"[{path}]", remedy)
        try:
            loaded[paths] = key, path, load_list(path, mmap=True)
        except ValueError as error:
            raise ConfigError(key, f"[{path}]", str(error)) from None
    key, path, images = loaded["DATA_PATHS"]
    if images.ndim != 1 or images.dtype.kind != "U":
        raise ConfigError(
            key,
            f"[{path}]",
            "expected a list of the images' paths, found an array of "
            f"{images.dtype} of shape {images.shape}",
        )
    label_key, label_path, labels = loaded["LABEL_PATHS"]
    if len(labels) != len(images):
        raise ConfigError(
            label_key,
            f"[{label_path}]",
            f"{len(labels)} labels for the {len(images)} images of {path}; make both lists anew",
        )
    _check_listed_images(cfg, split, key, path, images)
    return label_path, labels


def _check_listed_images(cfg, split: str, key: str, path: str, images: np.ndarray) -> None:
    section = cfg.DATA[split]
    wanted = len(images) if cfg.BARLOW.CHECK_IMAGES < 0 else cfg.BARLOW.CHECK_IMAGES
    unreadable = []
    chosen = random.Random(0).sample(range(len(images)), min(wanted, len(images)))
    for index in chosen:
        image = str(images[index])
        prefix = section.REMOVE_IMG_PATH_PREFIX
        if prefix and image.startswith(prefix):
            image = section.NEW_IMG_PATH_PREFIX + image.removeprefix(prefix)
        try:
            read_image(image)
        except (UnreadableImage, OSError):
            unreadable.append(image)
    if unreadable:
        raise ConfigError(
            key,
            f"[{path}]",
            f"{len(unreadable)} of the {len(chosen)} images checked are missing or cannot be read "
            f"({listed(unreadable)}); make the list anew, or start all the same with "
            "config.BARLOW.CHECK_IMAGES=0",
        )


def _count_classes(cfg, split: str, path: str, labels: np.ndarray) -> int:
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
    # A label above the classifier's outputs and a class without images are both a mismatch.
    return int(distinct[-1]) + 1 if split == "TEST" else max(len(distinct), int(distinct[-1]) + 1)


def _check_class_count(cfg, classes: int | None, where: str, found: int, exact: bool) -> None:
    if classes is None or (found == classes if exact else found <= classes):
        return
    raise ConfigError(
        "MODEL.HEAD.PARAMS",
        cfg.MODEL.HEAD.PARAMS,
        f"the classifier has {classes} outputs and {where} has {found} classes; make the two equal",
    )


def _check_classifier_inputs(cfg) -> None:
    name, options = cfg.MODEL.HEAD.PARAMS[-1]
    if name != "barlow_linear" or cfg.MODEL.TRUNK.NAME != "barlow_resnet":
        return
    trunk = cfg.MODEL.TRUNK.RESNETS
    representation = representation_dim(trunk.DEPTH, trunk.WIDTH_MULTIPLIER)
    if options["in_dim"] != representation:
        raise ConfigError(
            "MODEL.HEAD.PARAMS",
            cfg.MODEL.HEAD.PARAMS,
            f"the trunk's representations have {representation} dimensions; set {name}'s in_dim to "
            f"{representation}",
        )


def _check_meters(cfg, classes: int) -> None:
    values = cfg.METERS.accuracy_list_meter.topk_values
    if max(values) > classes:
        raise ConfigError(
            "METERS.accuracy_list_meter.topk_values",
            values,
            f"top-{max(values)} of {classes} classes; set values up to {classes}",
        )


def _check_schedules(cfg) -> None:
    names = ["lr", *(["lr_head"] if cfg.OPTIMIZER.head_optimizer_params.use_different_lr else [])]
    for name in names:
        schedule = cfg.OPTIMIZER.param_schedulers[name]
        try:
            build_param_scheduler({**schedule, "num_epochs": cfg.OPTIMIZER.num_epochs})
        except (ValueError, AssertionError) as error:
            raise ConfigError(
                f"OPTIMIZER.param_schedulers.{name}",
                schedule.to_dict(),
                f"does not fit config.OPTIMIZER.num_epochs={cfg.OPTIMIZER.num_epochs} ({error})",
            ) from None


def _check_weights(cfg) -> None:
    key, path = "MODEL.WEIGHTS_INIT.PARAMS_FILE", cfg.MODEL.WEIGHTS_INIT.PARAMS_FILE
    folder = cfg.CHECKPOINT.DIR
    if is_url(path) or is_training_finished(cfg, folder) or get_resume_checkpoint(cfg, folder):
        return  # downloaded later, and checked when it is loaded; or not read at all
    if not path:
        if cfg.LOSS.name == CLASSIFICATION_LOSS or cfg.MODEL.FEATURE_EVAL_SETTINGS.EVAL_MODE_ON:
            logging.warning("config.%s is empty: the trunk evaluated is untrained", key)
        return
    try:
        model_weights(model_on_meta(cfg), path)
    except OSError as error:
        remedy = (
            f"cannot be read ({error.strerror}); name a pretrained checkpoint (docs/evaluation.md)"
        )
        raise ConfigError(key, path, remedy) from None
    except CheckpointError as error:
        raise ConfigError(key, path, str(error).removeprefix(f"{path}: ")) from None
