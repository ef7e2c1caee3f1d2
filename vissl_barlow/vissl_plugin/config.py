"""The config class that carries the plugin's registration into every process."""

from vissl.config import AttrDict


class BarlowConfig(AttrDict):
    """VISSL's `AttrDict`; unpickling it registers the plugin in that process first."""

    def __reduce__(self):
        return restore_config, (dict(self),)


def restore_config(entries: dict) -> BarlowConfig:
    """Rebuilds a pickled config after registering the plugin."""
    from vissl_barlow.vissl_plugin.launch import register

    register()
    return BarlowConfig(entries)
