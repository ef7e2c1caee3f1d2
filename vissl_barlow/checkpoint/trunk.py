"""The ResNet trunk in a file of any supported format."""

import logging
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from vissl_barlow.checkpoint.architecture import (
    NAMES_SHOWN,
    TrunkDepth,
    check_values,
    trunk_depth,
)
from vissl_barlow.checkpoint.names import (
    VISSL_PATH,
    VISSL_PREFIX,
    from_sequential,
    to_vissl,
    torchvision_name,
)
from vissl_barlow.checkpoint.pretraining import PretrainingViews, pretraining_views
from vissl_barlow.checkpoint.torch_file import CheckpointError, read_checkpoint
from vissl_barlow.messages import listed

# Where training codes put state dicts: VISSL's converted zoo; Lightning, MoCo, SwAV and timm; the
# Barlow Twins authors and Detectron2; DINO and iBOT.
_STATE_DICTS = (
    "model_state_dict",
    "state_dict",
    "state_dict_ema",
    "model",
    "model_ema",
    "student",
    "teacher",
)
_SHARDED = ("shard_list", "slice_list")  # `type` of VISSL's checkpoints in several files
# The names of the first stage: torchvision's, Detectron2's, and the two of lightly's sequences.
_FIRST_BLOCK = re.compile(r"((?:.*\.)?)(layer1|res2|[24])\.0\.conv1\.weight")
# What follows a trunk behind the same prefix: torchvision's, SwAV's and lightly's own ResNet.
_HEADS = ("fc.", "projection_head.", "prototypes.", "linear.")
# Of two trunks in a file, the one that its authors evaluate, and the other.
_EVALUATED = (
    ("encoder_q", "encoder_k"),  # MoCo: main_lincls.py retains encoder_q
    ("base_encoder", "momentum_encoder"),  # MoCo v3: main_lincls.py retains base_encoder
    ("teacher", "student"),  # DINO and iBOT: --checkpoint_key of eval_linear.py is "teacher"
    ("backbone", "momentum_backbone"),  # solo-learn: main_linear.py
    ("encoder", "momentum_encoder"),  # solo-learn's older files: the same script
    ("backbone", "key_backbone"),  # lightly: benchmarks' forward(), for these five
    ("backbone", "backbone_momentum"),
    ("backbone", "teacher_backbone"),
    ("backbone", "student_backbone"),
    ("teacher_backbone", "student_backbone"),  # lightly's example of DINO
    ("online_encoder", "target_encoder"),  # BYOL evaluates the online network (its section 3.1)
    ("online_network", "target_network"),
    ("online_encoder.net", "net"),  # byol-pytorch: one network under two names
    ("state_dict_ema", "state_dict"),  # timm: load_state_dict(use_ema=True)
    ("model_ema", "model"),
    # Lightning's WeightAveraging saves the average in the place of the model.
    ("state_dict", "current_model_state"),
)


class Trunk(NamedTuple):
    """What `read_trunk` found in a file.

    `state_dict` has torchvision's names, without `fc`; `source` says in words which format the file
    has; `left_out` counts the tensors beside the trunk in its state dict (classifier, projector);
    `prefix` stood before its names; `others` are the prefixes of further trunks in the file;
    `step`: after how many steps a checkpoint of VISSL's was saved, None for other files; `views`: those
    that it was pretrained on, where the file says so.
    """

    state_dict: dict[str, Tensor]
    source: str
    layout: TrunkDepth
    left_out: int
    prefix: str = ""
    others: tuple[str, ...] = ()
    step: int | None = None
    views: PretrainingViews | None = None


