"""Registration in every process VISSL starts.

VISSL loads no out-of-tree code, and its workers are fresh interpreters (spawn, forkserver, submitit).
What reaches all of them is the pickled config: `BarlowConfig` takes the place of VISSL's `AttrDict`
where configs are made, and unpickling one registers this plugin first.
"""

import importlib
import pkgutil

from vissl.config import AttrDict, attr_dict

from vissl_barlow.provenance import command_line
from vissl_barlow.vissl_plugin.errors import ConfigError, set_keys_of
from vissl_barlow.vissl_plugin.wrap import note_config

_registered = False


class BarlowConfig(AttrDict):
    """VISSL's `AttrDict`; unpickling it registers the plugin in that process first."""

    def __reduce__(self):
        return restore_config, (dict(self),)


def restore_config(entries: dict) -> BarlowConfig:
    """Rebuilds a pickled config, or a section of one, after registering the plugin."""
    register()
    if "BARLOW" in entries:
        note_config(entries)
    return BarlowConfig(entries)


def register() -> None:
    """Registers the components and mends VISSL in this process. Idempotent.

    Raises:
        ImportError: VISSL or classy-vision is not installed.
    """
    global _registered
    if _registered:
        return
    _registered = True  # before the imports: unpickling below a component's import comes back here
    try:
        from vissl_barlow.vissl_plugin import components, mends

        mends.apply()
        # Importing a component registers it: a new file there needs no line here.
        for component in pkgutil.iter_modules(components.__path__, f"{components.__name__}."):
            importlib.import_module(component.name)
        _take_part_in_configs()
    except BaseException:
        _registered = False
        raise


def _take_part_in_configs() -> None:
    from vissl.utils import hydra_config

    from vissl_barlow.vissl_plugin import checks

    # `AttrDict.__init__` looks its own name up for nested dictionaries: replaced there, every level
    # of a config is ours. Modules that imported the class earlier keep it as our base class.
    attr_dict.AttrDict = hydra_config.AttrDict = BarlowConfig
    checks.install()
    resolve = hydra_config.infer_and_assert_hydra_config

    def note_and_resolve(cfg, *engine_name):  # VISSL 0.1.6 does not pass the engine, main does
        note_config(cfg)
        if "BARLOW" in cfg:
            if not isinstance(cfg.BARLOW, dict):
                raise ConfigError("BARLOW", cfg.BARLOW, set_keys_of("BARLOW"))
            # Known here alone: workers have command lines of their own.
            cfg.BARLOW.setdefault("COMMAND", command_line())
        return resolve(cfg, *engine_name)

    hydra_config.infer_and_assert_hydra_config = note_and_resolve
