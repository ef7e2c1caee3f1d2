"""Registration in every process VISSL starts.

VISSL loads no out-of-tree code, and its workers are fresh interpreters (spawn, forkserver, submitit).
What reaches all of them is the pickled config: `BarlowConfig` takes the place of VISSL's `AttrDict`
where configs are made, and unpickling one registers this plugin first.
"""

import importlib

_COMPONENTS = (
    "loss",
    "projector",
    "resnet",
    "twins_model",
    "objectives",
    "byol",
    "lars",
    "schedule",
    "views",
    "data",
    "task",
    "train_step",
    "linear",
    "weights",
)
_registered = False


def register() -> None:
    """Registers the components and mends VISSL in this process. Idempotent.

    Raises:
        ImportError: VISSL or classy-vision is not installed; the message says how to install them.
    """
    global _registered
    if _registered:
        return
    _registered = True  # before the imports: unpickling below a component's import comes back here
    try:
        importlib.import_module("vissl_barlow.vissl_plugin.compat").apply()
        for component in _COMPONENTS:
            importlib.import_module(f"vissl_barlow.vissl_plugin.{component}")
        _take_part_in_configs()
    except BaseException:
        _registered = False
        raise


def _take_part_in_configs() -> None:
    from vissl.config import attr_dict
    from vissl.utils import hydra_config

    from vissl_barlow.vissl_plugin import hooks, record, validate
    from vissl_barlow.vissl_plugin.config import BarlowConfig

    # `AttrDict.__init__` looks its own name up for nested dictionaries: replaced there, every level
    # of a config is ours. Modules that imported the class earlier keep it as our base class.
    attr_dict.AttrDict = hydra_config.AttrDict = BarlowConfig
    validate.install()
    hooks.install()
    record.install()
