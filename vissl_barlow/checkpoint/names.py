"""The names of a trunk's tensors in all formats, and files of VISSL and Detectron2.

s: stage 1..4, b: block, i: convolution of the block:

    torchvision, authors' file  bn1.*             layer{s}.{b}.bn{i}.*             downsample.0, .1
    VISSL                       the same names behind `_feature_blocks.`
    Detectron2                  stem.conv1.norm.* res{s+1}.{b}.conv{i}.norm.*      shortcut, .norm
    lightly, of torchvision's   1.*               {s+3}.{b}.bn{i}.*                downsample.0, .1
    lightly, of its own ResNet  1.*               {s+1}.{b}.bn{i}.*                shortcut.0, .1

lightly puts the parts of a ResNet in an `nn.Sequential`, which numbers them; torchvision's has an
activation and a pooling between `bn1` and `layer1`, lightly's own has none.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vissl_barlow.checkpoint.architecture import TrunkDepth, trunk_depth
from vissl_barlow.checkpoint.torch_file import CheckpointError

VISSL_PREFIX = "_feature_blocks."
# Where VISSL's checkpoints hold the trunk's state dict.
VISSL_PATH = ("classy_state_dict", "base_model", "model", "trunk")
# Left to right towards Detectron2, right to left back; a name that contains another comes first.
_DETECTRON2_PARTS = (
    *((f"layer{stage}.", f"res{stage + 1}.") for stage in (1, 2, 3, 4)),
    ("downsample.1.", "shortcut.norm."),
    ("downsample.0.", "shortcut."),
    *((f"bn{i}.", f"conv{i}.norm.") for i in (1, 2, 3)),
)


def to_vissl(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """A VISSL checkpoint that holds this trunk (torchvision's names) and no head."""
    trunk = {VISSL_PREFIX + name: tensor for name, tensor in state_dict.items()}
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


def detectron2_resnet(trunk: TrunkDepth) -> dict[str, int]:
    """What Detectron2's `MODEL.RESNETS` must say of this trunk."""
    channels = round(64 * trunk.width_multiplier)
    return {
        "DEPTH": trunk.depth,
        "STEM_OUT_CHANNELS": channels,
        "WIDTH_PER_GROUP": channels,
        # A basic block puts out as many channels as it works on, a bottleneck four times as many.
        "RES2_OUT_CHANNELS": channels if trunk.depth < 50 else 4 * channels,
    }


def detectron2_name(name: str) -> str:
    """Detectron2's name of a trunk tensor, from torchvision's: `layer1.0.bn1.bias` and so on."""
    if not name.startswith("layer"):
        name = f"stem.{name}"
    for part, detectron2_part in _DETECTRON2_PARTS:
        name = name.replace(part, detectron2_part)
    return name


def from_sequential(name: str, first_stage: int) -> str:
    """Torchvision's name of a tensor of a ResNet's parts in an `nn.Sequential`, as lightly has them.

    `first_stage`: the number of `layer1` there, 4 for torchvision's ResNet, 2 for lightly's own.
    """
    number, _, rest = name.partition(".")
    parts = {"0": "conv1", "1": "bn1"}
    parts |= {str(first_stage + stage): f"layer{stage + 1}" for stage in range(4)}
    return f"{parts.get(number, number)}.{rest}"


def torchvision_name(name: str) -> str:
    """The inverse of `detectron2_name`."""
    name = name.removeprefix("stem.")
    for part, detectron2_part in _DETECTRON2_PARTS:
        name = name.replace(detectron2_part, part)
    return name
