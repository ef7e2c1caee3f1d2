"""Refuses names of parameters that the model has not, which VISSL passes over in silence."""

from collections.abc import Callable, Iterable

from vissl_barlow.vissl_plugin.checks.common import Refusals, model_on_meta, value_at
from vissl_barlow.vissl_plugin.errors import ConfigError, near_names

# Parameters named in a message about something that several of them have in their names.
_SHOWN = 3
# So VISSL calls them there, on any number of processes (vissl/hooks/state_update_hooks.py:245).
_OF_HOOK = "module."


def check_parameter_names(cfg) -> None:
    """Raises ConfigError for names that nothing has. Of a config whose model can be built."""
    frozen, for_a_while = cfg.MODEL.NON_TRAINABLE_PARAMS, cfg.MODEL.TEMP_FROZEN_PARAMS_ITER_MAP
    undecayed = cfg.OPTIMIZER.non_regularized_parameters
    if not (frozen or for_a_while or undecayed):
        return
    names = [name for name, _ in model_on_meta(cfg).named_parameters()]
    of_hook = [_OF_HOOK + name for name in names]
    refusals = Refusals()
    for key, given, known, matches in (
        ("MODEL.NON_TRAINABLE_PARAMS", frozen, names, names.__contains__),
        (
            "MODEL.TEMP_FROZEN_PARAMS_ITER_MAP",
            [entry[0] for entry in for_a_while],
            of_hook,
            of_hook.__contains__,
        ),
        (
            "OPTIMIZER.non_regularized_parameters",
            undecayed,
            names,
            lambda part: any(part in name for name in names),
        ),
    ):
        with refusals:
            _check(cfg, key, given, known, matches)
    refusals.raise_all()


def _check(cfg, key: str, given: Iterable[str], known: list[str], matches: Callable) -> None:
    for name in given:
        if matches(name):
            continue
        within = [each for each in known if name.removeprefix(_OF_HOOK) in each]
        if within:
            shown = ", ".join([*within[:_SHOWN], *(["..."] if len(within) > _SHOWN else [])])
            remedy = f"{name} is no parameter; each is named in full: {shown}"
        else:
            near = near_names(name, known, otherwise=known[:_SHOWN])
            remedy = f"{name} is no parameter's name; {near.replace('it has', 'they are such as')}"
        raise ConfigError(key, value_at(cfg, key), remedy)
