"""Refuses keys that nothing reads, and the plugin's own keys with values out of range.

VISSL takes any key, so a misspelt one would train in silence. Sections that only the plugin reads are
closed; in those it shares with VISSL, the keys of VISSL's own defaults stay open.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from classy_vision.dataset.transforms import TRANSFORM_REGISTRY
from classy_vision.losses import LOSS_REGISTRY
from classy_vision.optim import OPTIMIZER_REGISTRY
from classy_vision.optim.param_scheduler import PARAM_SCHEDULER_REGISTRY
from vissl.models.heads import MODEL_HEADS_REGISTRY
from vissl.models.trunks import MODEL_TRUNKS_REGISTRY

from vissl_barlow.vissl_plugin import settings
from vissl_barlow.vissl_plugin.checks.common import Refusals, named_heads, vissl_defaults
from vissl_barlow.vissl_plugin.components.loss import TermsLoss
from vissl_barlow.vissl_plugin.errors import ConfigError, UnknownKey, near_names


def check_settings(cfg) -> None:
    """Raises ConfigError for unknown keys of `config.BARLOW` and for values out of range."""
    refusals = Refusals()
    known = {key.name: key for key in settings.all_keys()}
    for name, value in _flat(cfg.BARLOW):
        with refusals:
            if name not in known and name not in settings.WRITTEN:
                remedy = f"there is no such key; {near_names(name, known)}"
                raise ConfigError(f"BARLOW.{name}", value, remedy)
            problem = known[name].problem(value) if name in known else None
            if problem:
                raise ConfigError(f"BARLOW.{name}", value, problem)
    refusals.raise_all()


def check_keys(cfg) -> None:
    """Raises ConfigError for keys that the plugin's components would not read.

    A component says which keys it has: the attribute `keys` of an optimizer, a schedule, a transform
    or a trunk, the arguments of a head; a loss refuses others itself.
    """
    refusals = Refusals()
    with refusals:
        _check_loss(cfg)
    for key, name, given, keys in _sections(cfg):
        for unknown in sorted(set(given) - keys - _open_keys(key)):
            with refusals:
                remedy = str(UnknownKey(name, unknown, keys))
                if isinstance(given, _Listed):
                    raise ConfigError(key, given.whole, remedy)
                raise ConfigError(f"{key}.{unknown}", given[unknown], remedy)
    refusals.raise_all()


def _check_loss(cfg) -> None:
    name = cfg.LOSS.name
    loss = LOSS_REGISTRY.get(name)
    if loss is None or not issubclass(loss, TermsLoss):
        return
    section = cfg.LOSS[name]
    try:
        loss.from_config(section)
    except UnknownKey as error:
        raise ConfigError(f"LOSS.{name}.{error.key}", section[error.key], str(error)) from None
    except ValueError:
        return  # about a value: check_model, which tries the loss, says it


class _Listed(dict):
    """The options of one component of a list, which a command line gives as a whole."""

    def __init__(self, whole: Any, options: Mapping) -> None:
        super().__init__(options)
        self.whole = whole


def _sections(cfg) -> Iterator[tuple[str, str, Mapping, frozenset[str]]]:
    """Of each section to check: its key, the component's name, the options given, the component's."""
    optimizer = cfg.OPTIMIZER
    keys = getattr(OPTIMIZER_REGISTRY.get(optimizer.name), "keys", None)
    if keys is not None:
        yield "OPTIMIZER", optimizer.name, optimizer, keys
    for name, schedule in optimizer.param_schedulers.items():
        keys = getattr(PARAM_SCHEDULER_REGISTRY.get(schedule.name), "keys", None)
        if keys is not None:
            yield f"OPTIMIZER.param_schedulers.{name}", schedule.name, schedule, keys
    trunk = MODEL_TRUNKS_REGISTRY.get(cfg.MODEL.TRUNK.NAME)
    keys = getattr(trunk, "keys", None)
    if keys is not None:
        given = cfg.MODEL.TRUNK[trunk.section]
        yield f"MODEL.TRUNK.{trunk.section}", cfg.MODEL.TRUNK.NAME, given, keys
    for head, options in named_heads(cfg):
        keys = _arguments(MODEL_HEADS_REGISTRY.get(head))
        if keys is not None:
            yield "MODEL.HEAD.PARAMS", head, _Listed(cfg.MODEL.HEAD.PARAMS, options), keys
    for split in ("TRAIN", "TEST"):
        transforms = cfg.DATA[split].TRANSFORMS
        for transform in transforms:
            name = transform["name"]
            keys = getattr(TRANSFORM_REGISTRY.get(name), "keys", None)
            if keys is not None:
                options = {key: transform[key] for key in transform if key != "name"}
                yield f"DATA.{split}.TRANSFORMS", name, _Listed(transforms, options), keys


def _arguments(head: type | None) -> frozenset[str] | None:
    """The options of a head; None where it takes any, or is unknown."""
    if head is None:
        return None
    parameters = inspect.signature(head).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return frozenset(parameters) - {"model_config"}


def _open_keys(section: str) -> frozenset[str]:
    """The keys that VISSL's own defaults give a section; none for a list."""
    node: Any = vissl_defaults()
    for part in section.split("."):
        node = node.get(part) or {}
    return frozenset(node if isinstance(node, Mapping) else ())


def _flat(section: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
