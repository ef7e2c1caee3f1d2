"""Of which versions Python and the libraries may be, and what says so."""

import re
import subprocess
import sys

import pytest
from documented import ROOT
from makefile import make

OLD = "import sys; sys.version_info = (3, 10, 13, 'final', 0); "


def pins(file: str) -> dict[str, set[str]]:
    """Name to version, one for each range of Pythons."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / file).read_text(), re.M):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("target", ["install", "test", "quickstart", "lint"])
def test_make_refuses_an_older_python_in_one_line(target, tmp_path):
    python = tmp_path / "python3.10"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{OLD}exec(sys.argv[1])" "$2"\n')
    python.chmod(0o755)
    done = make(target, PYTHON=str(python), VENV=str(tmp_path / "venv"))
    assert done.returncode != 0 and not (tmp_path / "venv").exists()
    refusal, makes = done.stderr.splitlines()
    assert makes.startswith("make: ***")
    assert refusal == (
        f"{python} is Python 3.10, and 3.11 or newer is needed: make {target} PYTHON=python3.11"
    )


def test_pip_is_told_of_an_older_python_before_it_looks_at_versions():
    code = f"{OLD}exec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "vissl_barlow needs Python 3.11 or newer, and this is 3.10\n"


def test_the_oldest_versions_are_those_that_the_package_asks_for():
    asked = dict(re.findall(r'"([\w-]+)>=([\d.]+)', (ROOT / "setup.py").read_text()))
    oldest = pins("constraints-oldest.txt")
    for name in ("torch", "torchvision", "numpy"):
        (version,) = oldest[name]
        assert version.startswith(f"{asked[name]}."), name


def test_the_readme_s_table_has_the_versions_of_the_constraints():
    table = (ROOT / "README.md").read_text().partition("## What was tested")[2]
    rows = [row for row in table.splitlines() if re.match(r"\| 3\.\d+ \|", row)]
    assert rows
    for file in ("constraints.txt", "constraints-oldest.txt"):
        versions = pins(file)
        for name in ("torch", "torchvision", "numpy"):
            assert all(any(f"| {v} |" in row for row in rows) for v in versions[name]), (file, name)
