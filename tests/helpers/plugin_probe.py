"""Looks into VISSL's registries, and into the plugin, from a child process."""


def registered_names(config) -> set[str]:
    """Every name registered with VISSL in this process."""
    from classy_vision.dataset.transforms import TRANSFORM_REGISTRY
    from classy_vision.losses import LOSS_REGISTRY
    from classy_vision.optim import OPTIMIZER_REGISTRY
    from classy_vision.optim.param_scheduler import PARAM_SCHEDULER_REGISTRY
    from vissl.data import DATASET_SOURCE_MAP
    from vissl.data.collators import COLLATOR_REGISTRY
    from vissl.models import MODEL_REGISTRY
    from vissl.models.heads import MODEL_HEADS_REGISTRY
    from vissl.models.trunks import MODEL_TRUNKS_REGISTRY

    registries = (
        TRANSFORM_REGISTRY,
        LOSS_REGISTRY,
        OPTIMIZER_REGISTRY,
        PARAM_SCHEDULER_REGISTRY,
        DATASET_SOURCE_MAP,
        COLLATOR_REGISTRY,
        MODEL_REGISTRY,
        MODEL_HEADS_REGISTRY,
        MODEL_TRUNKS_REGISTRY,
    )
    return {name for registry in registries for name in registry}


def runs_barlow(config) -> bool:
    """Whether this process takes itself for one that runs a config with a `BARLOW` section."""
    from vissl_barlow.vissl_plugin.wrap import in_barlow_run

    return in_barlow_run()
