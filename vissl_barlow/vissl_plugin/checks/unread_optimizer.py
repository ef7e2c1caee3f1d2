"""Keys of `config.OPTIMIZER` that its optimizer and its schedules would not read.

Which keys those read is asked of them: of VISSL's by building one from a section that notes what is
looked up.
"""

import copy
from collections.abc import Iterator, Mapping

from classy_vision.optim import OPTIMIZER_REGISTRY
from classy_vision.optim.param_scheduler import PARAM_SCHEDULER_REGISTRY

from vissl_barlow.vissl_plugin.checks.common import vissl_defaults

SCHEDULES = "OPTIMIZER.param_schedulers"
# Of OPTIMIZER, what VISSL reads itself, whatever the optimizer.
_OF_VISSL = {
    *("name", "num_epochs", "weight_decay", "param_schedulers", "head_optimizer_params"),
    *("regularize_bn", "regularize_bias", "non_regularized_parameters"),
    *("construct_single_param_group_only", "use_zero"),
}
# Of its keys that one kind alone reads, by whom.
_OF_OPTIMIZERS = {
    "nesterov": ("sgd",),
    "use_larc": ("sgd",),
    "larc_config": ("sgd",),
    "momentum": ("sgd", "rmsprop"),
    "betas": ("adam", "adamw"),
}
_OF_SCHEDULES = {
    "values": ("multistep", "step"),
    "milestones": ("multistep",),
    "value": ("constant",),
    "schedulers": ("composite",),
    "interval_scaling": ("composite",),
    "lengths": ("composite",),
}
# What a schedule begins with, or stays at, where nothing scales it (vissl/utils/hydra_config.py:187).
_PEAKS = ("start_value", "value", "values", "schedulers")
# What VISSL takes from its schedules (vissl/optimizers/optimizer_helper.py:107).
_SCHEDULED = ("lr", "lr_head", "weight_decay", "weight_decay_head")


class _Noted(dict):
    """A section that notes which of its keys are looked up; its copies note in the same place."""

    def __init__(self, section: Mapping) -> None:
        super().__init__(section)
        self.read: set[str] = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.read.add(key)
        return super().get(key, default)


def keys_read(component, section: Mapping) -> frozenset[str] | None:
    """The keys of `section` that an optimizer or a schedule reads; None if it cannot be told."""
    keys = getattr(component, "keys", None)
    if keys is not None or component is None:
        return keys
    noted = _Noted(copy.deepcopy(section))
    try:
        component.from_config(noted)
    except Exception:
        return None  # what is wrong with the values is said elsewhere
    return frozenset(noted.read)


def of_optimizer(cfg) -> Iterator[tuple[str, str]]:
    """Keys of VISSL's defaults, and what to do instead."""
    name = cfg.OPTIMIZER.name
    optimizer = OPTIMIZER_REGISTRY.get(name)
    read = keys_read(optimizer, cfg.OPTIMIZER)
    if read is not None:
        for key in vissl_defaults()["OPTIMIZER"]:
            if key not in read | _OF_VISSL:
                yield f"OPTIMIZER.{key}", _no_such(name, key, read)
    if cfg.OPTIMIZER.construct_single_param_group_only:
        remedy = (
            "all parameters are one group (construct_single_param_group_only); remove one of them"
        )
        for key in (
            "MODEL.NON_TRAINABLE_PARAMS",
            "OPTIMIZER.non_regularized_parameters",
            "OPTIMIZER.head_optimizer_params.use_different_lr",
            "OPTIMIZER.head_optimizer_params.use_different_wd",
        ):
            yield key, remedy
    if _leaves_biases_alone(cfg):
        yield "OPTIMIZER.regularize_bn", _remedy_of_biases(name)
    for schedule in set(cfg.OPTIMIZER.param_schedulers) - {*_SCHEDULED}:
        # The name alone has no default to be compared with.
        yield f"{SCHEDULES}.{schedule}.name", _remedy_of_schedules()


