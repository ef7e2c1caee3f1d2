"""Batch normalisation over several processes on the CPU, as `MODEL.SYNC_BN_CONFIG` asks for it."""

from typing import cast

import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from vissl.models.model_helpers import split_world_in_process_groups

from vissl_barlow.distributed import rank, world_size
from vissl_barlow.sync_batch_norm import convert


def synchronise_on_cpu(model: nn.Module, cfg) -> nn.Module:
    """What VISSL's `convert_sync_bn` does on GPUs (train_task.py:462 calls it there alone).

    On GPUs nothing; on one process only torch's own synchronised layers, which refuse the CPU, are
    replaced. Parameters, buffers and their names stay (see `convert`).
    """
    if cfg.MACHINE.DEVICE == "gpu":
        return model
    settings = cfg.MODEL.SYNC_BN_CONFIG
    if settings.CONVERT_BN_TO_SYNC_BN and world_size() > 1:
        return convert(model, _group(settings.GROUP_SIZE, cfg.DISTRIBUTED.NUM_PROC_PER_NODE))
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.SyncBatchNorm):  # of VISSL's xcit
            model.set_submodule(name, convert(layer, layer.process_group))
    return model


def _group(size: int, processes_per_node: int) -> ProcessGroup | None:
    """This process's group by `SYNC_BN_CONFIG.GROUP_SIZE`: 0 all processes, below 0 those of a node."""
    if size == 0:
        return None
    size = size if size > 0 else processes_per_node
    # Every process has to take part in making every group.
    groups = [dist.new_group(ranks) for ranks in split_world_in_process_groups(world_size(), size)]
    return cast(ProcessGroup, groups[rank() // size])  # this process is one of its ranks
