"""Refuses a classifier or weights that do not fit, or would mislead, before an evaluation starts."""

import logging
import os
import re
import shlex
from collections.abc import Sequence

import numpy as np
from classy_vision.optim.param_scheduler import build_param_scheduler
from hydra.errors import HydraException
from vissl.utils import checkpoint as vissl_checkpoint
from vissl.utils.io import is_url

from vissl_barlow.checkpoint import CheckpointError, checkpoint_in, read_checkpoint
from vissl_barlow.checkpoint.pretraining import pretraining_views
from vissl_barlow.overrides import compose_config, override
from vissl_barlow.vissl_plugin.checks.common import Refusals, is_typed, model_on_meta
from vissl_barlow.vissl_plugin.components.weights import (
    heads_must_be_loaded,
    model_weights,
    refuse_untrained_heads,
)
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.hooks import pretrains

# Data sets' own means are published to three or four decimals.
_SAME_NUMBERS = 0.002
CLASSIFICATION_LOSS = "cross_entropy_multiple_output_single_target"


def classifier_outputs(cfg) -> int | None:
    """The number of classes of a classifier trained on labels; None if nothing of the kind is."""
    settings = cfg.MODEL.FEATURE_EVAL_SETTINGS
    if cfg.LOSS.name != CLASSIFICATION_LOSS or settings.EXTRACT_TRUNK_FEATURES_ONLY:
        return None
    if not cfg.MODEL.HEAD.PARAMS:
        return None
    name, options = cfg.MODEL.HEAD.PARAMS[-1]
    return options["num_classes"] if name == "barlow_linear" else options["dims"][-1]


def check_classifier(cfg) -> None:
    """Raises ConfigError unless the schedules fit the training of a classifier."""
    names = ["lr", *(["lr_head"] if cfg.OPTIMIZER.head_optimizer_params.use_different_lr else [])]
    _check_milestones(cfg, names)
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


def _check_milestones(cfg, names: list[str]) -> None:
    """Raises ConfigError if other epochs than the config's are typed and its milestones are not."""
    epochs = cfg.OPTIMIZER.num_epochs
    keys = {f"OPTIMIZER.param_schedulers.{name}.milestones": name for name in names}
    left = {
        key: cfg.OPTIMIZER.param_schedulers[name].milestones
        for key, name in keys.items()
        if cfg.OPTIMIZER.param_schedulers[name].name == "multistep" and not is_typed(cfg, key)
    }
    if not left or not is_typed(cfg, "OPTIMIZER.num_epochs") or cfg.BARLOW.EXTEND:
        return
    shipped = _shipped_epochs(cfg.BARLOW.COMMAND)
    if shipped in (None, epochs):
        return
    scaled = {key: _in_proportion(each, epochs / shipped) for key, each in left.items()}
    remedy = "set, in proportion, " + " ".join(
        shlex.quote(override(key, milestones)) for key, milestones in scaled.items()
    )
    last = max(milestones[-1] for milestones in scaled.values())
    if last >= epochs:
        remedy = f"set config.OPTIMIZER.num_epochs={last + 1} or more, which has room for them"
    raise ConfigError(
        "OPTIMIZER.num_epochs",
        epochs,
        f"the rate falls at the milestones of {shipped} epochs; {remedy}",
    )


def _in_proportion(milestones: Sequence[int], share: float) -> list[int]:
    """Each milestone times `share`, in whole epochs, one after the other from 1."""
    scaled = [0]
    for milestone in milestones:
        scaled.append(max(round(milestone * share), scaled[-1] + 1))
    return scaled[1:]


def _shipped_epochs(command: Sequence[str]) -> int | None:
    """The epochs of the shipped config that a command line names, with its groups; None without one."""
    words = [str(word) for word in command]
    names = [word.removeprefix("config=") for word in words if word.startswith("config=")]
    groups = tuple(word for word in words if re.match(r"\+*config/", word))
    try:
        return compose_config(names[-1].removesuffix(".yaml"), groups).OPTIMIZER.num_epochs
    except (LookupError, HydraException):  # a config of the user's own
        return None


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
        return  # downloaded by VISSL after the checks, and looked at then; or not read at all
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
        instead = checkpoint_in(path) or "a pretrained checkpoint (docs/evaluation.md)"
        remedy = f"cannot be read ({error.strerror}); name {instead}"
        raise ConfigError(key, path, remedy) from None
    except CheckpointError as error:
        raise ConfigError(key, path, str(error).removeprefix(f"{path}: ")) from None


def check_normalization(cfg) -> None:
    """Raises ConfigError if a pretrained trunk would be shown other numbers than it learnt from.

    Only this plugin's checkpoints say how their views were normalised; a value that is typed is taken.
    """
    path = cfg.MODEL.WEIGHTS_INIT.PARAMS_FILE
    if pretrains(cfg) or not os.path.isfile(path):
        return
    try:
        views = pretraining_views(read_checkpoint(path))
    except (CheckpointError, OSError):  # of a run that has begun, which does not read it again
        return
    if views is None:
        return
    refusals = Refusals()
    for split in ("TEST",) if cfg.TEST_ONLY else ("TRAIN", "TEST"):
        for place, transform in enumerate(cfg.DATA[split].TRANSFORMS):
            if transform["name"] != "Normalize":
                continue
            for name, learnt in (("mean", list(views.mean)), ("std", list(views.std))):
                key = f"DATA.{split}.TRANSFORMS.{place}.{name}"
                given = transform.get(name)
                same = np.allclose(given, learnt, rtol=0, atol=_SAME_NUMBERS)
                if not (same or is_typed(cfg, key)):
                    remedy = (
                        f"the views that {path} was pretrained on were normalised otherwise; set "
                        f"{shlex.quote(override(key, learnt))}, or type this value to keep it"
                    )
                    refusals.add(ConfigError(key, given, remedy))
    refusals.raise_all()
