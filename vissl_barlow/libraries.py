"""The libraries in use: their versions, and the commits of those whose version tells too little."""

import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch

LIBRARIES = (
    *("vissl", "classy-vision", "torch", "torchvision", "numpy", "hydra-core", "fvcore"),
    *("pillow", "detectron2", "pycocotools"),
)
# One module, `cv2`, under the names of four distributions.
OPENCV = (
    *("opencv-python", "opencv-python-headless"),
    *("opencv-contrib-python", "opencv-contrib-python-headless"),
)
# Installed from sources more often than from a release: Detectron2 has called itself 0.6, VISSL
# 0.1.6, since 2021.
BUILT_FROM_SOURCES = ("vissl", "detectron2")


def library_versions() -> dict[str, str | None]:
    """Name to version of what a run's numbers depend on; imports nothing.

    None stands for a library that is not installed (it may be on the path, as a source checkout:
    see `library_sources`) and, of `cuda` and `cudnn`, for a PyTorch built for the CPU.
    """
    cudnn = torch.backends.cudnn.version()  # 90100 for 9.1.0
    return {
        **{library: _version(library) for library in LIBRARIES},
        "opencv": next((f"{v} ({name})" for name in OPENCV if (v := _version(name))), None),
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
    }


def library_sources() -> dict[str, dict[str, str | None]]:
    """What tells the source of each of `BUILT_FROM_SOURCES` that can be imported.

    `commit`: its git commit, ending in "-dirty" where its files differ from it; None where nothing
    tells. `sha256`: of its Python files, the same for the same files wherever they lie.
    """
    folders = {library: _package_folder(library) for library in BUILT_FROM_SOURCES}
    return {
        library: {
            "commit": _commit(library, folder),
            "sha256": _joint_sha256(_python_files(folder)),
        }
        for library, folder in folders.items()
        if folder is not None
    }


def checkout_commit(folder: Path) -> str | None:
    """The commit of the checkout whose root is `folder`, "-dirty" where tracked files differ; None
    where `folder` is no such root, as of a package in an environment inside another repository."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]  # no tags: the hash alone is asked for
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None  # no git on this machine
    return done.stdout.strip() or None


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _commit(library: str, folder: Path) -> str | None:
    """Of the checkout that is imported, or of the one that pip installed from, if that is known."""
    if commit := checkout_commit(folder.parent):
        return commit
    try:
        text = importlib.metadata.distribution(library).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    origin = json.loads(text) if text else {}  # an index records no origin
    if "vcs_info" in origin:
        return origin["vcs_info"].get("commit_id")
    url = urlparse(origin.get("url", ""))
    checkout = Path(unquote(url.path))
    if url.scheme != "file" or not (checkout / library).is_dir():
        return None
    # The checkout may have moved on since.
    unchanged = _python_files(checkout / library).items() <= _python_files(folder).items()
    return checkout_commit(checkout) if unchanged else None


def _python_files(package: Path) -> dict[str, str]:
    """Path below `package` to SHA-256."""
    return {
        path.relative_to(package).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in package.rglob("*.py")
        if path.is_file()
    }


def _joint_sha256(files: dict[str, str]) -> str:
    lines = (f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
