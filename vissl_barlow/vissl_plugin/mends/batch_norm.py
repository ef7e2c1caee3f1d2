"""vissl/optimizers, vissl/models: which layers are batch normalisation."""

import importlib
import pkgutil

import vissl.optimizers
from vissl.models import model_helpers

from vissl_barlow.sync_batch_norm import SyncBatchNorm


def know_our_batch_norm() -> None:
    """vissl/optimizers/optimizer_helper.py:17 and vissl/models/model_helpers.py:25: lists of classes.

    A limit of VISSL 0.1.6: a batch normalisation that is on neither list gets weight decay, whatever
    `regularize_bn` says, and under activation checkpointing moves its running statistics twice. VISSL
    main has the first list twice, in vissl/optimizers/param_groups.
    """
    prefix = f"{vissl.optimizers.__name__}."
    found = pkgutil.walk_packages(vissl.optimizers.__path__, prefix)
    modules = [importlib.import_module(each.name) for each in found]
    of_weight_decay = [module for module in modules if hasattr(module, "_NORM_TYPES")]
    if not of_weight_decay:
        raise ImportError(f"no module of {prefix}* has a list _NORM_TYPES")
    lists = [(module, "_NORM_TYPES") for module in of_weight_decay] + [(model_helpers, "_bn_cls")]
    for module, name in lists:
        known = getattr(module, name)
        if SyncBatchNorm not in known:
            setattr(module, name, (*known, SyncBatchNorm))
