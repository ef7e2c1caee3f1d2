"""The global batch, and each process's share of it on the hardware there is."""

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from vissl_barlow.own_images.choices import AUTO
from vissl_barlow.reproduce.overrides import compose_config
from vissl_barlow.reproduce.settings import BATCH

_GROUP = re.compile(r"\+*config/")
_HARDWARE = re.compile(r"\+*config\.DISTRIBUTED\.NUM_(NODES|PROC_PER_NODE)=")
_SHARE = re.compile(rf"\+*{re.escape(BATCH)}=")


def global_batch(config: str, overrides: Sequence[str] = ()) -> int | None:
    """The batch over all processes that VISSL trains `config` with, under `overrides`; None where the
    config leaves it to be chosen by the images and the machine.

    Raises:
        hydra.errors.HydraException: `config` is none of this plugin's, or an override does not fit it.
    """
    composed = _compose(config, overrides)
    share, processes = composed.DATA.TRAIN.BATCHSIZE_PER_REPLICA, _processes(composed)
    return None if AUTO in (share, processes) else share * processes


def share_of(
    batch: int | None, config: str, overrides: Sequence[str], *, always: bool = False
) -> list[str]:
    """The override that spreads a global batch over the processes that `overrides` ask for.

    None where the overrides name the batch per process themselves, or the config's is the share.

    Args:
        batch: the global batch; None for the one of `config`, with the groups of `overrides`.
        always: state the share even if it is the config's.

    Raises:
        ValueError: the processes do not divide it.
        hydra.errors.HydraException: as `global_batch`.
    """
    if any(map(_SHARE.match, overrides)):
        return []
    groups = [word for word in overrides if _GROUP.match(word)]
    wanted = batch or global_batch(config, groups)
    composed = _compose(config, overrides)
    processes = _processes(composed)
    if wanted is None or processes == AUTO:
        return []
    if processes < 1 or wanted % processes:
        raise ValueError(
            f"the global batch of {wanted} is not divisible by {processes} processes "
            f"(config.DISTRIBUTED.NUM_NODES={composed.DISTRIBUTED.NUM_NODES} times NUM_PROC_PER_NODE="
            f"{composed.DISTRIBUTED.NUM_PROC_PER_NODE}): choose a number of processes that divides it"
        )
    share = wanted // processes
    is_the_configs = share == composed.DATA.TRAIN.BATCHSIZE_PER_REPLICA
    return [] if is_the_configs and not always else [f"{BATCH}={share}"]


def _compose(config: str, overrides: Sequence[str]) -> DictConfig:
    deciding = (_GROUP, _HARDWARE, _SHARE)
    relevant = (word for word in overrides if any(each.match(word) for each in deciding))
    return compose_config(config, tuple(relevant))


def _processes(composed: DictConfig) -> Any:
    """Processes on all machines, or AUTO."""
    counts = composed.DISTRIBUTED.NUM_NODES, composed.DISTRIBUTED.NUM_PROC_PER_NODE
    return AUTO if AUTO in counts else counts[0] * counts[1]