def load_trunk(path: str | os.PathLike, prefix: str = "") -> dict[str, Tensor]:
    """State dict of the ResNet trunk in any supported file, in torchvision's names, without `fc`.

    Reads, told by their content, without running code:

    - checkpoints of this plugin and of VISSL (training checkpoints, feature extractors, model zoo,
      its converted files),
    - the Barlow Twins authors' `resnet50.pth` and `checkpoint.pth`,
    - torchvision's and timm's ResNets (bare, under `state_dict` or `model`, behind any one prefix),
      as `torch.save` or safetensors write them,
    - MoCo v1, v2 and v3, SwAV, DINO and iBOT, solo-learn, and lightly (also the numbered names of
      an `nn.Sequential`, and its own ResNet),
    - Detectron2's backbone as `to_detectron2` writes it.

    Tensors are on the CPU. Pickles of numpy arrays (Caffe2's models, others' conversions for
    Detectron2) and TorchScript archives are refused with what to do instead.

    Args:
        path: a local file.
        prefix: which trunk, where a file holds several: what stands before its names, or whole words
            of it that no other has, such as "encoder_k" or "student". By default the one that its
            authors evaluate: the query (MoCo v1, v2) or base encoder (v3), the teacher (DINO, iBOT),
            `backbone` (solo-learn, lightly), the online network (BYOL), the average (timm).

    Raises:
        CheckpointError: damaged, holds code, or holds no ResNet-18/34/50/101/152; several trunks of
            which none is known to be the one evaluated; none with this prefix; or tensors that are no
            weights, or not finite.
        OSError: the file is missing or cannot be opened.
    """
    return read_trunk(path, prefix).state_dict


def read_trunk(path: str | os.PathLike, prefix: str = "") -> Trunk:
    """`load_trunk` with the account of what was found; same arguments and errors."""
    return _extract_trunk(read_checkpoint(path), path, prefix)


def as_vissl_checkpoint(path: str | os.PathLike, prefix: str = "") -> dict[str, Any]:
    """Any supported file as VISSL's `config.MODEL.WEIGHTS_INIT.PARAMS_FILE` expects it.

    The result suits `STATE_DICT_KEY_NAME: classy_state_dict` with empty `APPEND_PREFIX` and
    `REMOVE_PREFIX`. A VISSL checkpoint of whatever architecture keeps all it holds (heads,
    optimizer, lists of shards); only a trunk saved from a feature extractor loses the prefix
    `base_model.`, which VISSL adds itself and would otherwise add twice. With a `prefix`, as in
    `load_trunk`, the result holds that trunk alone.

    Raises: as `load_trunk`.
    """
    checkpoint = read_checkpoint(path)
    if _is_sharded(checkpoint):
        return checkpoint
    if prefix or not isinstance(checkpoint, dict) or "classy_state_dict" not in checkpoint:
        return to_vissl(_extract_trunk(checkpoint, path, prefix).state_dict)
    trunk = _descend(checkpoint, VISSL_PATH, path)
    _descend(checkpoint, VISSL_PATH[:-1], path)["trunk"] = {
        str(name).removeprefix("base_model."): value for name, value in trunk.items()
    }
    return checkpoint


def _extract_trunk(checkpoint: Any, path: str | os.PathLike, wanted: str) -> Trunk:
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"{path}: holds a {type(checkpoint).__name__}, expected a dict of tensors"
        )
    if _is_sharded(checkpoint):
        raise CheckpointError(
            f"{path}: only lists the files of a sharded checkpoint; join them with VISSL's "
            "extra_scripts/convert_sharded_checkpoint.py"
        )
    weights, where = _state_dict(checkpoint, path)
    tensors = _tensors(weights)
    stages = _first_stages(tensors)
    if not stages:
        names = listed(map(str, weights), NAMES_SHOWN) or "none"
        raise CheckpointError(f"{path}: holds no ResNet trunk {where}; names there: {names}")
    try:
        prefix = _choose(list(stages), wanted)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: {error}; it holds {len(stages)} ResNet trunk{'s' * (len(stages) > 1)} {where}, "
            f"with the prefix{'es' * (len(stages) > 1)} {listed(stages, NAMES_SHOWN)}: choose one by "
            "config.BARLOW.WEIGHTS_TRUNK, or by --trunk of python -m vissl_barlow.checkpoint"
        ) from None
    stage = stages[prefix]
    behind = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    own = {
        _torchvision_name(name, stage): tensor
        for name, tensor in behind.items()
        if not name.startswith(_HEADS)
    }
    try:
        layout = trunk_depth(own)
        check_values(own)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    others = tuple(other for other in stages if other != prefix)
    if others:
        logging.getLogger(__name__).info(
            "%s: the trunk %s is read, and not %s", path, prefix, listed(others, NAMES_SHOWN)
        )
    step = checkpoint.get("iteration")
    return Trunk(
        own,
        _source(prefix, stage),
        layout,
        len(tensors) - len(own),
        prefix,
        others,
        step if isinstance(step, int) else None,
        pretraining_views(checkpoint),
    )


