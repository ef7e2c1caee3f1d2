"""Draws small data sets in VOC's and COCO's layout: coloured rectangles on noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

SIZE = 128  # pixels
BOXES_PER_IMAGE = 5
Box = list[int]  # x0, y0, x1, y1 in pixels, the last two exclusive


def _draw(rng: np.random.Generator, categories: Sequence[int]) -> tuple[np.ndarray, list[Box]]:
    """An RGB image with one rectangle per category."""
    image = rng.integers(96, 160, (SIZE, SIZE, 3), dtype=np.uint8)
    boxes = []
    for column, category in enumerate(categories):
        # One column each, so that no rectangle hides another.
        left = column * SIZE // BOXES_PER_IMAGE
        x0, width = left + int(rng.integers(4)), int(rng.integers(16, 21))
        y0, height = int(rng.integers(4, 48)), int(rng.integers(24, 73))
        colour = np.random.default_rng(category).integers(0, 256, 3, dtype=np.uint8)
        image[y0 : y0 + height, x0 : x0 + width] = colour
        boxes.append([x0, y0, x0 + width, y0 + height])
    return image, boxes


def _categories(index: int, count: int) -> list[int]:
    """Successive images walk through all the categories."""
    return [(index * BOXES_PER_IMAGE + k) % count for k in range(BOXES_PER_IMAGE)]


def _annotation(name: str, classes: Sequence[str], boxes: list[Box]) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", SIZE), ("height", SIZE), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for class_name, (x0, y0, x1, y1) in zip(classes, boxes):
        item = ElementTree.SubElement(root, "object")
        for key, value in (("name", class_name), ("pose", "x"), ("truncated", 0), ("difficult", 0)):
            ElementTree.SubElement(item, key).text = str(value)
        box = ElementTree.SubElement(item, "bndbox")
        # VOC counts pixels from 1 and includes the last.
        for key, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
            ElementTree.SubElement(box, key).text = str(value)
    return root


def draw_voc(root: Path, class_names: Sequence[str], images_per_split: int = 8) -> None:
    """VOC2007 (trainval, test) and VOC2012 (trainval) under `root`."""
    rng = np.random.default_rng(0)
    for year, splits in (("2007", ("trainval", "test")), ("2012", ("trainval",))):
        folder = root / f"VOC{year}"
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        for split in splits:
            names = [f"{split}_{index:06d}" for index in range(images_per_split)]
            for index, name in enumerate(names):
                categories = _categories(index, len(class_names))
                image, boxes = _draw(rng, categories)
                Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
                tree = _annotation(name, [class_names[c] for c in categories], boxes)
                ElementTree.ElementTree(tree).write(folder / "Annotations" / f"{name}.xml")
            (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")


def draw_coco(root: Path, categories: Sequence[dict], images_per_split: int = 8) -> None:
    """coco/{train2017,val2017,annotations} under `root`; `categories` are COCO's own 80."""
    rng = np.random.default_rng(1)
    (root / "coco" / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        folder = root / "coco" / split
        folder.mkdir()
        images, annotations = [], []
        for index in range(images_per_split):
            drawn = _categories(index, len(categories))
            image, boxes = _draw(rng, drawn)
            file_name = f"{index + 1:012d}.jpg"
            Image.fromarray(image).save(folder / file_name, quality=95)
            images.append({"id": index + 1, "file_name": file_name, "height": SIZE, "width": SIZE})
            for category, (x0, y0, x1, y1) in zip(drawn, boxes):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": categories[category]["id"],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                        "iscrowd": 0,
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": list(categories)}
        path = root / "coco" / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content | {"info": {}}))
