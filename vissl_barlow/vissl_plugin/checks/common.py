"""What several checks need."""

import torch
from vissl.models import build_model

LISTED_NAMES = 3


def listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED_NAMES]) + (", ..." if len(names) > LISTED_NAMES else "")


def world_size(cfg) -> int:
    return cfg.DISTRIBUTED.NUM_NODES * cfg.DISTRIBUTED.NUM_PROC_PER_NODE


def model_on_meta(cfg):
    """The model `cfg` would train, without memory or values: for names and shapes."""
    cfg.MODEL["_MODEL_INIT_SEED"] = cfg.MODEL.get("_MODEL_INIT_SEED", cfg.SEED_VALUE)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build_model(cfg.MODEL, cfg.OPTIMIZER)
