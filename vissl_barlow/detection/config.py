"""Where the transfer configs are, and what a config must say before any long work; pure Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vissl_barlow.checkpoint import TrunkDepth, detectron2_resnet
from vissl_barlow.paths import config_folder
from vissl_barlow.views import IMAGENET_MEAN, IMAGENET_STD

# Detectron2 subtracts and divides in the units of its input, 0 to 255.
PIXEL_MEAN = tuple(255 * value for value in IMAGENET_MEAN)
PIXEL_STD = tuple(255 * value for value in IMAGENET_STD)
# Published configs round to two or three decimals; Caffe's values are off by 1 and more.
PIXEL_TOLERANCE = 0.01
# Layers whose normalisation Detectron2 takes from a config key of their own.
NORM_SECTIONS = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
# `nn.SyncBatchNorm` refuses CPU tensors.
GPU_NORMS = ("SyncBN", "nnSyncBN")


def config_path(name: str) -> Path:
    """The YAML file called `name`: a path, or the stem of a file in benchmark_configs/detectron2.

    Raises:
        ValueError: there is no such file; the message lists the names that exist.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    folder = config_folder("benchmark_configs") / "detectron2"
    shipped = {file.stem: file for file in folder.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    leaves = ", ".join(sorted(stem for stem in shipped if not stem.startswith("base_")))
    raise ValueError(f"--config-file {name!r} is neither a file nor one of: {leaves}")


def check_input(cfg: Any) -> None:
    """Refuses a config under which pretrained torchvision weights load silently but see garbage.

    The features would be computed from swapped colours, another scale, or with the strides in other
    layers; no shape tells, and training starts from a ruined network.

    Args:
        cfg: a config node with `MODEL` and `INPUT`.

    Raises:
        ValueError: a line for each fault, naming the key, its value and the value it needs.
    """
    faults = []
    if cfg.MODEL.RESNETS.STRIDE_IN_1X1:
        faults.append(
            "MODEL.RESNETS.STRIDE_IN_1X1 is True, the layout of Caffe's ResNets; the pretrained"
            " weights stride in the 3x3 convolution: set it to False"
        )
    if cfg.INPUT.FORMAT != "RGB":
        faults.append(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; the pretrained weights expect RGB images:"
            " set it to 'RGB'"
        )
    for key, expected in (("PIXEL_MEAN", PIXEL_MEAN), ("PIXEL_STD", PIXEL_STD)):
        values = tuple(cfg.MODEL[key])
        if len(values) != len(expected) or not all(
            math.isclose(value, target, rel_tol=0, abs_tol=PIXEL_TOLERANCE)
            for value, target in zip(values, expected)
        ):
            wanted = [round(target, 3) for target in expected]
            faults.append(
                f"MODEL.{key} is {list(values)}; the pretrained weights expect RGB images"
                f" normalised as in pretraining: set it to {wanted}"
            )
    refuse(faults)


def check_trunk(cfg: Any, trunk: TrunkDepth) -> None:
    """Refuses a config whose ResNet is not the pretrained one.

    Args:
        cfg: a config node with `MODEL`.
        trunk: what the checkpoint in MODEL.WEIGHTS holds.

    Raises:
        ValueError: naming the ResNet in the checkpoint and the keys and values that it needs.
    """
    own = cfg.MODEL.RESNETS
    basic_blocks = trunk.depth < 50
    settings = " ".join(
        f"MODEL.RESNETS.{key} {value}"
        for key, value in detectron2_resnet(trunk).items()
        if own[key] != value
    )
    if basic_blocks and "res5" not in own.OUT_FEATURES:
        raise ValueError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: this is a {trunk}, and the C4 models' res5 has"
            " the bottleneck blocks of a ResNet-50: take --config-file"
            f" coco_mask_rcnn_R50_FPN_1x{settings and ', and set ' + settings}"
        )
    if settings:
        raise ValueError(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: {trunk.other_than(settings)}")


def check_hardware(cfg: Any, *, processes: int, processes_per_machine: int, gpus: int) -> None:
    """Refuses a config this machine cannot run.

    Args:
        cfg: a config node with `MODEL` and `SOLVER`.
        processes: in total, over all machines.
        processes_per_machine: `--num-gpus`.
        gpus: CUDA devices of this machine.

    Raises:
        ValueError: a line for each fault, naming the key or flag, its value and the remedy.
    """
    faults = []
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch % processes:
        faults.append(
            f"SOLVER.IMS_PER_BATCH {batch} cannot be divided among {processes} processes:"
            " change --num-gpus, or add --scale-batch-and-lr"
        )
    sections = {name: cfg.MODEL.get(name, {}).get("NORM", "") for name in NORM_SECTIONS}
    on_gpus = {name: norm for name, norm in sections.items() if norm in GPU_NORMS}
    if cfg.MODEL.DEVICE.startswith("cuda"):
        if not gpus:
            norms = "".join(f" MODEL.{name}.NORM BN" for name in on_gpus)
            faults.append(
                f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} but no CUDA device is visible:"
                f" to run on CPU (slow), add MODEL.DEVICE cpu{norms}"
            )
        elif processes_per_machine > gpus:
            faults.append(
                f"--num-gpus {processes_per_machine} but {gpus} CUDA device(s) are visible:"
                f" use --num-gpus {gpus} --scale-batch-and-lr"
            )
    else:
        faults += [
            f"MODEL.{name}.NORM is {norm!r}, which needs GPUs, but MODEL.DEVICE is"
            f" {cfg.MODEL.DEVICE!r}: add MODEL.{name}.NORM BN"
            for name, norm in on_gpus.items()
        ]
    refuse(faults)


def check_precision(cfg: Any) -> None:
    """Refuses mixed precision where Detectron2 has it not.

    Args:
        cfg: a config node with `MODEL` and `SOLVER`.

    Raises:
        ValueError: SOLVER.AMP.ENABLED on a CPU.
    """
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ValueError(
            f"SOLVER.AMP.ENABLED is True, which needs a GPU, but MODEL.DEVICE is"
            f" {cfg.MODEL.DEVICE!r}: set it to False"
        )


def refuse(faults: Iterable[str]) -> None:
    """Raises ValueError with a line for each fault, if there is any."""
    if lines := "\n".join(faults):
        raise ValueError(lines)


def leaves(node: Mapping[str, Any]) -> dict[str, Any]:
    """A config node's values by their dotted keys, such as `SOLVER.BASE_LR`."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": leaf for name, leaf in leaves(value).items()}
        else:
            flat[key] = value
    return flat
