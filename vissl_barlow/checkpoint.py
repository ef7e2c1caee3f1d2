"""Checkpoints of a ResNet trunk: reading untrusted files, translating names, writing atomically.

One trunk, three spellings (s: stage 1..4, b: block, i: convolution of the block):

    torchvision, authors' file  bn1.*             layer{s}.{b}.bn{i}.*             downsample.0, .1
    VISSL                       the same names behind `_feature_blocks.`
    Detectron2                  stem.conv1.norm.* res{s+1}.{b}.conv{i}.norm.*      shortcut, .norm

Everything is read into torchvision's names and written from them, so each pair of formats costs two
rules. Tensors are never touched: dtypes, strides and `num_batches_tracked` survive every trip.

Command line: `python -m vissl_barlow.checkpoint --to {torchvision,vissl,detectron2} IN OUT`.
"""

import argparse
import errno
import os
import pickle
import re
import secrets
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vissl_barlow.resnet import ARCHITECTURES, build_trunk

_VISSL_PREFIX = "_feature_blocks."
# Left to right towards Detectron2, right to left back; a name that contains another comes first.
_DETECTRON2_PARTS = (
    *((f"layer{stage}.", f"res{stage + 1}.") for stage in (1, 2, 3, 4)),
    ("downsample.1.", "shortcut.norm."),
    ("downsample.0.", "shortcut."),
    *((f"bn{i}.", f"conv{i}.norm.") for i in (1, 2, 3)),
)
# Where training codes put the model's state dict: VISSL, VISSL's converted zoo, Lightning and MoCo,
# the Barlow Twins authors and Detectron2.
_VISSL_PATH = ("classy_state_dict", "base_model", "model", "trunk")
_CONTAINERS = (_VISSL_PATH, ("model_state_dict",), ("state_dict",), ("model",))
_LISTS = ("shard_list", "slice_list")  # VISSL's checkpoints in several files
_FIRST_BLOCK = re.compile(r"((?:.*\.)?)(layer1|res2)\.0\.conv1\.weight")
_CLASSIFIERS = {"layer1": "fc.", "res2": "linear."}
_TEMPORARY_PREFIX = ".checkpoint-"
_NAMES_SHOWN = 4


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the message names it and the remedy."""


class TrunkDepth(NamedTuple):
    """`depth`: 18, 34, 50, 101 or 152; `small_stem`: 3 x 3 first convolution (32-pixel images);
    `width_multiplier`: on the channels of every layer, as VISSL's `WIDTH_MULTIPLIER`."""

    depth: int
    small_stem: bool
    width_multiplier: float = 1


class Trunk(NamedTuple):
    """What `read_trunk` found in a file.

    `state_dict` has torchvision's names, without `fc`; `source` says in words which format the file
    has; `left_out` counts the tensors beside the trunk in its state dict (classifier, projector).
    """

    state_dict: dict[str, Tensor]
    source: str
    layout: TrunkDepth
    left_out: int


def load_trunk(path: str | os.PathLike) -> dict[str, Tensor]:
    """State dict of the ResNet trunk in any supported file, in torchvision's names, without `fc`.

    Reads the checkpoints of this plugin and of VISSL (training checkpoints, feature extractors,
    model zoo, its converted files), the Barlow Twins authors' `resnet50.pth` and `checkpoint.pth`,
    torchvision's weights (bare, under `state_dict` or `model`, behind any one prefix) and
    Detectron2's backbone as `to_detectron2` writes it. Tensors are on the CPU.

    Raises:
        CheckpointError: damaged, holds code, or holds no ResNet-18/34/50/101/152.
        OSError: the file is missing or cannot be opened.
    """
    return read_trunk(path).state_dict


def read_trunk(path: str | os.PathLike) -> Trunk:
    """`load_trunk` with the account of what was found; same arguments and errors."""
    return _extract_trunk(read_checkpoint(path), path)


