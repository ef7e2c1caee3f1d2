"""Keys of VISSL's that the run would not read: what the user set there would be without effect.

A key is set where its value is another than VISSL's default, or, of what one config leaves behind
for the next, where the command line names it.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from classy_vision.optim import OPTIMIZER_REGISTRY
from classy_vision.optim.param_scheduler import PARAM_SCHEDULER_REGISTRY
from vissl.models.heads import MODEL_HEADS_REGISTRY
from vissl.models.trunks import MODEL_TRUNKS_REGISTRY

from vissl_barlow.vissl_plugin.checks.common import (
    Refusals,
    named_heads,
    typed_keys,
    vissl_defaults,
)
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.hooks import pretrains
from vissl_barlow.vissl_plugin.settings import all_keys

# Of OPTIMIZER, what VISSL's optimizers alone read, each by its own name.
_OF_OPTIMIZERS = {
    "nesterov": ("sgd",),
    "use_larc": ("sgd",),
    "larc_config": ("sgd",),
    "momentum": ("sgd", "rmsprop"),
    "betas": ("adam", "adamw"),
}
# What each of VISSL's schedules reads, of the keys that one kind alone has.
_OF_SCHEDULES = {
    "values": ("multistep", "step"),
    "milestones": ("multistep",),
    "value": ("constant",),
    "schedulers": ("composite",),
    "interval_scaling": ("composite",),
    "lengths": ("composite",),
}
# What a schedule begins with, or stays at, where nothing scales it (vissl/utils/hydra_config.py:187).
_PEAKS = ("start_value", "value", "values")
# VISSL rounds the ratio to six digits.
_SAME_RATIO = 1e-5
# Entries of SKIP_LAYERS that agree with how weights are loaded here.
_SKIPPED = {"num_batches_tracked", "heads"}


def check_unread(cfg, splits: list[str]) -> None:
    """Raises ConfigError for keys that the user set and that nothing in the run reads.

    `splits`: those of "TRAIN" and "TEST" that the run reads.
    """
    found = {}
    for key, remedy in _unread(cfg, splits):
        for name, value, default in _leaves(key, *_looked_up(cfg, key)):
            if value != default:
                found[name] = value, remedy
    # A base config may leave such behind: it is refused where the command line names it.
    typed = sorted(typed_keys(cfg))
    for key, remedy in (*_of_schedules(cfg, typed), *_of_loss(cfg, typed)):
        found[key] = _looked_up(cfg, key)[0], remedy
    refusals = Refusals()
    for name, (value, remedy) in found.items():
        with refusals:
            raise ConfigError(name, value, f"would not be read: {remedy}")
    refusals.raise_all()


def _unread(cfg, splits: list[str]) -> Iterator[tuple[str, str]]:
    """Every key, or section, that nothing in this run reads, and what to do instead."""
    yield from _of_data(cfg, splits)
    yield from _of_model(cfg)
    yield from _of_optimizer(cfg)
    for section in vissl_defaults()["LOSS"]:
        if section not in ("name", cfg.LOSS.name):
            yield f"LOSS.{section}", _remedy_of_loss(cfg)
    yield from _of_steps(cfg) if pretrains(cfg) else _of_plugin(cfg)


def _of_data(cfg, splits: list[str]) -> Iterator[tuple[str, str]]:
    for split in splits:
        if split == "TEST" or cfg.TRAINER.TASK_NAME == "barlow_task":
            for name in ("USE_STATEFUL_DISTRIBUTED_SAMPLER", "USE_DEBUGGING_SAMPLER"):
                yield (
                    f"DATA.{split}.{name}",
                    f"{cfg.TRAINER.TASK_NAME} has a sampler of its own, the same order on any number "
                    "of processes and after any interruption; remove it",
                )
        if split == "TEST":
            yield "DATA.TEST.DROP_LAST", "each test image counts once; remove it"
        if cfg.DATA[split].DATA_LIMIT < 0:
            for name in ("IS_BALANCED", "SKIP_NUM_SAMPLES"):
                yield (
                    f"DATA.{split}.DATA_LIMIT_SAMPLING.{name}",
                    f"all images are used; set config.DATA.{split}.DATA_LIMIT, or remove it",
                )


def _of_model(cfg) -> Iterator[tuple[str, str]]:
    name = cfg.MODEL.TRUNK.NAME
    trunk = MODEL_TRUNKS_REGISTRY.get(name)
    section, keys = getattr(trunk, "section", None), getattr(trunk, "keys", ())
    if section:
        remedy = f"{name} has {', '.join(sorted(keys))}; remove it, or name another trunk"
        for other, default in vissl_defaults()["MODEL"]["TRUNK"].items():
            if other == section:
                yield from ((f"MODEL.TRUNK.{other}.{key}", remedy) for key in {*default} - {*keys})
            elif other == "RESNETS":  # the shipped configs' own; what is typed is the user's
                typed = (key for key in typed_keys(cfg) if key.startswith("MODEL.TRUNK.RESNETS."))
                yield from ((key, remedy) for key in sorted(typed))
            elif isinstance(default, Mapping):
                yield f"MODEL.TRUNK.{other}", remedy
    heads = [MODEL_HEADS_REGISTRY.get(head) for head, _ in named_heads(cfg)]
    if heads and all(hasattr(head, "takes_representations") for head in heads):
        for key in ("BATCHNORM_EPS", "BATCHNORM_MOMENTUM", "PARAMS_MULTIPLIER"):
            yield f"MODEL.HEAD.{key}", "this plugin's heads have torch's defaults; remove it"
    skipped = cfg.MODEL.WEIGHTS_INIT.SKIP_LAYERS
    if set(skipped) - _SKIPPED:
        yield "MODEL.WEIGHTS_INIT.SKIP_LAYERS", "all of the trunk is loaded; remove it"


def _of_optimizer(cfg) -> Iterator[tuple[str, str]]:
    name = cfg.OPTIMIZER.name
    own = getattr(OPTIMIZER_REGISTRY.get(name), "keys", None)
    for key, readers in _OF_OPTIMIZERS.items():
        known = own is not None or name in {
            each for some in _OF_OPTIMIZERS.values() for each in some
        }
        if known and not (key in own if own is not None else name in readers):
            others = " or ".join(readers)
            yield (
                f"OPTIMIZER.{key}",
                f"{name} has no {key}, {others} has; remove it, or set the name",
            )


def _of_schedules(cfg, typed: list[str]) -> Iterator[tuple[str, str]]:
    schedules = cfg.OPTIMIZER.param_schedulers
    for word in typed:
        schedule, _, key = word.removeprefix("OPTIMIZER.param_schedulers.").partition(".")
        if not word.startswith("OPTIMIZER.param_schedulers.") or schedule not in schedules:
            continue
        if schedule == "lr_head" and not cfg.OPTIMIZER.head_optimizer_params.use_different_lr:
            remedy = (
                "set config.OPTIMIZER.head_optimizer_params.use_different_lr=true, or remove it"
            )
            yield word, f"heads have the trunk's rate; {remedy}"
            continue
        options = schedules[schedule]
        own = getattr(PARAM_SCHEDULER_REGISTRY.get(options.name), "keys", None)
        readers = _OF_SCHEDULES.get(key, (options.name,))
        if key == "update_interval" and own is not None and options.update_interval != "step":
            yield word, f"{options.name} follows every step; remove it"
        elif key in _OF_SCHEDULES and options.name not in readers:
            others = " or ".join(readers)
            yield word, f"{options.name} has no {key}, {others} has; remove it, or set the name"
        elif remedy := _of_scaling(schedule, options, key, typed):
            yield word, remedy


def _of_scaling(schedule: str, options, key: str, typed: list[str]) -> str:
    """What to do instead of a schedule's typed `key` that its automatic scaling, or the lack of it,
    leaves unread; "" where it is read."""
    scaling = options.auto_lr_scaling
    section, _, of_scaling = key.partition(".")
    if section == "auto_lr_scaling":
        is_read = scaling.auto_scale or of_scaling in ("", "auto_scale")
        peak = "start_value, value or values"
        return "" if is_read else f"the rate is not scaled; set {peak}, or auto_scale=true"
    if section not in _PEAKS or not scaling.auto_scale:
        return ""
    base = f"OPTIMIZER.param_schedulers.{schedule}.auto_lr_scaling.base_value"
    unscaled = "or auto_lr_scaling.auto_scale=false"
    peak = options[section][0] if section == "values" else options[section]
    if base not in typed or peak != scaling.base_value:
        scaled = f"the rate is config.{base}={scaling.base_value}, scaled to the batch"
        return f"{scaled}; set both, alike, {unscaled}"
    if section == "values" and not _is_geometric(options["values"]):
        return (
            f"a scaled rate falls by values[1] / values[0] each time; set such values, {unscaled}"
        )
    return ""


def _is_geometric(values) -> bool:
    ratios = [after / before for before, after in itertools.pairwise(values) if before]
    return all(math.isclose(ratio, ratios[0], rel_tol=_SAME_RATIO) for ratio in ratios)


def _of_loss(cfg, typed: list[str]) -> Iterator[tuple[str, str]]:
    for word in typed:
        section = word.removeprefix("LOSS.").partition(".")[0]
        # `embedding_dim` is only compared with the projector's.
        compared = word.endswith(".embedding_dim")
        if word.startswith("LOSS.") and section not in ("name", cfg.LOSS.name) and not compared:
            yield word, _remedy_of_loss(cfg)


def _remedy_of_loss(cfg) -> str:
    return f"config.LOSS.name={cfg.LOSS.name}; set config.LOSS.{cfg.LOSS.name}, or the name"


def _of_steps(cfg) -> Iterator[tuple[str, str]]:
    """What VISSL's own train step would read in a pretraining."""
    if cfg.TRAINER.TRAIN_STEP_NAME != "barlow_train_step":
        return
    for key in ("METERS.name", "METERS.names"):
        yield key, "a pretraining has no labels to measure with; remove it"
    yield (
        "DISTRIBUTED.MANUAL_GRADIENT_REDUCTION",
        "barlow_train_step leaves the gradients to torch; remove it",
    )


def _of_plugin(cfg) -> Iterator[tuple[str, str]]:
    yield "BARLOW.PROBE.KIND", "this is no pretraining; remove it"
    if cfg.TRAINER.TASK_NAME == "barlow_evaluation_task":
        for key in ("AMP_DTYPE", "CHANNELS_LAST", "COMPILE", "CHUNK_SIZE", "CHUNK_BATCH_NORM"):
            yield f"BARLOW.{key}", "barlow_evaluation_task has none; remove it"


def _looked_up(cfg, key: str) -> tuple[Any, Any]:
    """Value and default of a key; the default of a section's keys by their names."""
    defaults: Any = {**vissl_defaults(), "BARLOW": _defaults_of_plugin()}
    value: Any = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
        defaults = defaults.get(part) if isinstance(defaults, Mapping) else None
    return value, defaults


def _defaults_of_plugin() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in all_keys():
        *parents, name = key.name.split(".")
        section = found
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = key.default
    return found


def _leaves(key: str, value: Any, default: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and default of what is below `key`; of what has no default, itself."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            known = isinstance(default, Mapping) and name in default
            yield from _leaves(f"{key}.{name}", inner, default[name] if known else inner)
    else:
        yield key, value, default
