"""Where a result comes from: versions, revision, seed, command and machine, beside the result."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from vissl_barlow import __version__
from vissl_barlow.paths import PACKAGE

PROVENANCE_FILE = "barlow_run.json"
LIBRARIES = ("vissl", "classy-vision", "torch", "torchvision", "numpy", "hydra-core", "fvcore")


def provenance(seed: int) -> dict:
    """What made a run: plain data for JSON."""
    versions = {"python": platform.python_version(), "vissl_barlow": __version__}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None  # on the path without being installed: a source checkout
    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "seed": seed,
        "versions": versions,
        "revision": _revision(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "hardware": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores",
    }


def write_provenance(folder: Path, seed: int) -> None:
    """Appends this start to the run's provenance: a list, one entry per start or resume."""
    path = folder / PROVENANCE_FILE
    starts = json.loads(path.read_text()) if path.exists() else []
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps([*starts, provenance(seed)], indent=2) + "\n")
    temporary.replace(path)


def _revision() -> str | None:
    """The checkout's commit, marked if it differs from it; None for an installed wheel."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