def as_vissl_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Any supported file as VISSL's `config.MODEL.WEIGHTS_INIT.PARAMS_FILE` expects it.

    The result suits `STATE_DICT_KEY_NAME: classy_state_dict` with empty `APPEND_PREFIX` and
    `REMOVE_PREFIX`. A VISSL checkpoint of whatever architecture keeps all it holds (heads,
    optimizer, lists of shards); only a trunk saved from a feature extractor loses the prefix
    `base_model.`, which VISSL adds itself and would otherwise add twice.

    Raises: as `load_trunk`.
    """
    checkpoint = read_checkpoint(path)
    if _lists_files(checkpoint):
        return checkpoint
    if not isinstance(checkpoint, Mapping) or "classy_state_dict" not in checkpoint:
        return to_vissl(_extract_trunk(checkpoint, path).state_dict)
    trunk = _descend(checkpoint, _VISSL_PATH, path)
    _descend(checkpoint, _VISSL_PATH[:-1], path)["trunk"] = {
        str(name).removeprefix("base_model."): value for name, value in trunk.items()
    }
    return checkpoint


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

    The bytes go to a temporary file in the same folder, to the disk, and only then to the name: a
    kill, a crash or a full disk at any moment leaves no partial file under `path`. A symbolic link
    at `path` is replaced, not followed. A kill leaves the temporary behind: see `remove_leftovers`.

    Raises:
        OSError: the folder is missing or not writable, the disk is full; names `path`.
        Exception: whatever `torch.save` raises for an `obj` it cannot save.
    """
    path = Path(path)
    # Nothing of the final name: VISSL resumes from any file with "model_final" in its name.
    temporary = path.parent / f"{_TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # torch turns a failed write into a RuntimeError that hides the system's reason.
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(reason, OSError):
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise


def remove_leftovers(folder: str | os.PathLike) -> int:
    """Removes what killed `save_atomically` calls left in `folder`; returns the number of files.

    To be called by the one process that writes there, before its first save.
    """
    leftovers = list(Path(folder).glob(f"{_TEMPORARY_PREFIX}*.tmp"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def to_vissl(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """A VISSL checkpoint that holds this trunk (torchvision's names) and no head."""
    trunk = {_VISSL_PREFIX + name: tensor for name, tensor in state_dict.items()}
    model = {"model": {"trunk": trunk, "heads": {}}, "meta": {"trunk": {}}}
    return {"type": "consolidated", "classy_state_dict": {"base_model": model}}


def to_detectron2(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """A checkpoint for Detectron2's `MODEL.WEIGHTS` from a trunk in torchvision's names.

    `matching_heuristics` lets Detectron2 match by suffix, so `res5` reaches the ROI head of a C4
    model and the backbone of any other. Detectron2's `FrozenBN` has no `num_batches_tracked`, lists
    them as unused and is right to.

    Raises:
        CheckpointError: a small stem, which Detectron2's ResNet cannot have: it would warn, leave
            the first convolution random, and train.
    """
    if trunk_depth(state_dict).small_stem:
        raise CheckpointError(
            "the trunk has the small stem (3 x 3) for 32-pixel images, and Detectron2's is 7 x 7: "
            "pretrain with the standard stem to transfer to detection"
        )
    model = {detectron2_name(name): tensor for name, tensor in state_dict.items()}
    return {"model": model, "__author__": "vissl_barlow", "matching_heuristics": True}


def detectron2_name(name: str) -> str:
    """Detectron2's name of a trunk tensor, from torchvision's: `layer1.0.bn1.bias` and so on."""
    if not name.startswith("layer"):
        name = f"stem.{name}"
    for part, detectron2_part in _DETECTRON2_PARTS:
        name = name.replace(part, detectron2_part)
    return name


def torchvision_name(name: str) -> str:
    """The inverse of `detectron2_name`."""
    name = name.removeprefix("stem.")
    for part, detectron2_part in _DETECTRON2_PARTS:
        name = name.replace(detectron2_part, part)
    return name


def trunk_depth(state_dict: Mapping[str, Tensor]) -> TrunkDepth:
    """Which torchvision ResNet a trunk's state dict is, from its names and shapes, without `fc`.

    Raises:
        CheckpointError: none fits; says what is missing, unexpected or of another shape against the
            nearest one.
    """

    def names_apart(depth: int) -> int:
        return len(_required(state_dict) ^ _required(_trunk_shapes(depth)))

    depth = min(ARCHITECTURES, key=names_apart)
    stem = state_dict["conv1.weight"].shape if "conv1.weight" in state_dict else ()
    layout = TrunkDepth(
        depth,
        small_stem=stem[2:] == (3, 3),
        width_multiplier=stem[0] / 64 if len(stem) and stem[0] else 1,
    )
    if misfit := _misfit(state_dict, _trunk_shapes(*layout)):
        raise CheckpointError(f"not a ResNet-18/34/50/101/152; against ResNet-{depth}: {misfit}")
    return layout


def check_fits(state_dict: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuses a state dict with which `model.load_state_dict` would leave anything out.

    `num_batches_tracked` may be missing, as in files of frozen or converted models.

    Raises:
        CheckpointError: says which names are missing, unexpected, or of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if misfit := _misfit(state_dict, shapes):
        raise CheckpointError(f"the checkpoint does not fit {type(model).__name__}: {misfit}")


def _extract_trunk(checkpoint: Any, path: str | os.PathLike) -> Trunk:
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(checkpoint).__name__}, expected a dict of tensors"
        )
    if _lists_files(checkpoint):
        raise CheckpointError(
            f"{path}: only lists the files of a sharded checkpoint; join them with VISSL's "
            "extra_scripts/convert_sharded_checkpoint.py"
        )
    keys = next((keys for keys in _CONTAINERS if keys[0] in checkpoint), ())
    weights = _descend(checkpoint, keys, path)
    tensors = {
        name: value.detach()
        for name, value in weights.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    found = [match.groups() for name in tensors if (match := _FIRST_BLOCK.fullmatch(name))]
    where = f"under its {'.'.join(keys)}" if keys else "at its top level"
    if not found:
        names = _listed(map(str, weights)) or "none"
        raise CheckpointError(f"{path}: holds no ResNet trunk {where}; names there: {names}")
    if len(found) > 1:
        prefixes = _listed(prefix for prefix, _ in found)
        raise CheckpointError(
            f"{path}: holds {len(found)} ResNet trunks {where}, with the prefixes {prefixes}; "
            "save the state dict of one of them"
        )
    ((prefix, stage),) = found
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.startswith(prefix + _CLASSIFIERS[stage])
    }
    if stage == "res2":
        source = "Detectron2"
        own = {torchvision_name(name): tensor for name, tensor in own.items()}
    elif prefix.endswith(_VISSL_PREFIX):
        source = "VISSL"
    elif prefix.endswith("module.backbone."):
        source = "the Barlow Twins authors' training checkpoint"
    else:
        source = "torchvision"
    try:
        layout = trunk_depth(own)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Trunk(own, source, layout, len(tensors) - len(own))


def _lists_files(checkpoint: Any) -> bool:
    return isinstance(checkpoint, Mapping) and checkpoint.get("type") in _LISTS


def _descend(checkpoint: Any, keys: Iterable[str], path: str | os.PathLike) -> Mapping:
    passed = []
    for key in keys:
        passed.append(key)
        checkpoint = checkpoint.get(key)
        if not isinstance(checkpoint, Mapping):
            raise CheckpointError(f"{path}: has no dict at {'.'.join(passed)}")
    return checkpoint


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


def _required(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.endswith(".num_batches_tracked")}


@cache
def _trunk_shapes(depth: int, small_stem: bool = False, width: float = 1) -> dict[str, tuple]:
    with torch.device("meta"):
        model = build_trunk(depth, small_stem=small_stem, width_multiplier=width)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _misfit(state_dict: Mapping[str, Tensor], shapes: Mapping[str, tuple]) -> str:
    absent = _required(shapes) - state_dict.keys()
    missing = [name for name in shapes if name in absent]
    unexpected = [name for name in state_dict if name not in shapes]
    reshaped = [
        f"{name} {tuple(tensor.shape)} instead of {shapes[name]}"
        for name, tensor in state_dict.items()
        if name in shapes and tuple(tensor.shape) != shapes[name]
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return "; ".join(f"{len(v)} {kind}: {_listed(v)}" for kind, v in kinds.items() if v)


def _listed(names: Iterable[str]) -> str:
    names = [name or "(none)" for name in names]
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have nothing to flush for a folder and say so.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


_WRITERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "torchvision": dict,
    "vissl": to_vissl,
    "detectron2": to_detectron2,
}


def _convert(source: Path, target: Path, to: str, force: bool) -> str:
    if target.exists() and not force:
        raise FileExistsError(errno.EEXIST, "exists; --force replaces it", str(target))
    if to == "detectron2" and target.suffix in (".pkl", ".pyth"):
        raise ValueError(
            f"{target}: Detectron2 reads {target.suffix} files in another way; name it .pth"
        )
    trunk = read_trunk(source)
    save_atomically(_WRITERS[to](trunk.state_dict), target)
    depth, small_stem, width = trunk.layout
    kind = f"ResNet-{depth}" + (f" x{width:g}" if width != 1 else "")
    kind += " with small stem" if small_stem else ""
    return (
        f"{source} ({trunk.source}: {kind}, {len(trunk.state_dict)} "
        f"tensors, {trunk.left_out} beside it left out) -> {target} ({to})"
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vissl_barlow.checkpoint",
        description="Translate the ResNet trunk of a checkpoint (VISSL, Barlow Twins authors, "
        "torchvision, Detectron2: recognised by itself) into another format.",
    )
    parser.add_argument("--to", required=True, choices=_WRITERS, help="format to write")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("target", metavar="OUT", type=Path)
    options = parser.parse_args(arguments)
    try:
        print(_convert(options.source, options.target, options.to, options.force))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