def _state_dict(checkpoint: dict, path: str | os.PathLike) -> tuple[dict[str, Any], str]:
    """The model's state dict in a file, and where it was, in words.

    Where there are several, all of them, their names behind their keys.
    """
    if VISSL_PATH[0] in checkpoint:
        return _descend(checkpoint, VISSL_PATH, path), f"under its {'.'.join(VISSL_PATH)}"
    keys = [key for key in _STATE_DICTS if key in checkpoint]
    # Under whatever other key: where it is an average, it may be what is evaluated.
    others = [(k, v) for k, v in checkpoint.items() if isinstance(k, str) and k not in keys]
    keys += [k for k, v in others if isinstance(v, dict) and _first_stages(_tensors(v))]
    dicts = [key for key in keys if isinstance(checkpoint[key], dict)]
    if len(dicts) > 1:
        weights = {f"{key}.{name}": v for key in dicts for name, v in checkpoint[key].items()}
        return weights, f"under its {', '.join(dicts)}"
    if keys:
        key = (dicts or keys)[0]
        return _descend(checkpoint, (key,), path), f"under its {key}"
    return checkpoint, "at its top level"


def _tensors(weights: dict[Any, Any]) -> dict[str, Tensor]:
    return {
        name: value.detach()
        for name, value in weights.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _first_stages(tensors: Iterable[str]) -> dict[str, str]:
    """What the first stage is called, by what stands before it: a trunk each."""
    stages: dict[str, str] = {}
    for name in tensors:
        match = _FIRST_BLOCK.fullmatch(name)
        # In a sequence that begins its stages at 2, 4 is the third.
        if match and stages.get(match[1]) != "2":
            stages[match[1]] = match[2]
    return stages


def _choose(prefixes: list[str], wanted: str) -> str:
    """The prefix that `wanted` names; by default the one trunk, or the one that is evaluated.

    Raises:
        CheckpointError: none or several are left.
    """
    if wanted:
        words = f".{wanted.strip('.')}."
        exact = [prefix for prefix in prefixes if f".{prefix}" == words]
        left = exact or [prefix for prefix in prefixes if words in f".{prefix}"]
        if len(left) != 1:
            raise CheckpointError(f"{'several trunks have' if left else 'no trunk has'} {wanted!r}")
        return left[0]
    # DistributedDataParallel may have wrapped one of a pair alone.
    plain = {prefix: prefix.replace("module.", "") for prefix in prefixes}
    left = [
        prefix
        for prefix in prefixes
        if not any(
            (better := f".{plain[prefix]}".replace(f".{other}.", f".{one}.")[1:]) != plain[prefix]
            and better in plain.values()
            for one, other in _EVALUATED
        )
    ]
    if len(left) != 1:
        raise CheckpointError("none of its trunks is known to be the one to evaluate")
    return left[0]


def _torchvision_name(name: str, stage: str) -> str:
    if stage == "res2":
        return torchvision_name(name)
    if stage.isdigit():
        name = from_sequential(name, int(stage))
    return name.replace(".shortcut.", ".downsample.")  # lightly's own ResNet


def _source(prefix: str, stage: str) -> str:
    """Which format has these names, in words."""
    if stage == "res2":
        return "Detectron2"
    if stage.isdigit():
        return "a sequence, as lightly's"
    if prefix.endswith(VISSL_PREFIX):
        return "VISSL"
    if prefix == "module.backbone.":
        return "the Barlow Twins authors' training checkpoint"
    return f"torchvision's names behind {prefix}" if prefix else "torchvision"


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