def of_typed_optimizer(cfg, typed: list[str]) -> Iterator[tuple[str, str]]:
    """Those of the words `typed` that nothing reads, and what to do instead."""
    name, section = cfg.OPTIMIZER.name, cfg.OPTIMIZER
    read = keys_read(OPTIMIZER_REGISTRY.get(name), section)
    known = {*vissl_defaults()["OPTIMIZER"], *_OF_VISSL, *(read or ())}
    for word in typed:
        if not word.startswith("OPTIMIZER."):
            continue
        key = word.split(".")[1]
        if word.startswith(f"{SCHEDULES}."):
            yield from _of_schedule(cfg, word, typed)
        elif read is not None and key not in known:
            yield word, _no_such(name, key, read)
        elif key == "regularize_bias" and section[key] and _leaves_biases_alone(cfg):
            yield word, _remedy_of_biases(name)
        elif word == "OPTIMIZER.weight_decay" and "weight_decay" in section.param_schedulers:
            yield word, f"config.{SCHEDULES}.weight_decay takes its place; remove one of them"
        elif (
            word == "OPTIMIZER.head_optimizer_params.weight_decay"
            and not section.head_optimizer_params.use_different_wd
        ):
            remedy = "set config.OPTIMIZER.head_optimizer_params.use_different_wd=true"
            yield word, f"heads have the trunk's weight decay; {remedy}, or remove it"


def _leaves_biases_alone(cfg) -> bool:
    return cfg.OPTIMIZER.name == "barlow_lars"


def _remedy_of_biases(name: str) -> str:
    return (
        f"{name} takes biases and norms, as all parameters of one dimension, without weight decay "
        "(paper, 2.2); set it to false, or another config.OPTIMIZER.name"
    )


def _remedy_of_schedules() -> str:
    return f"VISSL has schedules of {', '.join(_SCHEDULED)}; remove it"


def _no_such(name: str, key: str, read: frozenset[str]) -> str:
    others = _OF_OPTIMIZERS.get(key) or [
        other for other, each in OPTIMIZER_REGISTRY.items() if key in getattr(each, "keys", ())
    ]
    has = f"{' or '.join(others)} has" if others else f"it has {', '.join(sorted(read))}"
    return f"{name} has no {key}, {has}; remove it, or set the name"


def _of_schedule(cfg, word: str, typed: list[str]) -> Iterator[tuple[str, str]]:
    schedule, _, key = word.removeprefix(f"{SCHEDULES}.").partition(".")
    options = cfg.OPTIMIZER.param_schedulers.get(schedule)
    if options is None or schedule not in _SCHEDULED:
        return
    if schedule == "lr_head" and not cfg.OPTIMIZER.head_optimizer_params.use_different_lr:
        remedy = "set config.OPTIMIZER.head_optimizer_params.use_different_lr=true, or remove it"
        yield word, f"heads have the trunk's rate; {remedy}"
        return
    key = key.partition(".")[0]
    if key == "auto_lr_scaling":
        if remedy := _of_scaling(cfg, word, schedule):
            yield word, remedy
        return
    component = PARAM_SCHEDULER_REGISTRY.get(options.name)
    own, read = getattr(component, "keys", None), keys_read(component, options)
    if key == "update_interval" and own is not None:
        if options.update_interval != "step":
            yield word, f"{options.name} follows every step; remove it"
    elif key not in ("", "name") and read is not None and key not in read:
        others = _OF_SCHEDULES.get(key)
        has = f"{' or '.join(others)} has" if others else f"it has {', '.join(sorted(read))}"
        yield word, f"{options.name} has no {key}, {has}; remove it, or set the name"
        return
    if remedy := _of_scaled(cfg, key, schedule, typed):
        yield word, remedy


def _of_scaling(cfg, word: str, schedule: str) -> str:
    """What to do instead of a typed key of a scaling that is off; "" where it is on."""
    scaling = cfg.OPTIMIZER.param_schedulers[schedule].get("auto_lr_scaling")
    switches = word.rpartition(".")[2] in ("auto_lr_scaling", "auto_scale")
    if schedule.startswith("lr") and scaling and (scaling.auto_scale or switches):
        return ""
    return "the rate is not scaled; set start_value, value or values, or auto_scale=true"


def _of_scaled(cfg, key: str, schedule: str, typed: list[str]) -> str:
    """What to do instead of a typed rate where VISSL puts one that it scales to the batch."""
    options = cfg.OPTIMIZER.param_schedulers[schedule]
    scaling = options.get("auto_lr_scaling")
    of_linear = key == "end_value" and options.name == "linear"
    if not (schedule.startswith("lr") and scaling and scaling.auto_scale):
        return ""
    if key not in _PEAKS and not of_linear:
        return ""
    base = f"{SCHEDULES}.{schedule}.auto_lr_scaling.base_value"
    peak = options[key][0] if key == "values" else options[key]
    if base not in typed or (key != "schedulers" and peak != scaling.base_value):
        scaled = f"the rate is config.{base}={scaling.base_value}, scaled to the batch"
        return f"{scaled}; set both, alike, or auto_lr_scaling.auto_scale=false"
    return ""
