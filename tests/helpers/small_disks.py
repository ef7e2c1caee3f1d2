"""Disks that are really full: a tmpfs of a few megabytes or files."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# Defines `fill(kind)`, "bytes" or "inodes", for the disk of this process's folder, and `free()`.
FILL = """
import glob, os
def fill(kind):
    try:
        if kind == "bytes":
            with open("ballast", "wb", buffering=0) as file:
                for size in (1 << 16, 1):
                    try:
                        while True:
                            file.write(bytes(size))
                    except OSError:
                        pass
        else:
            number = 0
            while True:
                open(f"ballast{number}", "x").close()
                number += 1
    except OSError:
        pass
def free():
    for path in glob.glob("ballast*"):
        os.remove(path)
"""


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int = 16, inodes: int = 100) -> Iterator[Path]:
    """`folder` on a disk of its own. It needs root: without, the test is skipped; root that may not
    mount fails, because nothing else would tell that these tests never run."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can be mounted by root alone")
    folder.mkdir(exist_ok=True)
    options = f"size={megabytes}m,nr_inodes={inodes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def full(folder: Path, kind: str) -> Iterator[None]:
    """The disk of `folder` has no room, "bytes" or "inodes", within the block."""
    tools: dict = {}
    exec(FILL, tools)
    with contextlib.chdir(folder):
        tools["fill"](kind)
    try:
        yield
    finally:
        with contextlib.chdir(folder):
            tools["free"]()
