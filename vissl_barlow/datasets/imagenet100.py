"""ImageNet-100, the hundred classes of CMC and solo-learn, as a folder of links into ImageNet.

Command line: `python -m vissl_barlow.datasets.imagenet100 --imagenet IMAGENET --out FOLDER` makes
FOLDER/train/<class> and FOLDER/val/<class>; nothing is copied.
"""

import argparse
import os
import sys
from pathlib import Path

import yaml

from vissl_barlow.datasets.file_lists import DatasetError
from vissl_barlow.messages import listed
from vissl_barlow.paths import config_folder

SPLITS = ("train", "val")


def classes() -> list[str]:
    """WordNet ids of the hundred classes, sorted."""
    text = (config_folder("benchmark_configs") / "imagenet100.yaml").read_text()
    return sorted(yaml.safe_load(text)["classes"])


def link_classes(imagenet: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Links each class's folders of `imagenet`, with train/ and val/, into `out`; how many there are.

    Links that are there already stay.

    Raises:
        DatasetError: classes that `imagenet` does not have, or something else in a link's place.
        OSError: the folder cannot be written.
    """
    names, root = classes(), Path(imagenet).resolve()
    folders = [Path(split, name) for split in SPLITS for name in names]
    missing = [str(folder) for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise DatasetError(
            f"{imagenet}: {len(missing)} of {len(folders)} folders are not there ({listed(missing)}); "
            "expected ImageNet's train/<class>/ and val/<class>/"
        )
    expected = set(folders)
    strange = [
        str(Path(split, entry.name))
        for split in SPLITS
        if Path(out, split).is_dir()
        for entry in os.scandir(Path(out, split))
        if Path(split, entry.name) not in expected
        or Path(entry.path).resolve() != root / split / entry.name
    ]
    if strange:
        raise DatasetError(
            f"{out}: {listed(strange)} are no links to {root}; name another folder with --out"
        )
    for folder in folders:
        link = Path(out) / folder
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(root / folder, target_is_directory=True)
    return len(names)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vissl_barlow.datasets.imagenet100",
        description="Link the hundred classes of ImageNet-100 into a folder of their own.",
    )
    parser.add_argument("--imagenet", required=True, type=Path, help="folder with train/ and val/")
    parser.add_argument("--out", required=True, type=Path, help="folder for the links")
    options = parser.parse_args(arguments)
    try:
        count = link_classes(options.imagenet, options.out)
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} classes -> {options.out}/train and {options.out}/val")
    return 0


if __name__ == "__main__":
    sys.exit(main())
