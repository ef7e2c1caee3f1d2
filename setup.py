"""Packaging of vissl_barlow; see README.md for why VISSL itself is installed separately."""

import re
import shutil
import sys
from pathlib import Path

OLDEST_PYTHON = (3, 11)
# Before setuptools, which may want a newer Python too. The pip that comes with an older one meets
# constraints.txt before `python_requires`, and tells of versions that conflict alone.
if sys.version_info < OLDEST_PYTHON:
    sys.exit(
        "vissl_barlow needs Python {}.{} or newer, and this is {}.{}".format(
            *OLDEST_PYTHON, *sys.version_info[:2]
        )
    )

from setuptools import find_namespace_packages, find_packages, setup  # noqa: E402
from setuptools.command.build_py import build_py  # noqa: E402
from setuptools.command.editable_wheel import editable_wheel  # noqa: E402

ROOT = Path(__file__).resolve().parent
# The configs live at the top of the checkout, where VISSL users look for them; a wheel carries them
# inside the package, where no other distribution's `configs` can hide them.
CONFIG_FOLDERS = ("configs", "benchmark_configs")
EXPORT = ["onnx", "onnxruntime"]


class BuildWithConfigs(build_py):
    """Copies the YAML folders into the built package (a wheel has no checkout beside it)."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for name in CONFIG_FOLDERS:
                target = Path(self.build_lib) / "vissl_barlow" / name
                shutil.copytree(ROOT / name, target, dirs_exist_ok=True)


class EditableOnPath(editable_wheel):
    """`pip install -e .` puts the checkout on the path; setuptools' default import hook would hide
    our part of the namespace package `hydra_plugins` from hydra, because VISSL's wheel has one too."""

    def finalize_options(self):
        self.mode = self.mode or "compat"
        super().finalize_options()


def version() -> str:
    source = (ROOT / "vissl_barlow" / "version.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE).group(1)


setup(
    name="vissl_barlow",
    version=version(),
    description="Barlow Twins (Zbontar et al., 2021), faithful to the paper, as a plugin for VISSL",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">={}.{}".format(*OLDEST_PYTHON),
    packages=find_packages(include=["vissl_barlow", "vissl_barlow.*"])
    + find_namespace_packages(include=["hydra_plugins.*"]),
    package_data={"vissl_barlow": ["py.typed"], "vissl_barlow.reproduce": ["report.html"]},
    cmdclass={"build_py": BuildWithConfigs, "editable_wheel": EditableOnPath},
    # What the plugin and VISSL 0.1.6 import, at current versions; constraints.txt has the tested ones.
    install_requires=[
        "torch>=2.6",  # before, a TorchScript archive could run code when loaded (CVE-2025-32434)
        "torchvision>=0.21",
        "fvcore",
        "iopath",
        "hydra-core>=1.3,<1.4",
        "submitit",
        "scikit-learn",
        "scipy",
        "numpy>=2.0",
        "parameterized",
        "tabulate",
        "tensorboard",
        "matplotlib",
        "rich",
        "jinja2",
        "opencv-python-headless",
        "simplejpeg",
        "safetensors",
        "setuptools<82",  # VISSL imports pkg_resources, which setuptools 82 removed
    ],
    extras_require={
        # Not in install_requires: VISSL 0.1.6 pins numpy 1.19.5, hydra 1.0.7, scikit-learn 0.24.1 and
        # cython 0.29.22, which no current Python can build, and pip cannot override a pin. Install
        # both with `--no-deps`, VISSL first (`make install` does).
        "vissl": ["vissl==0.1.6", "classy-vision==0.7.0"],
        # Not on PyPI: https://detectron2.readthedocs.io/tutorials/install.html
        "detectron2": ["detectron2"],
        "wandb": ["wandb"],
        # For `python -m vissl_barlow.checkpoint --to onnx`.
        "export": EXPORT,
        "test": [
            *(
                "pytest",
                "pytest-xdist",
                "hypothesis",
                "playwright",
                "ruff",
                "mypy",
                "wheel",
                "timm",
            ),
            *EXPORT,
        ],
    },
)
