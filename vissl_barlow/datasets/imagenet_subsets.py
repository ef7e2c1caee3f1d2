"""Table 2's labelled subsets of ImageNet: SimCLR's list of names to VISSL's file lists.

SimCLR's lists, 1percent.txt and 10percent.txt, are in its repository (google-research/simclr,
imagenet_subsets); each line is a name such as `n01440764_10074.JPEG`.

Command line: `python -m vissl_barlow.datasets.imagenet_subsets --names 1percent.txt --imagenet
IMAGENET --out LISTS` writes LISTS/train_images.npy and LISTS/train_labels.npy.
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from vissl_barlow.datasets.file_lists import DatasetError, write_file_lists
from vissl_barlow.messages import listed
from vissl_barlow.regular_files import MAX_LIST_BYTES, read_regular

# Images in SimCLR's 1% and 10% of ImageNet's 1,281,167, and classes in each.
COUNTS = (12_811, 128_116)
CLASSES = 1000


def read_subset(
    names_file: str | os.PathLike[str],
    train_folder: str | os.PathLike[str],
    *,
    any_count: bool = False,
) -> tuple[list[str], list[int]]:
    """Paths and labels of the images that a list names.

    Labels are numbered by the sorted sub-folders of `train_folder`, as VISSL and torchvision number
    those of the validation images.

    Args:
        names_file: text, one `<class>_<number>.JPEG` a line.
        train_folder: ImageNet's training images, one sub-folder per class.
        any_count: accept lists of other lengths than SimCLR's, and other numbers of classes.

    Raises:
        DatasetError: not one of SimCLR's lists, a name twice, or images that are not there.
        OSError: the list or the folder is missing, or the list is no regular file, or above 1 GiB.
    """
    names = read_regular(names_file, MAX_LIST_BYTES).decode("ascii", errors="replace").split()
    if not any_count and len(names) not in COUNTS:
        raise DatasetError(
            f"{names_file}: {len(names)} names, expected {COUNTS[0]:,} (1%) or {COUNTS[1]:,} (10%); "
            "download the list again, or allow any count"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DatasetError(f"{names_file}: {len(repeated)} names twice ({listed(repeated)})")
    labels = {
        entry.name: label
        for label, entry in enumerate(
            sorted(
                (entry for entry in os.scandir(train_folder) if entry.is_dir()),
                key=lambda entry: entry.name,
            )
        )
    }
    if not any_count and len(labels) != CLASSES:
        raise DatasetError(
            f"{train_folder}: {len(labels)} sub-folders, expected one for each of the "
            f"{CLASSES} classes (n01440764, ...)"
        )
    classes = [name.rpartition("_")[0] for name in names]
    strange = [name for name, cls in zip(names, classes) if cls not in labels]
    if strange:
        raise DatasetError(
            f"{names_file}: {len(strange)} names of classes that {train_folder} does not have "
            f"({listed(strange)}), expected <class>_<number>.JPEG"
        )
    without = sorted(labels.keys() - set(classes))
    if without:
        raise DatasetError(f"{names_file}: no image of {len(without)} classes ({listed(without)})")
    present = {cls: set(os.listdir(os.path.join(train_folder, cls))) for cls in labels}
    missing = [name for name, cls in zip(names, classes) if name not in present[cls]]
    if missing:
        raise DatasetError(
            f"{train_folder}: {len(missing)} of the {len(names)} images are not there "
            f"({listed(missing)}); unpack ImageNet's training images again"
        )
    root = os.path.abspath(train_folder)
    paths = [os.path.join(root, cls, name) for name, cls in zip(names, classes)]
    return paths, [labels[cls] for cls in classes]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vissl_barlow.datasets.imagenet_subsets",
        description="Turn SimCLR's list of 1%% or 10%% of ImageNet's images into VISSL's file lists.",
    )
    parser.add_argument("--names", required=True, type=Path, help="1percent.txt or 10percent.txt")
    parser.add_argument(
        "--imagenet", required=True, type=Path, help="folder with train/<class>/<image>"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the lists")
    parser.add_argument(
        "--allow-any-count",
        action="store_true",
        help="accept other numbers of images and classes (other data sets)",
    )
    options = parser.parse_args(arguments)
    try:
        images, labels = read_subset(
            options.names, options.imagenet / "train", any_count=options.allow_any_count
        )
        write_file_lists(options.out, "train", images, labels)
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(images)} images of {len(set(labels))} classes -> {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
