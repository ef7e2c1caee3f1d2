"""Files of `torch.save`: read without running the code they may hold, written whole or not at all."""

import os
import pickle
import re
import zipfile
from typing import Any

import torch

from vissl_barlow.atomic_files import atomic_file


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the message names it and the remedy."""


def read_checkpoint(path: str | os.PathLike) -> Any:
    """What `torch.save` wrote to `path`, on the CPU, provided that it is whole and holds no code.

    The checksums of the archive are verified first: `torch.load` alone takes flipped bits in a
    tensor for values. Files of torch before 1.6 carry none.

    Raises:
        CheckpointError: empty, truncated, damaged, not torch's format, or with objects that only
            code can rebuild (`weights_only=True` refuses them).
        OSError: the file is missing or cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            if file.read(4) == b"PK\x03\x04":
                with zipfile.ZipFile(file) as archive:
                    record = archive.testzip()
                if record is not None:
                    raise zipfile.BadZipFile(f"wrong checksum of the record {record}")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path}: {_why_unreadable(error)}") from error


def save_atomically(obj: Any, path: str | os.PathLike) -> None:
    """`torch.save(obj, path)`, after which `path` holds all of `obj` or is what it was before.

    Raises:
        OSError: the folder is missing or not writable, the disk is full; names `path`.
        Exception: whatever `torch.save` raises for an `obj` it cannot save.
    """
    with atomic_file(path) as file:
        try:
            torch.save(obj, file)
        except RuntimeError as error:
            # torch turns a failed write into a RuntimeError that hides the system's reason.
            reason = error.__context__
            if isinstance(reason, OSError):
                raise OSError(reason.errno, reason.strerror) from error
            raise


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    if global_ := re.search(r"GLOBAL (\S+)", text):
        return (
            f"refused: it holds {global_[1]}, and loading such objects can run code; ask its "
            "author for the state dict alone or, if you trust the file, save that from it yourself"
        )
    if "TorchScript" in text:
        return "refused: a TorchScript archive holds code; save its state_dict() instead"
    if isinstance(error, pickle.UnpicklingError):
        return "not written by torch.save (a bare pickle, such as a .pkl file, is not read)"
    reason = text.strip().partition("\n")[0].partition(". ")[0]
    return f"damaged, truncated or no checkpoint ({type(error).__name__}: {reason})"
