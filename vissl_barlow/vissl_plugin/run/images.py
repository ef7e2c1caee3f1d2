"""How many images a run is of, in how many classes, and where they come from: said, and recorded."""

import os
from typing import Any

import numpy as np


def images_of(dataset) -> dict[str, Any]:
    """What VISSL's `dataset` of a split reads, as plain data for JSON.

    Returns:
        `images`, those in use (`DATA_LIMIT`); `classes`, of all its images, None without labels;
        `paths`, absolute where they are files or folders; `source`, the names of its data sources;
        `found`, what a source says of a folder that it has looked through, if one does.
    """
    limit = dataset.data_limit
    found = [len(source) for source in dataset.data_objs]
    said = [source.description for source in dataset.data_objs if hasattr(source, "description")]
    return {
        "images": sum(min(limit, each) if limit >= 0 else each for each in found),
        "classes": classes_of(dataset),
        "paths": [_absolute(path) for path in _single_paths(dataset.data_paths)],
        "source": ", ".join(dataset.data_sources),
        **({"found": "; ".join(said)} if said else {}),
    }


def classes_of(dataset) -> int | None:
    """How many classes the images of VISSL's `dataset` are labelled with; loads the labels.

    Of several labels per image: how many there are. None without labels, or with several lists.
    """
    if not dataset.label_sources:
        return None
    if not dataset.labels_init:
        dataset.load_labels()
    labels = dataset.label_objs[0]
    if not isinstance(labels, np.ndarray):
        return None
    return labels.shape[1] if labels.ndim == 2 and labels.shape[1] > 1 else len(np.unique(labels))


def line_of(split: str, images: dict[str, Any]) -> str:
    """`images_of` a split, as one line of a log; what was found in a folder, with its train split."""
    classes = "" if images["classes"] is None else f" in {images['classes']} classes"
    places = "".join(f" from {path}" for path in images["paths"])
    found = f": {images['found']}" if split == "train" and "found" in images else ""
    return f"{split}: {images['images']} images{classes}{places} ({images['source']}){found}"


def _single_paths(paths: list) -> list[str]:
    flat = [single for path in paths for single in (path if isinstance(path, list) else [path])]
    return [path for path in flat if path]


def _absolute(path: str) -> str:
    return os.path.abspath(path) if os.path.exists(path) else path
