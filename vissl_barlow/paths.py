"""Where the YAML files are, beside the package or inside it in a wheel; and what lies where."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def config_folder(name: str) -> Path:
    """Folder of the shipped configs: `name` is "configs" or "benchmark_configs".

    Raises:
        FileNotFoundError: neither the package nor the checkout around it holds the folder.
    """
    # The package first: beside an installed package lies site-packages, whose `configs` is VISSL's.
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"vissl_barlow's {name} are neither in {PACKAGE} nor beside it: reinstall the package"
    )


def is_within(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether `path`, there or not, is `folder` or in it, links followed; never of the root folder."""
    inside, outside = (Path(os.path.realpath(os.path.expanduser(each))) for each in (path, folder))
    return inside.is_relative_to(outside) and outside.parent != outside
