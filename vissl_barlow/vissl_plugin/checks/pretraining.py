"""Refuses batches and checkpoints with which a training cannot work."""

import os

from classy_vision.losses import LOSS_REGISTRY
from vissl.utils import checkpoint as vissl_checkpoint

from vissl_barlow.vissl_plugin.checks.common import model_on_meta, world_size
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.hooks import pretrains
from vissl_barlow.vissl_plugin.run.checkpoint_folder import inspect


def correlates(cfg) -> bool:
    """Whether the loss is one of the plugin's, of statistics over the batch."""
    return hasattr(LOSS_REGISTRY.get(cfg.LOSS.name), "models")


def check_batch(cfg) -> None:
    if not correlates(cfg):
        return
    batch = cfg.DATA.TRAIN.BATCHSIZE_PER_REPLICA * world_size(cfg)
    if batch < 2:
        raise ConfigError(
            "DATA.TRAIN.BATCHSIZE_PER_REPLICA",
            cfg.DATA.TRAIN.BATCHSIZE_PER_REPLICA,
            f"the global batch is {batch}, and a correlation over the batch needs at least 2 images; "
            "type config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=2 or more",
        )


def check_clipping(cfg) -> None:
    """Raises ConfigError where VISSL's hook would clip gradients while the loss scale is in."""
    scaled = cfg.MODEL.AMP_PARAMS.USE_AMP and cfg.BARLOW.AMP_DTYPE == "float16"
    if pretrains(cfg) and scaled and cfg.MODEL.GRAD_CLIP.USE_GRAD_CLIP:
        raise ConfigError(
            "MODEL.GRAD_CLIP.USE_GRAD_CLIP",
            True,
            "VISSL clips before the float16 loss scale is taken out, so every step would be cut down "
            "to nothing; set it to false, or config.BARLOW.AMP_DTYPE=bfloat16",
        )


def check_test_views(cfg) -> None:
    """Raises ConfigError for a test phase of a pretraining whose images come without two views."""
    if not (cfg.TEST_MODEL and pretrains(cfg)):
        return
    if cfg.DATA.TEST.COLLATE_FUNCTION != "barlow_collator":
        raise ConfigError(
            "TEST_MODEL",
            True,
            "a pretraining's test phase computes its loss, which needs two views; set it to false "
            "(config.BARLOW.PROBE.KIND=linear tests the trunk), or give DATA.TEST the TRANSFORMS and "
            "the COLLATE_FUNCTION of DATA.TRAIN",
        )


def check_checkpoints(cfg) -> None:
    """A checkpoint of another model must not be found out after hours in the queue."""
    folder = cfg.CHECKPOINT.DIR
    # By the module: these two are mended there, which may happen after this file is imported.
    if vissl_checkpoint.is_training_finished(cfg, checkpoint_folder=folder):
        return
    path = vissl_checkpoint.get_resume_checkpoint(cfg, checkpoint_folder=folder)
    saved = None if path is None else inspect(path)
    if saved is None:
        return
    built = model_on_meta(cfg).get_classy_state()["model"]
    for part, theirs in (("trunk", saved.trunk), ("heads", saved.heads)):
        ours = {name: tuple(tensor.shape) for name, tensor in built[part].items()}
        if ours != theirs:
            differing = sorted(set(ours.items()) ^ set(theirs.items()))
            name, shape = differing[0]
            raise ConfigError(
                "CHECKPOINT.DIR",
                folder,
                f"{os.path.basename(path)} there is of another model (the {part} differ at {name} "
                f"{shape}); name another folder, or set config.CHECKPOINT.AUTO_RESUME=false",
            )
