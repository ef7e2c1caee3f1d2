"""Where Detectron2 looks for its datasets, and what their metric is; pure Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def expected_paths(metadata: Any) -> list[Path]:
    """Files and folders a dataset is read from.

    Args:
        metadata: Detectron2's, of a VOC-layout (`dirname`, `split`) or a COCO-layout dataset
            (`json_file`, `image_root`); any other has no paths known here.
    """
    if hasattr(metadata, "dirname") and hasattr(metadata, "split"):
        root = Path(metadata.dirname)
        split_file = root / "ImageSets" / "Main" / f"{metadata.split}.txt"
        return [root / "JPEGImages", root / "Annotations", split_file]
    if hasattr(metadata, "json_file") and hasattr(metadata, "image_root"):
        return [Path(metadata.image_root), Path(metadata.json_file)]
    return []


def check_dataset(name: str, metadata: Any) -> None:
    """Refuses a dataset whose files are not there.

    Raises:
        ValueError: naming the dataset, what is missing and how DETECTRON2_DATASETS stands.
    """
    missing = [path for path in expected_paths(metadata) if not path.exists()]
    if not missing:
        return
    root = os.environ.get("DETECTRON2_DATASETS")
    setting = (
        "DETECTRON2_DATASETS is unset, so Detectron2 looks in ./datasets: set it to the folder"
        " that holds VOC2007, VOC2012 and coco"
        if root is None
        else f"DETECTRON2_DATASETS is {root}"
    )
    paths = " and ".join(str(path.absolute()) for path in missing)
    raise ValueError(f"dataset {name} is missing: expected {paths} ({setting})")


def metric_note(metadata: Any) -> str:
    """One sentence that says what the AP of a dataset's evaluator is.

    Raises:
        ValueError: the dataset has neither evaluator.
    """
    kind = metadata.get("evaluator_type")
    if kind == "pascal_voc":
        rule = "11-point" if metadata.year == 2007 else "every-point"
        return (
            f"AP is the mean over IoU 0.50 to 0.95 of VOC{metadata.year}'s {rule} interpolated"
            " average precision, not pycocotools' AP"
        )
    if kind == "coco":
        return "AP is COCO's: the mean over IoU 0.50 to 0.95, 101-point interpolation"
    raise ValueError(
        f"dataset {metadata.name} has evaluator_type {kind!r}: the transfer tasks know"
        " 'pascal_voc' and 'coco'"
    )
