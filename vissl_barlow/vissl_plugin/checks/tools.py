"""Refuses labels and folders that VISSL's tools would fail at, or get wrong, after the features."""

import math

import numpy as np
from vissl.data import build_dataset

from vissl_barlow.messages import listed
from vissl_barlow.vissl_plugin.checks.common import Refusals
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.mends.svm_tools import class_names, vocs_classes
from vissl_barlow.vissl_plugin.mends.tools import running_tool

KNN, SVM, LOW_SHOT_SVM = "nearest_neighbor_test", "train_svm", "train_svm_low_shot"
SPLITS = ("TRAIN", "TEST")


def check_tool(cfg) -> None:
    """Raises ConfigError for what the tool that this process runs, if it runs one, cannot evaluate."""
    tool = running_tool(KNN, SVM, LOW_SHOT_SVM)
    if tool is None:
        return
    refusals = Refusals()
    for key, value, wanted in (
        ("TEST_ONLY", cfg.TEST_ONLY, False),
        ("TEST_MODEL", cfg.TEST_MODEL, True),
    ):
        with refusals:
            if value != wanted:
                remedy = f"{tool} wants the features of training and test images; set {wanted}"
                raise ConfigError(key, value, remedy)
    with refusals:
        if cfg.EXTRACT_FEATURES.OUTPUT_DIR not in ("", cfg.CHECKPOINT.DIR):
            raise ConfigError(
                "EXTRACT_FEATURES.OUTPUT_DIR",
                cfg.EXTRACT_FEATURES.OUTPUT_DIR,
                f"{tool} looks for the features in config.CHECKPOINT.DIR={cfg.CHECKPOINT.DIR}; leave "
                "this key empty",
            )
    if tool == KNN:
        with refusals:
            check_votes(cfg)
    refusals.raise_all()
    if tool == LOW_SHOT_SVM and "voc" not in cfg.SVM.low_shot.dataset_name:
        return  # Places-205's, of which VISSL draws lists of its own
    train, test = (labels_in_use(cfg, split) for split in SPLITS)
    if tool == KNN:
        check_neighbours(cfg, train, test)
    else:
        check_svms(cfg, train, test, low_shot=tool == LOW_SHOT_SVM)


def labels_in_use(cfg, split: str) -> np.ndarray:
    """The labels of a split's images, as many as are read: a row for each."""
    dataset = build_dataset(cfg, split)
    dataset.load_labels()
    labels = np.asarray(dataset.label_objs[0])
    if dataset.data_limit >= 0:
        dataset._init_image_and_label_subset()
        labels = labels[dataset.image_and_label_subset]
    return labels


def check_votes(cfg) -> None:
    """Raises ConfigError unless neighbours vote, the nearer with more weight."""
    options, refusals = cfg.NEAREST_NEIGHBOR, Refusals()
    for key, wanted in (
        ("TOPK", "as many nearest images vote; set 1 or more, such as 200"),
        (
            "SIGMA",
            "an image of similarity s votes with exp(s / SIGMA); set it above 0, such as 0.1",
        ),
    ):
        with refusals:
            if not 0 < options[key] < math.inf:
                raise ConfigError(f"NEAREST_NEIGHBOR.{key}", options[key], wanted)
    refusals.raise_all()


def check_neighbours(cfg, train: np.ndarray, test: np.ndarray) -> None:
    """Raises ConfigError unless each image has one label, and one that some training image has too.

    `train`, `test`: the labels of the images of the two splits.
    """
    refusals = Refusals()
    for split, labels in zip(SPLITS, (train, test)):
        with refusals:
            if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
                raise unfit_labels(
                    cfg,
                    split,
                    f"k-NN wants one class per image, 0, 1, ...; found {_described(labels)}; several "
                    "labels per image are for SVMs (`python -m tools.train_svm`, voc07_svm)",
                )
    refusals.raise_all()
    unknown = np.setdiff1d(test, train)
    if len(unknown):
        raise unfit_labels(
            cfg,
            "TEST",
            f"{len(unknown)} classes of the test images ({listed(map(str, unknown))}) have no training "
            "image, and no neighbour could be right; leave them out, or add training images",
        )


