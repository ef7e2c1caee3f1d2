"""Refuses values of VISSL's keys that are out of range, or name what there is none of.

A negative limit of the gradient turns it round.
"""

from collections.abc import Iterator

import torch
from classy_vision.losses import LOSS_REGISTRY
from classy_vision.optim import OPTIMIZER_REGISTRY
from classy_vision.optim.param_scheduler import PARAM_SCHEDULER_REGISTRY
from vissl.models import MODEL_REGISTRY
from vissl.trainer.train_steps import TRAIN_STEP_REGISTRY
from vissl.utils.misc import is_apex_available

from vissl_barlow.vissl_plugin.checks.common import Refusals, value_at, world_size
from vissl_barlow.vissl_plugin.errors import ConfigError, near_names

# numpy's; VISSL seeds it with (SEED_VALUE + rank) num_epochs (vissl/utils/misc.py:172).
_SEEDS = 2**32
_SYNC_BN = "MODEL.SYNC_BN_CONFIG"
_CLIP = "MODEL.GRAD_CLIP"


def check_ranges(cfg) -> None:
    """Raises ConfigError for such values."""
    refusals = Refusals()
    refusals.add(*_of_ranges(cfg))
    refusals.raise_all()


def _of_ranges(cfg) -> Iterator[ConfigError]:
    epochs, seed = cfg.OPTIMIZER.num_epochs, cfg.SEED_VALUE
    most = _SEEDS // epochs - world_size(cfg)
    if seed > most:
        yield ConfigError(
            "SEED_VALUE",
            seed,
            f"times config.OPTIMIZER.num_epochs={epochs}, as VISSL seeds with, it is more than numpy "
            f"takes; set at most {most}",
        )
    yield from _of_names(cfg)
    yield from _of_clipping(cfg.MODEL.GRAD_CLIP)
    yield from _of_groups(cfg)


def _of_names(cfg) -> Iterator[ConfigError]:
    names = {
        "OPTIMIZER.name": ("optimizer", OPTIMIZER_REGISTRY),
        "MODEL.BASE_MODEL_NAME": ("model", MODEL_REGISTRY),
        "TRAINER.TRAIN_STEP_NAME": ("step", TRAIN_STEP_REGISTRY),
        # torch's losses have sections too.
        "LOSS.name": ("loss", {*cfg.LOSS} & {*LOSS_REGISTRY, *vars(torch.nn.modules.loss)}),
    }
    for schedule in cfg.OPTIMIZER.param_schedulers:
        key = f"OPTIMIZER.param_schedulers.{schedule}.name"
        names[key] = ("schedule", PARAM_SCHEDULER_REGISTRY)
    for key, (kind, known) in names.items():
        name = value_at(cfg, key)
        if name not in known:
            yield ConfigError(key, name, f"no such {kind}; {near_names(str(name), known)}")


def _of_clipping(clip) -> Iterator[ConfigError]:
    if not clip.USE_GRAD_CLIP:
        return
    if not clip.MAX_NORM > 0:
        yield ConfigError(f"{_CLIP}.MAX_NORM", clip.MAX_NORM, "set a number above 0")
    is_number = isinstance(clip.NORM_TYPE, int | float) and clip.NORM_TYPE > 0
    if not (is_number or clip.NORM_TYPE == "inf"):
        yield ConfigError(f"{_CLIP}.NORM_TYPE", clip.NORM_TYPE, "set a number above 0, or inf")


def _of_groups(cfg) -> Iterator[ConfigError]:
    settings, processes = cfg.MODEL.SYNC_BN_CONFIG, world_size(cfg)
    if not settings.CONVERT_BN_TO_SYNC_BN:
        return
    size = settings.GROUP_SIZE
    if 0 < size < processes and processes % size:
        yield ConfigError(
            f"{_SYNC_BN}.GROUP_SIZE",
            size,
            f"{processes} processes make no groups of {size}, and the last would have statistics of "
            "fewer images; set a divisor, or 0 for all processes",
        )
    elsewhere = cfg.MACHINE.DEVICE != "gpu" or cfg.SLURM.USE_SLURM
    if settings.SYNC_BN_TYPE == "apex" and not elsewhere and not is_apex_available():
        yield ConfigError(f"{_SYNC_BN}.SYNC_BN_TYPE", "apex", "apex is not installed; set pytorch")
