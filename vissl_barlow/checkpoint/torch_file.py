"""Files of tensors: read without running the code they may hold, written whole or not at all."""

import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

import torch

from vissl_barlow.atomic_files import atomic_file
from vissl_barlow.regular_files import open_regular


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the message names it and the remedy."""


def checkpoint_in(path: str | os.PathLike) -> str:
    """The newest checkpoint of the run whose folder `path` is; "" where it is none."""
    newest = os.path.join(path, "checkpoint.torch")
    return newest if os.path.isfile(newest) else ""


class _Bookkeeping:
    """Stands for an object that training codes save beside the weights; keeps nothing of it."""

    def __init__(self, *_args: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


# DINO, iBOT and timm save their arguments, timm and others numpy's scalars, Lightning its
# hyper-parameters and (before 1.5) classes of callbacks. Read as stand-ins: the modules that the
# names belong to are never imported, nor is anything in them called.
_STAND_INS: dict[str, type] = {
    "argparse.Namespace": _Bookkeeping,
    "numpy.dtype": _Bookkeeping,
    "numpy.core.multiarray.scalar": _Bookkeeping,
    "numpy._core.multiarray.scalar": _Bookkeeping,
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": _Bookkeeping,
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping": _Bookkeeping,
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor": _Bookkeeping,
    "pytorch_lightning.utilities.parsing.AttributeDict": dict,
    "lightning_fabric.utilities.data.AttributeDict": dict,
    "lightning.fabric.utilities.data.AttributeDict": dict,
}


def read_checkpoint(path: str | os.PathLike) -> Any:
    """What `torch.save` or safetensors wrote to `path`, on the CPU; runs no code that it may hold.

    Which of the two is told by the content. The checksums of torch's archive are verified first:
    `torch.load` alone takes flipped bits in a tensor for values. Files of torch before 1.6 and of
    safetensors carry none. Arguments and the like that training codes save beside the weights are
    replaced by empty objects.

    Raises:
        CheckpointError: an address, or empty, truncated, damaged, of another format (TorchScript and
            numpy pickles are named, with what to do instead), or with objects that only code can
            rebuild.
        OSError: the file is missing, no regular file, or cannot be opened.
    """
    if re.match(r"https?:/", os.fspath(path)) and not os.path.exists(path):
        raise CheckpointError(f"{path}: nothing is downloaded here: download it, and name the file")
    with open_regular(path) as file:
        try:
            start = file.read(9)
            if start[:4] == b"PK\x03\x04":
                _check_archive(file)
            file.seek(0)
            if str(path).endswith(".safetensors") or start[8:] == b"{":
                return _read_safetensors(file)
            with torch.serialization.safe_globals(
                [(cls, name) for name, cls in _STAND_INS.items()]
            ):
                return torch.load(file, map_location="cpu", weights_only=True)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except Exception as error:
            reason = _known_pickle(file, path) or _why_unreadable(error)
            raise CheckpointError(f"{path}: {reason}") from error


def _check_archive(file: IO[bytes]) -> None:
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            # Below the archive's one folder; torch takes the name as the directory has it, in either
            # case, where Python may take another one from an extra field.
            for name in (record.orig_filename, record.filename):
                if re.match(r"[^/]*/(code/|constants\.pkl$)", name, re.IGNORECASE):
                    raise CheckpointError(
                        "refused: a TorchScript archive holds code; save its state_dict() instead"
                    )
        # torch compresses nothing; what follows reads each record, however often it is listed.
        if sum(record.file_size for record in archive.infolist()) > os.fstat(file.fileno()).st_size:
            raise zipfile.BadZipFile("its records are larger than the file")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of the record {damaged}")


def _read_safetensors(file: IO[bytes]) -> dict[str, torch.Tensor]:
    """Header sizes and offsets are checked by safetensors, against the length of the file."""
    try:
        from safetensors.torch import load
    except ImportError:
        raise CheckpointError(
            "a safetensors file, and safetensors is not installed: pip install safetensors"
        ) from None
    return load(file.read())


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


# Ops of a pickle in which its first names are looked for.
_OPS_READ = 2000


def _strings(file: IO[bytes]) -> Iterator[str]:
    """The strings at the start of a pickle, which is disassembled, not loaded."""
    file.seek(0)
    try:
        for _, argument, _ in islice(pickletools.genops(file), _OPS_READ):
            if isinstance(argument, str):
                yield argument
    except Exception:  # no pickle, or the end of a truncated one; pickletools names no types
        return


def _known_pickle(file: IO[bytes], path: str | os.PathLike) -> str | None:
    """What to do with a pickle of numpy arrays that people bring; None for any other file.

    Caffe2's ResNets expect blue, green and red, and some stride in other layers: only the converter
    knows which model a file is.
    """
    names = set(_strings(file))
    if any(re.match(r"(conv1|res2_0_branch2a)_w$", name) for name in names):
        return (
            "a Caffe2 model in a pickle of numpy arrays, which is not read: if you trust the file, "
            "python -m extra_scripts.convert_caffe2_to_torchvision_resnet --bgr2rgb true "
            f"--c2_model {path} --output_model OUT.pth (VISSL's) converts it"
        )
    if names & {"stem.conv1.weight", "res2.0.conv1.weight"} and any(
        "multiarray" in name for name in names
    ):
        return (
            "a pickle of numpy arrays converted for Detectron2, which is not read: take the "
            "checkpoint that it was made from; python -m vissl_barlow.checkpoint --to detectron2 "
            "converts that"
        )
    return None


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    if global_ := re.search(r"GLOBAL (\S+)", text):
        return (
            f"refused: it holds {global_[1]}, and loading such objects can run code; ask its "
            "author for the state dict alone or, if you trust the file, save that from it yourself"
        )
    if isinstance(error, pickle.UnpicklingError):
        return "not written by torch.save (a bare pickle, such as a .pkl file, is not read)"
    reason = text.strip().partition("\n")[0].partition(". ")[0]
    return f"damaged, truncated or no checkpoint ({type(error).__name__}: {reason})"
