"""Replaces functions of VISSL's where it has no door, and says for which runs.

A replacement that current Python, torch, numpy or scikit-learn need applies to every run of VISSL's.
All others leave runs without a `BARLOW` section in their config as VISSL has them. Most functions get
the config, or an object that has it. For those that get neither, this process remembers whether the
config it runs has the section: VISSL resolves one config per command, and every other process of the
run unpickles that config before anything else (see `register`).
"""

import functools
import types
from collections.abc import Callable

_runs_barlow = _is_verbose = False


def note_config(config) -> None:
    """Remembers whether the config that this process resolved last has a `BARLOW` section, and its
    `VERBOSE`."""
    global _runs_barlow, _is_verbose
    _runs_barlow = "BARLOW" in config
    _is_verbose = bool(config.get("VERBOSE"))


def in_barlow_run(*args, **kwargs) -> bool:
    """Whether this process runs a config with a `BARLOW` section; for functions without a config."""
    return _runs_barlow


def is_verbose() -> bool:
    """Whether this process runs a config with VERBOSE; for functions without a config."""
    return _is_verbose


def of_barlow_config(config, *args, **kwargs) -> bool:
    """Whether the config that a function gets first has a `BARLOW` section."""
    return "BARLOW" in config


def of_barlow_owner(owner, *args, **kwargs) -> bool:
    """Whether the config of the object whose method it is (`owner.cfg`) has a `BARLOW` section."""
    return "BARLOW" in owner.cfg


def always(*args, **kwargs) -> bool:
    """For what current libraries need: in every run of VISSL's."""
    return True


def wrap(owner, name: str, applies: Callable[..., bool]):
    """Replaces `owner.name` by the decorated function, which gets the original as first argument.

    `owner` is a module or a class; replacing again is without effect. `applies` gets a call's
    arguments; where it says no, the original is called as if nothing had been replaced.

    Raises:
        AttributeError: `owner` has no `name` (any more).
    """

    def install(replacement):
        original = getattr(owner, name)
        if hasattr(original, "replaced_by"):
            return replacement

        @functools.wraps(original)
        def replaced(*args, **kwargs):
            if applies(*args, **kwargs):
                return replacement(original, *args, **kwargs)
            return original(*args, **kwargs)

        vars(replaced)["replaced_by"] = replacement
        setattr(owner, name, replaced)
        return replacement

    return install


def overlay(owner: types.ModuleType, name: str, **replaced) -> None:
    """Gives the module `owner` values of its own for names of what it calls `name`, a module or
    another object that modules share.

    Raises:
        AttributeError: `owner` has no `name` (any more).
    """
    setattr(owner, name, Overlay(getattr(owner, name), **replaced))


class Overlay(types.ModuleType):
    """A module, or another object that modules share, some of whose names are replaced; all others
    are its own, whenever asked."""

    def __init__(self, module, **replaced) -> None:
        super().__init__(getattr(module, "__name__", type(module).__name__), module.__doc__)
        self.__dict__.update(replaced)
        self.__dict__["_module"] = module

    def __getattr__(self, name: str):
        return getattr(self._module, name)