def check_svms(cfg, train: np.ndarray, test: np.ndarray, low_shot: bool = False) -> None:
    """Raises ConfigError unless each class has an SVM that can be trained, and an average precision.

    `train`, `test`: the labels of the images of the two splits, a column per class. `low_shot`: the
    SVMs are trained on samples (`config.SVM.low_shot`), and not cross-validated.
    """
    refusals = Refusals()
    for split, labels in zip(SPLITS, (train, test)):
        with refusals:
            if labels.ndim != 2 or not np.isin(labels, (-1, 0, 1)).all():
                raise unfit_labels(
                    cfg,
                    split,
                    "SVMs want a column per class and a row per image of 1 (present), 0 (absent) or -1 "
                    f"(left out of the test); found {_described(labels)}; of one class per image, "
                    "`numpy.eye(CLASSES, dtype=int)[labels]` makes that",
                )
    with refusals:
        if len(cfg.SVM.cls_list):
            raise ConfigError("SVM.cls_list", cfg.SVM.cls_list, "all classes are tested; set []")
    refusals.raise_all()
    columns = train.shape[1]
    if test.shape[1] != columns:
        raise unfit_labels(
            cfg, "TEST", f"{test.shape[1]} classes, and the training images have {columns}"
        )
    given = cfg.SVM.get("class_names") or []
    with refusals:
        if given and len(given) != columns and given != vocs_classes():
            raise ConfigError(
                "SVM.class_names",
                given,
                f"{len(given)} names for {columns} classes; give one for each, in the order of the "
                "labels' columns, or [] for numbers",
            )
    names = class_names(cfg.SVM, columns)
    with refusals:
        (_check_samples if low_shot else _check_folds)(cfg, train, names)
    with refusals:
        absent = [name for name, positive in zip(names, (test == 1).any(axis=0)) if not positive]
        if absent:
            raise unfit_labels(
                cfg,
                "TEST",
                f"no test image of {listed(absent)}: the average precision is undefined; leave the "
                "column out of both lists, or add images",
            )
    refusals.raise_all()


def _check_folds(cfg, train: np.ndarray, names: list[str]) -> None:
    folds = cfg.SVM.cross_val_folds
    positive = (train == 1).sum(axis=0)
    fewest = np.minimum(positive, len(train) - positive)
    few = [name for name, count in zip(names, fewest) if count < max(folds, 2)]
    if folds < 2 or few:
        remedy = f"; with {fewest.min()} folds it would do" if fewest.min() > 1 else ""
        raise ConfigError(
            "SVM.cross_val_folds",
            folds,
            "the cost is chosen by cross-validation in 2 or more folds, and each wants images with and "
            f"without the class; too few training images for {listed(few)}{remedy}",
        )


def _check_samples(cfg, train: np.ndarray, names: list[str]) -> None:
    # VISSL draws k images with the class and, of each other class, k without.
    others = len(names) - 1
    most = [
        min(int((column == 1).sum()), int((column == 0).sum()) // others if others else 0)
        for column in train.T
    ]
    wanted = max(cfg.SVM.low_shot.k_values)
    few = [name for name, count in zip(names, most) if count < wanted]
    if few:
        raise ConfigError(
            "SVM.low_shot.k_values",
            cfg.SVM.low_shot.k_values,
            f"k={wanted} wants {wanted} training images with the class and {others * wanted} without "
            f"it; too few for {listed(few)}"
            + (f"; set values up to {min(most)}" if min(most) else ""),
        )


def unfit_labels(cfg, split: str, remedy: str) -> ConfigError:
    """The error about the labels of a split: those of a list, or of an image folder."""
    section = cfg.DATA[split]
    key = "LABEL_PATHS" if "disk_filelist" in section.LABEL_SOURCES else "DATA_PATHS"
    return ConfigError(f"DATA.{split}.{key}", section[key], remedy)


def _described(labels: np.ndarray) -> str:
    values = f" from {labels.min()} to {labels.max()}" if labels.dtype.kind in "iuf" else ""
    return f"{labels.dtype} of shape {labels.shape}{values}"
