"""vissl/optimizers, vissl/models: which layers are batch normalisation."""

from vissl.models import model_helpers
from vissl.optimizers import optimizer_helper

from vissl_barlow.sync_batch_norm import SyncBatchNorm


def know_our_batch_norm() -> None:
    """vissl/optimizers/optimizer_helper.py:17 and vissl/models/model_helpers.py:25: lists of classes.

    A limit of VISSL 0.1.6: a batch normalisation that is on neither list gets weight decay, whatever
    `regularize_bn` says, and under activation checkpointing moves its running statistics twice.
    """
    for module, name in ((optimizer_helper, "_NORM_TYPES"), (model_helpers, "_bn_cls")):
        known = getattr(module, name)
        if SyncBatchNorm not in known:
            setattr(module, name, (*known, SyncBatchNorm))
