"""What provenance says of the libraries: versions, commits, and a hash where no commit is known."""

import json
import subprocess
import sys

import pytest
import torch

from vissl_barlow import libraries
from vissl_barlow.provenance import provenance

NAME = "pretend_library"
GIT = ("git", "-c", "user.name=nobody", "-c", "user.email=nobody@example.org")


def git(folder, *arguments: str) -> str:
    done = subprocess.run(
        [*GIT, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def package(folder, text="answer = 42\n"):
    (folder / NAME / "layers").mkdir(parents=True)
    (folder / NAME / "__init__.py").write_text(text)
    (folder / NAME / "layers" / "wrappers.py").write_text("")
    return folder


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A library's checkout with one commit and a tag, which nothing has on the path yet."""
    monkeypatch.setattr(libraries, "BUILT_FROM_SOURCES", (NAME,))
    folder = package(tmp_path / "checkout of it")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "release")
    git(folder, "tag", "-a", "v0.6", "-m", "0.6")
    return folder


def installed(folder, direct_url: dict | None):
    """What pip leaves: the package, and the metadata of its distribution."""
    site = package(folder)
    metadata = site / f"{NAME}-0.6.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.6\n")
    if direct_url is not None:
        (metadata / "direct_url.json").write_text(json.dumps(direct_url))
    return site


def source(monkeypatch, folder) -> dict:
    monkeypatch.syspath_prepend(folder)
    return libraries.library_sources()[NAME]


def test_a_checkout_on_the_path_is_told_by_its_commit(checkout, monkeypatch):
    assert source(monkeypatch, checkout)["commit"] == git(checkout, "rev-parse", "HEAD")
    assert NAME not in sys.modules
    clean = libraries.library_sources()[NAME]
    (checkout / NAME / "__init__.py").write_text("answer = 43\n")
    changed = libraries.library_sources()[NAME]
    assert changed["commit"] == f"{clean['commit']}-dirty"
    assert changed["sha256"] != clean["sha256"]


def test_what_pip_built_from_a_repository_is_told_by_the_commit_it_noted(
    checkout, monkeypatch, tmp_path
):
    url = {"url": "https://example.org/it", "vcs_info": {"vcs": "git", "commit_id": "0123abcd"}}
    assert source(monkeypatch, installed(tmp_path / "site", url))["commit"] == "0123abcd"


def test_what_pip_copied_from_a_checkout_is_told_by_it_while_the_files_are_the_same(
    checkout, monkeypatch, tmp_path
):
    site = installed(tmp_path / "site", {"url": checkout.as_uri(), "dir_info": {}})
    told = source(monkeypatch, site)
    assert told["commit"] == git(checkout, "rev-parse", "HEAD")
    (checkout / NAME / "__init__.py").write_text("answer = 43\n")
    git(checkout, "commit", "--quiet", "--all", "--message", "moved on")
    assert libraries.library_sources()[NAME] == {"commit": None, "sha256": told["sha256"]}


def test_an_installed_release_is_told_by_its_files_alone(checkout, monkeypatch, tmp_path):
    # The environment lies inside another project's repository, whose commit says nothing.
    site = installed(checkout / "venv", None)
    inside = source(monkeypatch, site)
    assert inside["commit"] is None
    elsewhere = source(monkeypatch, installed(tmp_path / "other", None))
    assert elsewhere == inside


def test_what_is_not_there_is_not_told(monkeypatch):
    monkeypatch.setattr(libraries, "BUILT_FROM_SOURCES", ("no_such_library",))
    assert libraries.library_sources() == {}


def test_provenance_names_what_moves_a_detection_ap():
    entry = provenance(0, ["python"], None, 1, {})
    told = entry["versions"]
    assert {"detectron2", "pycocotools", "pillow", "opencv", "cuda", "cudnn"} <= told.keys()
    assert told["cuda"] == torch.version.cuda
    assert told["pillow"] and torch.__version__.startswith(told["torch"].partition("+")[0])
    assert json.loads(json.dumps(entry))["sources"] == libraries.library_sources()


def test_opencv_goes_by_four_names(monkeypatch):
    present = {"opencv-contrib-python": "4.12.0"}
    monkeypatch.setattr(libraries, "_version", present.get)
    assert libraries.library_versions()["opencv"] == "4.12.0 (opencv-contrib-python)"
