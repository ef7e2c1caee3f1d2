"""Refuses a classifier or weights that do not fit, or would mislead, before an evaluation starts."""

import logging

from classy_vision.optim.param_scheduler import build_param_scheduler
from vissl.utils import checkpoint as vissl_checkpoint
from vissl.utils.io import is_url

from vissl_barlow.checkpoint import CheckpointError
from vissl_barlow.vissl_plugin.checks.common import last_width, model_on_meta
from vissl_barlow.vissl_plugin.components.weights import (
    heads_must_be_loaded,
    model_weights,
    refuse_untrained_heads,
)
from vissl_barlow.vissl_plugin.errors import ConfigError

CLASSIFICATION_LOSS = "cross_entropy_multiple_output_single_target"


def classifier_outputs(cfg) -> int | None:
    """The number of classes of a classifier trained on labels; None if nothing of the kind is."""
    settings = cfg.MODEL.FEATURE_EVAL_SETTINGS
    if cfg.LOSS.name != CLASSIFICATION_LOSS or settings.EXTRACT_TRUNK_FEATURES_ONLY:
        return None
    if not cfg.MODEL.HEAD.PARAMS:
        return None
    name, options = cfg.MODEL.HEAD.PARAMS[-1]
    return options["num_classes"] if name == "barlow_linear" else last_width(cfg, options)


def check_classifier(cfg) -> None:
    """Raises ConfigError unless the schedules fit the training of a classifier."""
    names = ["lr", *(["lr_head"] if cfg.OPTIMIZER.head_optimizer_params.use_different_lr else [])]
    for name in names:
        schedule = cfg.OPTIMIZER.param_schedulers[name]
        try:
            build_param_scheduler({**schedule, "num_epochs": cfg.OPTIMIZER.num_epochs})
        except (ValueError, AssertionError) as error:
            raise ConfigError(
                f"OPTIMIZER.param_schedulers.{name}",
                schedule.to_dict(),
                f"does not fit config.OPTIMIZER.num_epochs={cfg.OPTIMIZER.num_epochs} ({error})",
            ) from None


def _waits_for_a_job(cfg) -> bool:
    """Whether this submits a job that begins after another one, which may leave the weights."""
    return cfg.SLURM.USE_SLURM and "dependency" in cfg.SLURM.ADDITIONAL_PARAMETERS


def check_weights(cfg) -> None:
    key, path = "MODEL.WEIGHTS_INIT.PARAMS_FILE", cfg.MODEL.WEIGHTS_INIT.PARAMS_FILE
    folder = cfg.CHECKPOINT.DIR
    finished = vissl_checkpoint.is_training_finished(cfg, folder)
    started = finished or vissl_checkpoint.get_resume_checkpoint(cfg, folder)
    if started and cfg.TEST_ONLY and heads_must_be_loaded(cfg):
        raise ConfigError(
            "CHECKPOINT.DIR",
            folder,
            "the folder holds a training, and config.TEST_ONLY=true would not evaluate it; name a new "
            f"folder, and its checkpoint as config.{key}={folder}/checkpoint.torch",
        )
    if is_url(path) or started:
        return  # downloaded later, and checked when it is loaded; or not read at all
    if not path:
        refuse_untrained_heads(cfg)
        if cfg.LOSS.name == CLASSIFICATION_LOSS or cfg.MODEL.FEATURE_EVAL_SETTINGS.EVAL_MODE_ON:
            logging.warning("config.%s is empty: the trunk evaluated is untrained", key)
        return
    try:
        needed = heads_must_be_loaded(cfg)
        model_weights(model_on_meta(cfg), path, cfg.BARLOW.WEIGHTS_TRUNK, with_heads=needed)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and _waits_for_a_job(cfg):
            logging.info(
                "config.%s=%s is not there yet: a job before this one may leave it", key, path
            )
            return
        remedy = (
            f"cannot be read ({error.strerror}); name a pretrained checkpoint (docs/evaluation.md)"
        )
        raise ConfigError(key, path, remedy) from None
    except CheckpointError as error:
        raise ConfigError(key, path, str(error).removeprefix(f"{path}: ")) from None
