"""Where the transfer configs are, and what a config must say before any long work; pure Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vissl_barlow.checkpoint import TrunkDepth, detectron2_resnet
from vissl_barlow.paths import config_folder
from vissl_barlow.views import IMAGENET_MEAN, IMAGENET_STD

# Mean and standard deviation of each channel.
Normalization = tuple[Sequence[float], Sequence[float]]
PAPERS: Normalization = (IMAGENET_MEAN, IMAGENET_STD)
# Detectron2 subtracts and divides in the units of its input, 0 to 255.
PIXEL_RANGE = 255
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
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    leaves = ", ".join(sorted(stem for stem in shipped if not stem.startswith("base_")))
    raise ValueError(f"--config-file {name!r} is neither a file nor one of: {leaves}")


def shipped_configs() -> dict[str, Path]:
    """The files in benchmark_configs/detectron2, by the names that reports tell their runs by."""
    folder = config_folder("benchmark_configs") / "detectron2"
    return {file.stem: file for file in folder.glob("*.yaml")}


def check_input(cfg: Any, normalization: Normalization = PAPERS) -> None:
    """Refuses a config under which pretrained torchvision weights load silently but see garbage.

    The features would be computed from swapped colours, another scale, or with the strides in other
    layers; no shape tells, and training starts from a ruined network.

    Args:
        cfg: a config node with `MODEL` and `INPUT`.
        normalization: of the pretraining, in the range of 0 to 1.

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
    for key, channels in zip(("PIXEL_MEAN", "PIXEL_STD"), normalization):
        expected = [PIXEL_RANGE * value for value in channels]
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


def check_schedule(solver: Any, recipe: Any) -> None:
    """Refuses another length of training with steps of the rate that belong to the recipe's.

    Detectron2 leaves out steps behind the end, and the rate never falls; in a longer training it falls
    too early.

    Args:
        solver: the section `SOLVER`.
        recipe: the same of the config file alone.

    Raises:
        ValueError: a line for each fault, naming the keys, their values and the values they need.
    """
    faults = []
    length, steps = solver.MAX_ITER, tuple(solver.STEPS)
    if "Step" in solver.LR_SCHEDULER_NAME:  # others have none
        if length != recipe.MAX_ITER and steps and steps == tuple(recipe.STEPS):
            scaled = tuple(round(step * length / recipe.MAX_ITER) for step in steps)
            faults.append(
                f"SOLVER.MAX_ITER {length} with SOLVER.STEPS {steps}, of {recipe.MAX_ITER} iterations:"
                f' the rate would fall elsewhere in the training; add SOLVER.STEPS "{scaled}"'
            )
        elif any(step > length for step in steps):
            faults.append(
                f"SOLVER.STEPS {steps}: the rate would not fall behind the last iteration,"
                f" SOLVER.MAX_ITER {length}: give steps within the training"
            )
    if solver.WARMUP_ITERS > length:
        faults.append(
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is longer than the training,"
            f" SOLVER.MAX_ITER {length}: the rate would be SOLVER.BASE_LR at its end alone; give fewer"
        )
    refuse(faults)


def check_unread(cfg: Any) -> None:
    """Refuses what Detectron2's tools/train_net.py does and its trainer, which runs here, does not.

    Args:
        cfg: a config node with `TEST`.

    Raises:
        ValueError: naming the keys that would have no effect.
    """
    asked = {
        "TEST.AUG.ENABLED": cfg.TEST.AUG.ENABLED,
        "TEST.EXPECTED_RESULTS": cfg.TEST.EXPECTED_RESULTS,
    }
    refuse(
        f"{key} {value}: nothing here reads it, and the numbers would be those without: leave it out"
        for key, value in asked.items()
        if value
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
