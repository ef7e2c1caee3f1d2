"""Barlow Twins (Zbontar et al., 2021) as a plugin for VISSL.

Importing this package pulls in neither VISSL nor Detectron2: `vissl_barlow.loss`, `.lars`,
`.schedule`, `.views` and `.projector` work on their own. `register()` adds the components to VISSL.
"""

from vissl_barlow.version import __version__ as __version__


def register() -> None:
    """Registers every component with VISSL and mends VISSL for current libraries; idempotent.

    VISSL users never call it: the hydra plugin does in the main process, and the pickled config
    does in every other one (see `vissl_barlow.vissl_plugin.register`).
    """
    from vissl_barlow.vissl_plugin.register import register as register_with_vissl

    register_with_vissl()
