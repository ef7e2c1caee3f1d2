"""scikit-learn's digits as files, laid out as the data sets of the benchmarks are."""

from pathlib import Path

import cv2
import numpy as np

from vissl_barlow.digits import digits

OVERLAY = "+config/benchmark/vissl_barlow/overlays=digits"
# Several of these hold for a digit at once: labels as VOC has them.
ATTRIBUTES = {"even": (0, 2, 4, 6, 8), "large": (5, 6, 7, 8, 9), "loop": (0, 6, 8, 9)}


class DigitsOnDisk:
    """Attributes: `imagenet`, a folder of train/<class>/ and val/<class>/; `voc`, VOC2007's layout;
    `lists`, VISSL's lists of the digits with their attributes; `tenth`, names of 10% of the images."""

    def __init__(self, root: Path) -> None:
        self.imagenet, self.voc = root / "imagenet", root / "VOC2007"
        self.lists, self.tenth = root / "lists", root / "tenth.txt"
        for folder in (self.lists, self.voc / "JPEGImages", self.voc / "ImageSets" / "Main"):
            folder.mkdir(parents=True)
        self._write("train", "train", "trainval")
        self._write("test", "val", "test")

    def _write(self, split: str, imagenet: str, voc: str) -> None:
        images, labels = digits(split)
        folder = self.imagenet / imagenet
        paths = []
        for number, (image, label) in enumerate(zip(images, labels)):
            path = folder / f"n{label:08d}" / f"n{label:08d}_{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
            paths.append(str(path))
        if split == "train":
            # Every tenth of each class, so that all classes occur.
            names = [
                Path(path).name for d in range(10) for path in np.array(paths)[labels == d][::10]
            ]
            self.tenth.write_text("\n".join(names) + "\n")
        attributes = np.stack([np.isin(labels, ones) for ones in ATTRIBUTES.values()], axis=1)
        np.save(self.lists / f"{split}_images.npy", np.array(paths))
        np.save(self.lists / f"{split}_labels.npy", attributes.astype(np.int32))
        for number, path in enumerate(paths):
            (self.voc / "JPEGImages" / f"{split}{number:06d}.jpg").symlink_to(path)
        for column, name in enumerate(ATTRIBUTES):
            lines = [
                f"{split}{number:06d} {1 if present else -1}"
                for number, present in enumerate(attributes[:, column])
            ]
            (self.voc / "ImageSets" / "Main" / f"{name}_{voc}.txt").write_text("\n".join(lines))

    def folders(self) -> tuple[str, str]:
        """Overrides that name the folders of classes."""
        return (
            f"config.DATA.TRAIN.DATA_PATHS=[{self.imagenet}/train]",
            f"config.DATA.TEST.DATA_PATHS=[{self.imagenet}/val]",
        )

    def attribute_lists(self) -> tuple[str, ...]:
        """Overrides that name the lists of images with their attributes."""
        return (
            *(
                f"config.DATA.{split.upper()}.{key}_PATHS=[{self.lists}/{split}_{kind}.npy]"
                for split in ("train", "test")
                for key, kind in (("DATA", "images"), ("LABEL", "labels"))
            ),
            f"config.SVM.class_names=[{','.join(ATTRIBUTES)}]",
        )
