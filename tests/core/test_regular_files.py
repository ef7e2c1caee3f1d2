"""Lists and checkpoints that are no files, or have no end: each reader refuses them."""

import io
import os
import sys

import numpy as np
import pytest

from vissl_barlow.checkpoint import read_checkpoint
from vissl_barlow.datasets import imagenet_subsets, places205
from vissl_barlow.datasets.file_lists import load_list
from vissl_barlow.regular_files import read_regular

READERS = {
    "list of arrays": load_list,
    "mapped list": lambda path: load_list(path, mmap=True),
    "names": lambda path: imagenet_subsets.read_subset(path, path.parent),
    "Places' list": lambda path: places205.read_list(path, path.parent, count=None),
    "checkpoint": read_checkpoint,
}
# `open` waits for somebody to write to the first; the second has no end.
STRANGE = {"pipe": os.mkfifo, "zeros": lambda path: os.symlink("/dev/zero", path)}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused(reader, kind, tmp_path):
    path = tmp_path / kind
    STRANGE[kind](path)
    with pytest.raises(OSError, match=f"not a regular file: '{path}'"):
        READERS[reader](path)


@pytest.mark.parametrize("reader", ["names", "Places' list"])
def test_text_without_an_end_is_refused(reader, tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="1099511627776 bytes, more than 1073741824"):
        READERS[reader](tmp_path / "sparse")


@pytest.mark.parametrize("mmap", [False, True])
def test_an_array_larger_than_its_file_is_refused(tmp_path, mmap):
    header = io.BytesIO()
    content = {"descr": "<f8", "fortran_order": False, "shape": (sys.maxsize // 16,)}
    np.lib.format.write_array_header_1_0(header, content)
    (tmp_path / "x.npy").write_bytes(header.getvalue())
    with pytest.raises(ValueError, match=r"x\.npy: not a plain array"):
        load_list(tmp_path / "x.npy", mmap=mmap)


def test_a_file_without_a_length_is_not_read(monkeypatch):
    monkeypatch.setattr(os, "open", None)  # /proc/kmsg waits for the kernel's next message
    assert read_regular("/proc/self/status", 10) == b""
    with pytest.raises(ValueError, match=r"/proc/self/status: .*the file is empty"):
        load_list("/proc/self/status")
