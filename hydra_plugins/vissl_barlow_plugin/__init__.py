"""Hydra discovers this package when VISSL composes its config; nothing heavy is imported before."""

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class VisslBarlowPlugin(SearchPathPlugin):
    """Adds this plugin's YAML to the search path, and its components to a running VISSL."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from vissl_barlow.paths import config_folder

        # Appended, not prepended: a user's own `configs` and VISSL's keep their precedence.
        for name in ("configs", "benchmark_configs"):
            search_path.append(provider="vissl_barlow", path=f"file://{config_folder(name)}")
        # Other hydra applications in the same environment must not pay for importing VISSL.
        if "vissl.utils.hydra_config" in sys.modules:
            import vissl_barlow

            vissl_barlow.register()
