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
    check_values,
    trunk_depth,
)
from vissl_barlow.checkpoint.names import VISSL_PREFIX
from vissl_barlow.vissl_plugin.errors import ConfigError


def heads_must_be_loaded(cfg, extracts: bool = False) -> bool:
    """Whether the outputs of heads are evaluated that nothing in the run trains.

    Args:
        cfg: a config of VISSL's.
        extracts: features are extracted, whatever else the config says.
    """
    settings = cfg.MODEL.FEATURE_EVAL_SETTINGS
    if settings.EVAL_MODE_ON and settings.EXTRACT_TRUNK_FEATURES_ONLY:
        return False
    frozen = settings.EVAL_MODE_ON and (
        settings.FREEZE_TRUNK_AND_HEAD or settings.EVAL_TRUNK_AND_HEAD
    )
    return bool(cfg.TEST_ONLY or extracts or frozen)


def refuse_untrained_heads(cfg, extracts: bool = False) -> None:
    """Raises ConfigError where heads must be loaded and no checkpoint is named."""
    if heads_must_be_loaded(cfg, extracts):
        raise ConfigError(
            "MODEL.WEIGHTS_INIT.PARAMS_FILE",
            '""',
            "nothing here trains the heads whose outputs are evaluated, and they would be random; "
            "name the checkpoint that has them, or set "
            "config.MODEL.FEATURE_EVAL_SETTINGS.EXTRACT_TRUNK_FEATURES_ONLY=true to extract the "
            "trunk's features",
        )


def model_weights(
    model: nn.Module, path: str, prefix: str = "", *, with_heads: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the checkpoint at `path` holds for a VISSL model: its trunk's and its heads' tensors.

    `prefix` is config.BARLOW.WEIGHTS_TRUNK: which trunk, where the file holds several. The heads'
    tensors are empty unless all of them fit the model's: a projector is no classifier.
    `with_heads`: they must fit.

    Raises:
        CheckpointError: damaged, holds code, holds no trunk, or one that does not fit the model's;
            says which ResNet it is and the keys that it needs, or which names are missing,
            unexpected, or of another shape. With `with_heads`, the same of its heads.
        OSError: the file is missing or cannot be opened.
    """
    checkpoint = as_vissl_checkpoint(path, prefix)
    saved = _saved_model(checkpoint, path)
    try:
        _check_layout(saved["trunk"], _backbone(model))
        check_fits(saved["trunk"], _backbone(model))
        _check_values(saved["trunk"], _backbone(model))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    heads = dict(saved["heads"]) if isinstance(saved.get("heads"), Mapping) else {}
    try:
        check_fits(heads, model.get_submodule("heads"))
    except CheckpointError as error:
        if with_heads:
            misfit = str(error).removeprefix("the checkpoint does not fit ModuleList: ")
            raise CheckpointError(
                f"{path}: nothing here trains the heads whose outputs are evaluated, and its heads "
                f"do not fit them ({misfit}); name the checkpoint of the trained heads, with the "
                "config.MODEL.HEAD.PARAMS they were trained with"
            ) from None
        heads = {}
    try:
        _check_values(heads, model.get_submodule("heads"))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: its heads: {error}") from None
    return dict(saved["trunk"]), heads


def _check_values(weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """`check_values` of what `module` is to load."""
    of_module = module.state_dict().items()
    check_values(weights, {name for name, value in of_module if not value.is_floating_point()})


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


def initialise_from(model: nn.Module, cfg, extracts: bool = False) -> None:
    """Loads the trunk of the checkpoint that `cfg` names, and heads that are not to be trained.

    As in VISSL, an evaluation of the trunk that trains heads trains its own, and so does a run with
    `MODEL.WEIGHTS_INIT.SKIP_LAYERS=[heads]`. `extracts`: as in
    `heads_must_be_loaded`. Raises: as `model_weights`.
    """
    path = cfg.MODEL.WEIGHTS_INIT.PARAMS_FILE
    needed = heads_must_be_loaded(cfg, extracts)
    trunk, heads = model_weights(model, path, cfg.BARLOW.WEIGHTS_TRUNK, with_heads=needed)
    _backbone(model).load_state_dict(trunk, strict=False)  # num_batches_tracked may be missing
    trains_own = (
        cfg.MODEL.FEATURE_EVAL_SETTINGS.EVAL_MODE_ON
        or "heads" in cfg.MODEL.WEIGHTS_INIT.SKIP_LAYERS
    )
    load_heads = needed or (heads and not trains_own)
    if load_heads:
        model.get_submodule("heads").load_state_dict(heads, strict=False)
    logging.info(
        "%s: all %d tensors of the trunk loaded; heads %s",
        path,
        len(trunk),
        "loaded" if load_heads else "left at their initialisation",
    )
