"""Table 3's Places-205: its published lists to VISSL's file lists.

The data set comes as images below one folder and two lists, train_places205.csv and val_places205.csv,
of lines such as `a/abbey/gsun_0003586dc3eedd97457b2d729ebfe6b5.jpg 0`.

Command line: `python -m vissl_barlow.datasets.places205 --images IMAGES --lists CSVS --out LISTS`.
"""

import argparse
import os
import sys
from pathlib import Path

from vissl_barlow.datasets.file_lists import DatasetError, write_file_lists
from vissl_barlow.messages import listed
from vissl_barlow.regular_files import MAX_LIST_BYTES, read_regular

CLASSES = 205
# Images of each list (http://places.csail.mit.edu/downloadData.html).
COUNTS = {"train": 2_448_873, "val": 20_500}
CHECKED_IMAGES = 1000


def read_list(
    list_file: str | os.PathLike, images_folder: str | os.PathLike, *, count: int | None
) -> tuple[list[str], list[int]]:
    """Paths and labels of the images that one of the lists names.

    Args:
        list_file: text, one `<path below images_folder> <label>` a line.
        images_folder: what the list's paths are relative to; some images are looked for there.
        count: the number of images expected; None: any, of any number of classes.

    Raises:
        DatasetError: not that list, or images that are not there.
        OSError: the list is missing, no regular file, or above 1 GiB.
    """
    root = os.path.abspath(images_folder)
    paths, labels = [], []
    lines = read_regular(list_file, MAX_LIST_BYTES).decode(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdigit():
            raise DatasetError(f"{list_file}:{number}: {line!r}, expected <path> <label>")
        path = os.path.normpath(os.path.join(root, name))
        if not path.startswith(root + os.sep):
            raise DatasetError(f"{list_file}:{number}: {name} is not below {images_folder}")
        paths.append(path)
        labels.append(int(label))
    classes = sorted(set(labels))
    if count is not None and len(paths) != count:
        raise DatasetError(f"{list_file}: {len(paths):,} images, expected {count:,}")
    if count is not None and classes != list(range(CLASSES)):
        raise DatasetError(f"{list_file}: {len(classes)} classes, expected 0 to {CLASSES - 1}")
    checked = paths[:: max(1, len(paths) // CHECKED_IMAGES)]
    missing = [path for path in checked if not os.path.isfile(path)]
    if missing:
        raise DatasetError(
            f"{images_folder}: {len(missing)} of {len(checked)} images looked for are not there "
            f"({listed(missing)}); expected the folder that holds a/abbey/..."
        )
    return paths, labels


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vissl_barlow.datasets.places205",
        description="Turn the lists of Places-205 into VISSL's file lists.",
    )
    parser.add_argument("--images", required=True, type=Path, help="folder that holds a/abbey/...")
    parser.add_argument(
        "--lists", required=True, type=Path, help="folder of train_places205.csv and val_..."
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the lists")
    parser.add_argument("--allow-any-count", action="store_true", help="accept other lists")
    options = parser.parse_args(arguments)
    try:
        for split, count in COUNTS.items():
            images, labels = read_list(
                options.lists / f"{split}_places205.csv",
                options.images,
                count=None if options.allow_any_count else count,
            )
            write_file_lists(options.out, split, images, labels)
            print(f"{split}: {len(images)} images of {len(set(labels))} classes -> {options.out}")
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
