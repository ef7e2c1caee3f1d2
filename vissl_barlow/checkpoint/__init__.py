"""Checkpoints of a ResNet trunk: reading untrusted files, translating names, writing atomically.

`torch_file.py` reads and writes files of tensors, `names.py` spells their names in each format,
`architecture.py` tells which ResNet a state dict is, and `trunk.py` finds the trunk in any file.
Everything is read into torchvision's names and written from them, so each pair of formats costs two
rules. Tensors are never touched: dtypes, strides and `num_batches_tracked` survive every trip.

`pretraining.py` says which views a trunk was pretrained on, `exports.py` writes for programs that
read neither. Command line:
`python -m vissl_barlow.checkpoint --to FORMAT [--trunk PREFIX] IN OUT`.
"""

from vissl_barlow.checkpoint.architecture import (
    TrunkDepth,
    check_finite,
    check_fits,
    check_values,
    trunk_depth,
)
from vissl_barlow.checkpoint.names import (
    detectron2_name,
    detectron2_resnet,
    to_detectron2,
    to_vissl,
    torchvision_name,
)
from vissl_barlow.checkpoint.torch_file import (
    CheckpointError,
    checkpoint_in,
    read_checkpoint,
    save_atomically,
)
from vissl_barlow.checkpoint.trunk import Trunk, as_vissl_checkpoint, load_trunk, read_trunk

__all__ = [
    "CheckpointError",
    "Trunk",
    "TrunkDepth",
    "as_vissl_checkpoint",
    "check_finite",
    "check_fits",
    "check_values",
    "checkpoint_in",
    "detectron2_name",
    "detectron2_resnet",
    "load_trunk",
    "read_checkpoint",
    "read_trunk",
    "save_atomically",
    "to_detectron2",
    "to_vissl",
    "torchvision_name",
    "trunk_depth",
]
