"""How to pretrain on a folder of images on a machine: each value with the reason for it.

Keys are those of `config`, dotted, with places in lists as numbers.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vissl_barlow.experiment import IRRELEVANT_KEYS
from vissl_barlow.images import part_of_data_set
from vissl_barlow.own_images.folder import OwnFolder
from vissl_barlow.paths import is_within

# What stands in a config for a value that is to be chosen.
AUTO = "auto"

DEVICE = "MACHINE.DEVICE"
PROCESSES = "DISTRIBUTED.NUM_PROC_PER_NODE"
NODES = "DISTRIBUTED.NUM_NODES"
DEPTH = "MODEL.TRUNK.RESNETS.DEPTH"
WIDTH = "MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER"
SMALL_STEM = "MODEL.TRUNK.RESNETS.SMALL_STEM"
VIEW_SIZE = "DATA.TRAIN.TRANSFORMS.0.size"
BATCH = "DATA.TRAIN.BATCHSIZE_PER_REPLICA"
BASE_RATE = "OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value"
PEAK_RATE = "OPTIMIZER.param_schedulers.lr.start_value"
LAST_RATE = "OPTIMIZER.param_schedulers.lr.end_value"
WARMUP = "OPTIMIZER.param_schedulers.lr.warmup_epochs"
EPOCHS = "OPTIMIZER.num_epochs"
PROBE = "BARLOW.PROBE.KIND"
FOLDER = "DATA.TRAIN.DATA_PATHS"
LIMIT = "DATA.TRAIN.DATA_LIMIT"
RUN_FOLDER = "CHECKPOINT.DIR"

# Pixels. Above, the trunk's own stem, as on ImageNet.
LARGEST_SMALL_VIEW = 96
SMALLEST_VIEW = 32
PAPERS_VIEW = 224
VIEW_WITHOUT_GPU = 112
# Images: with fewer an epoch has no two steps of a batch that correlations can be taken over.
FEWEST_IMAGES = 8
LARGEST_BATCH_WITHOUT_GPU = 128
LARGEST_BATCH_OF_GPU = 512
LARGEST_BATCH = 2048
FEWEST_IMAGES_OF_PROCESS = 16
STEPS_PER_EPOCH = 4
STEPS_WITH_GPU, STEPS_WITHOUT_GPU = 50_000, 5_000
MOST_EPOCHS, FEWEST_EPOCHS_WITH_GPU, FEWEST_EPOCHS_WITHOUT_GPU = 1000, 100, 10
# The authors' table for Figure 2 (their issue 7).
AUTHORS_RATES = {128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2, 4096: 0.2}
# Megabytes of activations of both views of an image of 224 pixels, in half precision. Estimates.
_MEGABYTES = {18: 28, 34: 40, 50: 100, 101: 150, 152: 210}
_USED_MEMORY = 0.75


@dataclass(frozen=True)
class Machine:
    """`gpus` and the memory in bytes of the smallest, whether all compute in bfloat16; CPU `cores`;
    `elsewhere`: the run will be on another machine, of which nothing is known."""

    gpus: int
    gpu_bytes: int
    bfloat16: bool
    cores: int
    elsewhere: bool = False


def this_machine() -> Machine:
    """What torch and the system allow this process to use."""
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Machine(
        gpus=len(cards),
        gpu_bytes=min((card.total_memory for card in cards), default=0),
        bfloat16=all(card.major >= 8 for card in cards),  # slow on those before, and emulated
        cores=len(os.sched_getaffinity(0)),
    )


class Choice(NamedTuple):
    """A value, and why it was chosen."""

    value: Any
    reason: str


class _Plan:
    """Settles one key after the other: as it is given, as the run was begun, or as proposed."""

    def __init__(
        self, opened: Collection[str], given: Mapping[str, Any], recorded: Mapping[str, Any]
    ) -> None:
        self.opened, self.given, self.recorded = opened, given, recorded
        self.choices: dict[str, Choice] = {}

    def settle(self, key: str, value: Any, reason: str) -> Any:
        """What the key is to be. A given value of another kind, for others to refuse, is passed by."""
        if key in self.opened:
            if key in self.recorded:
                value, reason = self.recorded[key], "as the run in the folder was begun"
            self.choices[key] = Choice(value, reason)
            return value
        given = self.given.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return given if type(given) is type(value) else value
        if not isinstance(given, int | float) or isinstance(given, bool):
            return value
        return given if math.isfinite(given) and given > 0 else value


def choose(
    opened: Collection[str],
    given: Mapping[str, Any],
    folder: OwnFolder,
    machine: Machine,
    representation_dim: Callable[[Mapping[str, Choice]], int],
    *,
    recorded: Mapping[str, Any] | None = None,
    recorded_batch: int | None = None,
) -> dict[str, Choice]:
    """Chooses values for the keys in `opened`; those of others follow what is `given` there.

    Args:
        opened: keys without a value.
        given: values of other keys, as far as there are any.
        folder: the images.
        machine: where it will run.
        representation_dim: dimensions of the trunk's representations, given the choices so far.
        recorded: what was chosen where the run in the folder was begun: it stays, but for what only
            says where and how the run is carried out (`IRRELEVANT_KEYS`).
        recorded_batch: that run's global batch, if it was chosen too.

    Returns:
        Of each key in `opened` that is known here, a value and its reason, in the order of choosing.
    """
    kept = {
        key: value
        for key, value in (recorded or {}).items()
        if not IRRELEVANT_KEYS.fullmatch(f"config.{key}")
    }
    plan = _Plan(opened, given, kept)
    has_gpu = _choose_device(plan, machine)
    size = _choose_views(plan, folder, has_gpu)
    _choose_trunk(plan, size, has_gpu)
    _choose_projector(plan, representation_dim(plan.choices))
    limit = given.get(LIMIT, -1)
    images = min(len(folder.train), limit if limit >= 0 else len(folder.train))
    batch = _choose_batch(plan, images, machine, has_gpu, recorded_batch)
    _choose_rate(plan, batch)
    steps = max(images // batch, 1)
    epochs = _choose_epochs(plan, steps, has_gpu)
    _choose_length(plan, folder, steps, epochs)
    _choose_probe(plan, folder, epochs)
    plan.settle(RUN_FOLDER, run_folder(folder.root), "the folder's name")
    return plan.choices


def _choose_device(plan: _Plan, machine: Machine) -> bool:
    gpus = "of the machine it will run on" if machine.elsewhere else f"{machine.gpus} visible GPUs"
    reason = gpus if machine.gpus or machine.elsewhere else "torch sees no GPU"
    device = plan.settle(DEVICE, "gpu" if machine.gpus or machine.elsewhere else "cpu", reason)
    has_gpu = device == "gpu"
    plan.settle("DISTRIBUTED.BACKEND", "nccl" if has_gpu else "gloo", f"the device is {device}")
    plan.settle("DATA.PIN_MEMORY", has_gpu, f"the device is {device}")
    plan.settle("BARLOW.CHANNELS_LAST", has_gpu, "faster on GPUs, slower on CPUs")
    plan.settle("MODEL.AMP_PARAMS.USE_AMP", has_gpu, "mixed precision on GPUs only")
    if has_gpu and not (machine.bfloat16 and machine.gpus):
        plan.settle("BARLOW.AMP_DTYPE", "float16", "any GPU computes in it")
    else:
        plan.settle("BARLOW.AMP_DTYPE", "bfloat16", "no loss scaling, and on every device")
    return has_gpu


def _choose_views(plan: _Plan, folder: OwnFolder, has_gpu: bool) -> int:
    sides = folder.sizes.min(axis=1) if len(folder.sizes) else np.array([PAPERS_VIEW])
    side = int(np.median(sides))
    found = f"half of the images have a shorter side of at most {side} pixels"
    if side <= LARGEST_SMALL_VIEW:
        size = plan.settle(VIEW_SIZE, max(side, SMALLEST_VIEW), found)
    else:
        most = PAPERS_VIEW if has_gpu else VIEW_WITHOUT_GPU
        why = "the paper's" if has_gpu else "half the paper's, since there is no GPU"
        own = side // 32 * 32
        size = plan.settle(VIEW_SIZE, min(own, most), found if own < most else why)
    share = size / PAPERS_VIEW
    plan.settle(
        "DATA.TRAIN.TRANSFORMS.0.blur_sigma",
        [round(0.1 * share, 4), round(2.0 * share, 4)],
        f"the paper's 0.1 to 2 at 224 pixels, in proportion to {size}",
    )
    small = size <= LARGEST_SMALL_VIEW
    plan.settle(
        "DATA.TRAIN.TRANSFORMS.0.crop_scale",
        [0.2 if small else 0.08, 1.0],
        "0.08 of a small image is nothing to see" if small else "the paper's",
    )
    plan.settle(
        "DATA.TEST.TRANSFORMS.0.size",
        size if small else round(size * 256 / 224),
        "of the views' size" if small else "256 to 224, as the paper's",
    )
    plan.settle("DATA.TEST.TRANSFORMS.1.size", size, "of the views' size")
    return size


def _choose_trunk(plan: _Plan, size: int, has_gpu: bool) -> None:
    small = size <= LARGEST_SMALL_VIEW
    views = f"views of {size} pixels"
    plan.settle(SMALL_STEM, small, views)
    deep = has_gpu and not small
    plan.settle(
        DEPTH,
        50 if deep else 18,
        "the paper's" if deep else views if has_gpu else "there is no GPU",
    )
    thin = small and not has_gpu
    plan.settle(WIDTH, 0.5 if thin else 1, "there is no GPU" if thin else "the paper's")


def _choose_projector(plan: _Plan, representation: int) -> None:
    head = "MODEL.HEAD.PARAMS.0.1"
    width = plan.settle(f"{head}.in_dim", representation, "what the trunk's representations have")
    plan.settle(f"{head}.dims", [4 * width] * 3, "three layers, four times as wide, as the paper's")


def _choose_batch(
    plan: _Plan, images: int, machine: Machine, has_gpu: bool, recorded: int | None
) -> int:
    """Settles processes, their loader workers and their batch; returns the global batch."""
    nodes = plan.settle(NODES, 1, "")
    of_one = LARGEST_BATCH_OF_GPU if has_gpu else LARGEST_BATCH_WITHOUT_GPU
    cards = max(machine.gpus, 1) if has_gpu else 1
    fitting = _power_of_two(_images_in_memory(plan, machine) if has_gpu else of_one)
    few = _power_of_two(images / STEPS_PER_EPOCH)
    wanted = min(of_one * cards * nodes, few, LARGEST_BATCH)
    if recorded is not None:
        divisors = (n for n in range(cards, 0, -1) if recorded % (n * nodes) == 0)
        most, reason = next(divisors, 1), "divides the batch that the run was begun with"
    else:
        most = max(1, min(cards, wanted // (FEWEST_IMAGES_OF_PROCESS * nodes)))
        reason = "one for each GPU" if has_gpu else "torch uses all cores in one"
    processes = plan.settle(PROCESSES, most, reason)
    workers = machine.cores // processes - 1
    workers = min(max(workers, 1), 16) if has_gpu else min(max(workers // 2, 0), 4)
    plan.settle("DATA.NUM_DATALOADER_WORKERS", workers, f"{machine.cores} CPU cores")
    world = processes * nodes
    if recorded is not None:
        each, reason = max(recorded // world, 1), "as the run in the folder was begun"
    else:
        each = max(1, min(wanted // world, fitting))
        if each < wanted // world:
            reason = f"what {machine.gpu_bytes / 2**30:.0f} GiB of a GPU are thought to hold"
        elif wanted == few:
            reason = f"{images} images are to give {STEPS_PER_EPOCH} steps an epoch, or more"
        else:
            reason = "the best of the paper's Figure 2 lie at 512 and 1024"
            reason = reason if has_gpu else "the smallest of the paper's Figure 2, without a GPU"
    return plan.settle(BATCH, each, reason) * world


def _images_in_memory(plan: _Plan, machine: Machine) -> float:
    if not machine.gpus:
        return LARGEST_BATCH_OF_GPU / 4  # unknown

    def value(key: str, default: Any) -> Any:
        return plan.choices[key].value if key in plan.choices else plan.given.get(key, default)

    side = value(VIEW_SIZE, PAPERS_VIEW)
    # The small stem leaves the layers behind it four times as many pixels each way.
    scale = (side * (4 if value(SMALL_STEM, False) else 1) / PAPERS_VIEW) ** 2
    scale *= value(WIDTH, 1) * (1 if value("MODEL.AMP_PARAMS.USE_AMP", True) else 2)
    megabytes = _MEGABYTES.get(value(DEPTH, 50), _MEGABYTES[50]) * scale
    return max(_USED_MEMORY * machine.gpu_bytes / (megabytes * 2**20), 2)


def _power_of_two(number: float) -> int:
    """The largest that is at most `number`, at least 2."""
    return 2 ** max(int(math.log2(max(number, 2))), 1)


def _choose_rate(plan: _Plan, batch: int) -> None:
    known = list(AUTHORS_RATES)
    rate = float(np.interp(math.log2(batch), np.log2(known), list(AUTHORS_RATES.values())))
    if batch in AUTHORS_RATES:
        reason = f"the authors' for a batch of {batch}"
    elif known[0] < batch < known[-1]:
        reason = f"between the authors' for the batches around {batch}"
    else:
        nearest = known[0] if batch < known[0] else known[-1]
        reason = f"the authors' for {nearest}, the nearest of their batches to {batch}"
    base = plan.settle(BASE_RATE, round(rate, 4), f"{reason}; times batch / 256")
    peak = plan.settle(PEAK_RATE, base, "the peak, before it is scaled to the batch")
    plan.settle(LAST_RATE, round(peak / 1000, 8), "a thousandth of the peak, as the paper's")


def _choose_epochs(plan: _Plan, steps: int, has_gpu: bool) -> int:
    wanted = STEPS_WITH_GPU if has_gpu else STEPS_WITHOUT_GPU
    fewest = FEWEST_EPOCHS_WITH_GPU if has_gpu else FEWEST_EPOCHS_WITHOUT_GPU
    epochs = math.ceil(wanted / steps)
    if epochs > MOST_EPOCHS:
        epochs, reason = MOST_EPOCHS, f"the paper's, of {steps} steps each"
    elif epochs < fewest:
        epochs, reason = fewest, f"of {steps} steps each"
    else:
        where = "a GPU" if has_gpu else "a CPU"
        reason = f"about {wanted} steps, {steps} an epoch: what {where} does in reasonable time"
    return plan.settle(EPOCHS, epochs, reason)


def _choose_length(plan: _Plan, folder: OwnFolder, steps: int, epochs: int) -> None:
    length = f"{epochs} epochs of {steps} steps"
    warmup = 10 if epochs >= 100 else epochs / 10
    reason = "the paper's" if warmup == 10 else f"a tenth of {epochs} epochs"
    plan.settle(WARMUP, warmup, reason)
    plan.settle("LOG_FREQUENCY", min(max(steps * epochs // 200, 1), 50), length)
    plan.settle("CHECKPOINT.CHECKPOINT_FREQUENCY", max(epochs // 100, 1), length)
    images = len(folder.train) + len(folder.test)
    checked = min(images, 10_000, max(100, images * epochs // 100))
    reason = (
        "all"
        if checked == images
        else f"a hundredth of what the run reads, {images} images in {epochs} epochs"
    )
    plan.settle("BARLOW.CHECK_IMAGES", checked, reason)


def _choose_probe(plan: _Plan, folder: OwnFolder, epochs: int) -> None:
    plan.settle("DATA.TEST.DATA_PATHS", [folder.root], "the images held out of the same folder")
    reason = f"{len(folder.classes)} classes" if folder.classes else "there are no labels"
    plan.settle(PROBE, "linear" if folder.classes else "", reason)
    plan.settle("BARLOW.PROBE.EVERY_EPOCHS", max(epochs // 10, 1), f"a tenth of {epochs} epochs")


def run_folder(root: str) -> str:
    """Where the run goes: named after the images' folder, and the one above where that is a part of a
    data set; in the current folder, or beside the images where that is among them."""
    path = Path(os.path.abspath(root))
    is_part = part_of_data_set(path.name) in (("train", ""), ("val", ""), ("test", ""))
    parts = [path.parent.name, path.name] if is_part else [path.name]
    name = re.sub(r"[^\w.-]+", "_", "_".join(filter(None, parts)))
    place = f"own_images/{name or 'images'}"
    return str(path.parent / place) if is_within(place, root) else place


def agrees(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether a run of which this is `recorded` may be meant, with these values `given`: of the epochs
    there may be more, since a run can be extended."""
    epochs, before = given.get(EPOCHS), recorded.get(EPOCHS)
    if isinstance(epochs, int) and isinstance(before, int) and epochs < before:
        return False
    return all(given.get(key, value) == value for key, value in recorded.items() if key != EPOCHS)
