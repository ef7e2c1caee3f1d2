"""`config.MODEL.WEIGHTS_INIT.PARAMS_FILE` in any format `vissl_barlow.checkpoint` reads.

The plugin's tasks load weights so. VISSL itself needs to be told a file's prefixes
(`APPEND_PREFIX`, `REMOVE_PREFIX`, `STATE_DICT_KEY_NAME`), leaves whatever it does not find at its
random initialisation, and says so in one line among thousands. Here the keys are not needed, and a
file that does not fit the trunk is an error.
"""

import logging
from collections.abc import Mapping
from operator import ne
from typing import Any

from torch import Tensor, nn

from vissl_barlow.checkpoint import (
    CheckpointError,
    TrunkDepth,
    as_vissl_checkpoint,
    check_fits,
    trunk_depth,
)
from vissl_barlow.checkpoint.names import VISSL_PREFIX


def model_weights(
    model: nn.Module, path: str, prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the checkpoint at `path` holds for a VISSL model: its trunk's and its heads' tensors.

    `prefix` is config.BARLOW.WEIGHTS_TRUNK: which trunk, where the file holds several. The heads'
    tensors are empty unless all of them fit the model's: a projector is no classifier.

    Raises:
        CheckpointError: damaged, holds code, holds no trunk, or one that does not fit the model's;
            says which ResNet it is and the keys that it needs, or which names are missing,
            unexpected, or of another shape.
        OSError: the file is missing or cannot be opened.
    """
    checkpoint = as_vissl_checkpoint(path, prefix)
    saved = _saved_model(checkpoint, path)
    try:
        _check_layout(saved["trunk"], _backbone(model))
        check_fits(saved["trunk"], _backbone(model))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    heads = saved["heads"] if isinstance(saved.get("heads"), Mapping) else {}
    own = model.get_submodule("heads").state_dict()
    shapes = {name: tensor.shape for name, tensor in own.items()}
    if {name: tensor.shape for name, tensor in heads.items()} != shapes:
        heads = {}
    return dict(saved["trunk"]), dict(heads)


def _saved_model(checkpoint: Any, path: str) -> Mapping:
    if "classy_state_dict" not in checkpoint:
        raise CheckpointError(
            f"{path}: only lists the files of a sharded checkpoint; join them with VISSL's "
            "extra_scripts/convert_sharded_checkpoint.py"
        )
    return checkpoint["classy_state_dict"]["base_model"]["model"]


def _check_layout(trunk: Mapping[str, Tensor], backbone: nn.Module) -> None:
    """Raises CheckpointError if both are ResNets, but not the same one."""
    found, wanted = _layout(trunk), _layout(backbone.state_dict())
    if found is None or wanted is None or found == wanted:
        return
    values = {
        "DEPTH": str(found.depth),
        "SMALL_STEM": str(found.small_stem).lower(),
        "WIDTH_MULTIPLIER": f"{found.width_multiplier:g}",
    }
    settings = " ".join(
        f"config.MODEL.TRUNK.RESNETS.{key}={value}"
        for (key, value), differs in zip(values.items(), map(ne, found, wanted))
        if differs
    )
    raise CheckpointError(found.other_than(settings))


def _layout(trunk: Mapping[str, Tensor]) -> TrunkDepth | None:
    """Which ResNet has these tensors, in VISSL's names; None: another model."""
    try:
        return trunk_depth({name.removeprefix(VISSL_PREFIX): t for name, t in trunk.items()})
    except CheckpointError:
        return None


def _backbone(model: nn.Module) -> nn.Module:
    """The ResNet of a VISSL model; its evaluation wraps it in a feature extractor."""
    trunk = model.get_submodule("trunk")
    return getattr(trunk, "base_model", trunk)


def initialise_from(model: nn.Module, path: str, feature_eval_settings, prefix: str = "") -> None:
    """Loads the trunk of the checkpoint at `path`, and the heads where they are not to be trained.

    `prefix` is as in `model_weights`, `feature_eval_settings` config.MODEL.FEATURE_EVAL_SETTINGS: as
    in VISSL, an evaluation of the trunk trains heads of its own. Raises: as `model_weights`.
    """
    trunk, heads = model_weights(model, path, prefix)
    _backbone(model).load_state_dict(trunk, strict=False)  # num_batches_tracked may be missing
    settings = feature_eval_settings
    load_heads = heads and (not settings.EVAL_MODE_ON or settings.EVAL_TRUNK_AND_HEAD)
    if load_heads:
        model.get_submodule("heads").load_state_dict(heads)
    logging.info(
        "%s: all %d tensors of the trunk loaded; heads %s",
        path,
        len(trunk),
        "loaded" if load_heads else "left at their initialisation",
    )
