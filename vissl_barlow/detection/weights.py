"""Pretrained trunks into Detectron2's models, all or nothing.

Detectron2 itself logs a warning where names or shapes do not match and trains from random weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from torch import nn

from vissl_barlow.checkpoint import (
    CheckpointError,
    check_finite,
    load_trunk,
    read_checkpoint,
    to_detectron2,
)
from vissl_barlow.detection import compat  # noqa: F401 (first: mends what follows)

# isort: split
from detectron2.checkpoint import DetectionCheckpointer

# Blocks only: the norm that follows them in the ROI head belongs to no trunk.
_BACKBONE = re.compile(r"(?:^|\.)((?:stem|res[2-5]\.\d+)\..+)")
_BOOKKEEPING = ".num_batches_tracked"
# Detectron2 takes the last two from the config, and old checkpoints hold them.
_NOT_TRAINED = (_BOOKKEEPING, "pixel_mean", "pixel_std")
_NAMES_SHOWN = 4


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def load_backbone(model: nn.Module, path: str | os.PathLike) -> int:
    """Loads a pretrained trunk of any supported format into a Detectron2 model.

    The stem and res2 to res4 go to the backbone; res5 goes to the ROI head of a C4 model and to the
    backbone of an FPN model.

    Args:
        model: not wrapped in DistributedDataParallel.
        path: a local file, as `vissl_barlow.checkpoint.load_trunk` reads it.

    Returns:
        Number of backbone tensors loaded, `num_batches_tracked` not counted: all there are, 265 in
        a ResNet-50.

    Raises:
        CheckpointError: the file holds no trunk, or one with a tensor too few, too many or of
            another shape or that is not finite.
        OSError: the file cannot be read.
    """
    state = model.state_dict()
    places = {match[1]: name for name in state if (match := _BACKBONE.search(name))}
    trunk = to_detectron2(load_trunk(path))["model"]
    loaded = {
        places[name]: tensor
        for name, tensor in trunk.items()
        if name in places and tensor.shape == state[places[name]].shape
    }
    wanted = [name for name in places.values() if not name.endswith(_BOOKKEEPING)]
    missing = [name for name in wanted if name not in loaded]
    unused = [name for name in trunk if name not in places and not name.endswith(_BOOKKEEPING)]
    if missing or unused:
        account = "; ".join(
            f"{len(names)} {fault}: {_shown(names)}"
            for names, fault in ((missing, "unmatched"), (unused, "without a place"))
            if names
        )
        raise CheckpointError(
            f"{path}: matches {len(wanted) - len(missing)} of {len(wanted)} backbone tensors"
            f" ({account}): set MODEL.RESNETS to the depth and width that were pretrained"
        )
    model.load_state_dict(loaded, strict=False)
    return len(wanted)


class StrictCheckpointer(DetectionCheckpointer):
    """Reads a whole detection model, for evaluation: a tensor left random, or left out, is an error.

    Detectron2 logs both. The blocks of a ResNet-50 are among those of a ResNet-101: the deeper
    model's checkpoint would leave nothing random in the shallower one. Nothing in the file is run:
    Detectron2 unpickles a `.pkl`, and leaves others to torch alone.
    """

    def _load_file(self, filename):
        checkpoint = read_checkpoint(filename)
        if not isinstance(checkpoint, Mapping):
            raise CheckpointError(f"{filename}: holds no model of Detectron2's")
        checkpoint = checkpoint if "model" in checkpoint else {"model": checkpoint}
        try:
            check_finite(checkpoint["model"])
        except CheckpointError as error:
            raise CheckpointError(f"{filename}: {error}") from None
        return checkpoint

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        missing, unused = (
            [name for name in names if not name.endswith(_NOT_TRAINED)]
            for names in (incompatible.missing_keys, incompatible.unexpected_keys)
        )
        if missing:
            raise CheckpointError(
                f"the checkpoint leaves {len(missing)} tensors of the detection model random"
                f" ({_shown(missing)}): --eval-only needs MODEL.WEIGHTS of a trained detection"
                " model, such as model_final.pth"
            )
        if unused:
            raise CheckpointError(
                f"the checkpoint has {len(unused)} tensors without a place in the detection model"
                f" ({_shown(unused)}): --eval-only needs the --config-file and the overrides of the"
                " training"
            )
        return incompatible
