"""The ResNet trunk in a file of any supported format."""

import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from vissl_barlow.checkpoint.architecture import NAMES_SHOWN, TrunkDepth, trunk_depth
from vissl_barlow.checkpoint.names import VISSL_PATH, VISSL_PREFIX, to_vissl, torchvision_name
from vissl_barlow.checkpoint.torch_file import CheckpointError, read_checkpoint
from vissl_barlow.messages import listed

# Where training codes put the model's state dict: VISSL, VISSL's converted zoo, Lightning and MoCo,
# the Barlow Twins authors and Detectron2.
_CONTAINERS = (VISSL_PATH, ("model_state_dict",), ("state_dict",), ("model",))
_SHARDED = ("shard_list", "slice_list")  # `type` of VISSL's checkpoints in several files
_FIRST_BLOCK = re.compile(r"((?:.*\.)?)(layer1|res2)\.0\.conv1\.weight")
_CLASSIFIERS = {"layer1": "fc.", "res2": "linear."}


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
    if _is_sharded(checkpoint):
        return checkpoint
    if not isinstance(checkpoint, dict) or "classy_state_dict" not in checkpoint:
        return to_vissl(_extract_trunk(checkpoint, path).state_dict)
    trunk = _descend(checkpoint, VISSL_PATH, path)
    _descend(checkpoint, VISSL_PATH[:-1], path)["trunk"] = {
        str(name).removeprefix("base_model."): value for name, value in trunk.items()
    }
    return checkpoint


def _extract_trunk(checkpoint: Any, path: str | os.PathLike) -> Trunk:
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"{path}: holds a {type(checkpoint).__name__}, expected a dict of tensors"
        )
    if _is_sharded(checkpoint):
        raise CheckpointError(
            f"{path}: only lists the files of a sharded checkpoint; join them with VISSL's "
            "extra_scripts/convert_sharded_checkpoint.py"
        )
    keys = next((keys for keys in _CONTAINERS if keys[0] in checkpoint), ())
    weights = _descend(checkpoint, keys, path)
    where = f"under its {'.'.join(keys)}" if keys else "at its top level"
    prefix, stage = _find_first_block(weights, f"{path}: holds", where)
    tensors = {
        name: value.detach()
        for name, value in weights.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.startswith(prefix + _CLASSIFIERS[stage])
    }
    if stage == "res2":
        source = "Detectron2"
        own = {torchvision_name(name): tensor for name, tensor in own.items()}
    elif prefix.endswith(VISSL_PREFIX):
        source = "VISSL"
    elif prefix.endswith("module.backbone."):
        source = "the Barlow Twins authors' training checkpoint"
    else:
        source = "torchvision"
    try:
        layout = trunk_depth(own)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Trunk(own, source, layout, left_out=len(tensors) - len(own))


def _find_first_block(weights: dict[str, Any], holds: str, where: str) -> tuple[str, str]:
    """What stands before the trunk's names, and what its first stage is called ("layer1", "res2").

    Raises:
        CheckpointError: no trunk or several; `holds` and `where` are words for the message.
    """
    found = [
        match.groups()
        for name, value in weights.items()
        if isinstance(value, Tensor) and (match := _FIRST_BLOCK.fullmatch(str(name)))
    ]
    if not found:
        names = listed(map(str, weights), NAMES_SHOWN) or "none"
        raise CheckpointError(f"{holds} no ResNet trunk {where}; names there: {names}")
    if len(found) > 1:
        prefixes = listed((prefix for prefix, _ in found), NAMES_SHOWN)
        raise CheckpointError(
            f"{holds} {len(found)} ResNet trunks {where}, with the prefixes {prefixes}; "
            "save the state dict of one of them"
        )
    ((prefix, stage),) = found
    return prefix, stage


def _is_sharded(checkpoint: Any) -> bool:
    return isinstance(checkpoint, dict) and checkpoint.get("type") in _SHARDED


def _descend(checkpoint: Any, keys: Iterable[str], path: str | os.PathLike) -> dict[str, Any]:
    """The dict that lies in `checkpoint` under one key after another."""
    passed = []
    for key in keys:
        passed.append(key)
        checkpoint = checkpoint.get(key)
        if not isinstance(checkpoint, dict):
            raise CheckpointError(f"{path}: has no dict at {'.'.join(passed)}")
    return checkpoint
