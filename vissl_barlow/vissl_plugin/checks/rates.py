"""Refuses learning rates and weight decays that would be others than those given."""

import itertools
import math
from collections.abc import Iterator, Sequence

from vissl_barlow.vissl_plugin.checks.common import Refusals, is_typed, vissl_defaults
from vissl_barlow.vissl_plugin.checks.unread_optimizer import SCHEDULES
from vissl_barlow.vissl_plugin.errors import ConfigError

_HEADS = "OPTIMIZER.head_optimizer_params"
# The schedules that VISSL scales to the batch, beside those with "cosine" in their names.
_SCALABLE = {"multistep", "step", "step_with_fixed_gamma", "composite", "linear", "inverse_sqrt"}
_SCALABLE |= {"constant"}
# VISSL rounds the ratio to six digits.
_SAME_RATIO = 1e-5


def check_rates(cfg) -> None:
    """Raises ConfigError for schedules that VISSL would change, or cannot scale to the batch."""
    refusals = Refusals()
    refusals.add(*_of_rates(cfg))
    refusals.raise_all()


def _of_rates(cfg) -> Iterator[ConfigError]:
    heads, schedules = cfg.OPTIMIZER.head_optimizer_params, cfg.OPTIMIZER.param_schedulers
    yield from _of_rate(cfg, "lr")
    if heads.use_different_lr:
        if schedules.lr_head == vissl_defaults()["OPTIMIZER"]["param_schedulers"]["lr_head"]:
            yield ConfigError(
                f"{_HEADS}.use_different_lr",
                True,
                f"config.{SCHEDULES}.lr_head is VISSL's default, {schedules.lr_head.name}; set its "
                "name and its values, or this to false",
            )
        else:
            yield from _of_rate(cfg, "lr_head")
    if "weight_decay" in schedules and "weight_decay_head" not in schedules:
        yield ConfigError(
            f"{SCHEDULES}.weight_decay",
            schedules.weight_decay,
            f"is of the trunk alone, and heads would keep config.{_HEADS}.weight_decay; give "
            f"config.{SCHEDULES}.weight_decay_head too",
        )


def _of_rate(cfg, schedule: str) -> Iterator[ConfigError]:
    options, key = cfg.OPTIMIZER.param_schedulers[schedule], f"{SCHEDULES}.{schedule}"
    scaling = options.auto_lr_scaling
    if scaling.auto_scale:
        for name in ("base_value", "base_lr_batch_size"):
            if not scaling[name] > 0:
                yield ConfigError(f"{key}.auto_lr_scaling.{name}", scaling[name], "must be above 0")
        if scaling.scaling_type not in ("linear", "sqrt"):
            remedy = "set linear or sqrt"
            yield ConfigError(f"{key}.auto_lr_scaling.scaling_type", scaling.scaling_type, remedy)
        yield from _of_scaled(cfg, key, options)
    if options.name != "barlow_warmup_cosine":
        return
    if not 0 <= options.warmup_epochs < cfg.OPTIMIZER.num_epochs:
        yield ConfigError(
            f"{key}.warmup_epochs",
            options.warmup_epochs,
            "the warm-up must be shorter than the training, "
            f"config.OPTIMIZER.num_epochs={cfg.OPTIMIZER.num_epochs}",
        )
    if not options.start_value > 0:
        yield ConfigError(
            f"{key}.start_value", options.start_value, "the peak rate must be above 0"
        )
    elif not 0 <= options.end_value <= options.start_value:
        yield ConfigError(
            f"{key}.end_value",
            options.end_value,
            "the last rate must lie between 0 and start_value",
        )


def _of_scaled(cfg, key: str, options) -> Iterator[ConfigError]:
    """What VISSL's scaling to the batch makes of a schedule (vissl/utils/hydra_config.py:179)."""
    base, off = options.auto_lr_scaling.base_value, f"config.{key}.auto_lr_scaling.auto_scale=false"
    # A typed start_value is looked at with what is not read.
    if (
        "cosine" in options.name
        and options.start_value != base
        and is_typed(cfg, f"{key}.end_value")
        and not is_typed(cfg, f"{key}.start_value")
    ):
        yield ConfigError(
            f"{key}.end_value",
            options.end_value,
            f"the peak rate is config.{key}.auto_lr_scaling.base_value={base}, and the last one the "
            f"share end_value / start_value of it; set config.{key}.start_value={base} too, or {off}",
        )
    if "cosine" not in options.name and options.name not in _SCALABLE:
        yield ConfigError(
            f"{key}.auto_lr_scaling.auto_scale",
            True,
            f"VISSL does not scale {options.name} to the batch; set it to false, and its rates",
        )
    if options.name in ("multistep", "step") and not _is_geometric(options["values"]):
        yield ConfigError(
            f"{key}.values",
            options["values"],
            "VISSL scales the first and multiplies by the ratio of the first two from there on; set "
            f"values of one ratio, or {off} and the rates themselves",
        )
    if options.name == "composite" and any(each["name"] == "linear" for each in options.schedulers):
        yield ConfigError(
            f"{key}.auto_lr_scaling.auto_scale",
            True,
            "VISSL would put another start into the linear schedule, and on one node leave it out; set "
            "it to false and give the rates themselves, or take barlow_warmup_cosine",
        )


def _is_geometric(values: Sequence[float]) -> bool:
    """Whether each value is the one before times the ratio of the first two."""
    ratio = values[1] / values[0] if len(values) > 1 and values[0] else 0
    return all(
        math.isclose(after, before * ratio, rel_tol=_SAME_RATIO)
        for before, after in itertools.pairwise(values)
    )
