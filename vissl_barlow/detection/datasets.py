"""Where Detectron2 looks for its datasets, what is in them, and what their metric is; pure Python."""

from __future__ import annotations

import ast
import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vissl_barlow.detection.config import shipped_configs


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


def count_images(name: str, metadata: Any) -> int:
    """How many images a dataset has, by its list, which is read once; 0 for an unknown layout.

    Raises:
        ValueError: the list is empty or cannot be read, or a file that it names is not there.
    """
    paths = expected_paths(metadata)
    if not paths:
        return 0
    *folders, listed = paths
    try:
        names = _listed(listed)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"dataset {name}: {listed} cannot be read ({error})") from None
    endings = ("",) if listed.suffix == ".json" else (".jpg", ".xml")
    absent = [file for each in zip(folders, endings) for file in _absent(*each, names)]
    if absent or not names:
        fault = (
            f"{len(absent)} files that it names are missing: {absent[0]}" if absent else "is empty"
        )
        raise ValueError(f"dataset {name}: {listed}: {fault}; unpack the dataset anew")
    return len(names)


@functools.lru_cache(maxsize=8)
def _listed(path: Path) -> Sequence[str]:
    """What a list of images names: of VOC without its ending, of COCO below the folder of images."""
    text = path.read_text()
    if path.suffix == ".json":
        return [image["file_name"] for image in json.loads(text)["images"]]
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def _absent(folder: Path, ending: str, names: Iterable[str]) -> list[Path]:
    there = set(os.listdir(folder))  # once for all, where a file server answers slowly
    files = (f"{name}{ending}" for name in names)
    return [folder / file for file in files if file not in there and not (folder / file).exists()]


def data_of(splits: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a run reads, as `provenance.write_provenance` has it.

    Args:
        splits: "train" and "test" to the metadata of its datasets by their names.
    """
    return {
        split: {
            "images": sum(count_images(name, metadata) for name, metadata in datasets.items()),
            "classes": None,
            "paths": [
                str(path.absolute()) for m in datasets.values() for path in expected_paths(m)
            ],
            "source": ", ".join(datasets),
        }
        for split, datasets in splits.items()
    }


def datasets_of(name: str) -> dict[str, tuple[str, ...]]:
    """Detectron2's names of the datasets of a shipped config, by "train" and "test"."""
    content: dict[str, Any] = {"_BASE_": f"{name}.yaml"}
    while "DATASETS" not in content:
        content = yaml.safe_load((shipped_configs()[name].parent / content["_BASE_"]).read_text())
    return {s: ast.literal_eval(content["DATASETS"][s.upper()]) for s in ("train", "test")}


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
