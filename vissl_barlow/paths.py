"""Where the YAML files are: beside the package in a checkout, inside it in a wheel."""

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
