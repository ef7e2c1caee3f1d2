"""Refuses a task under which the `BARLOW` section would be without effect."""

from classy_vision.tasks import TASK_REGISTRY

from vissl_barlow.vissl_plugin.components.task import BarlowTaskBase
from vissl_barlow.vissl_plugin.errors import ConfigError


def check_task(cfg) -> None:
    """Raises ConfigError for a task that is not the plugin's or made from it."""
    name = cfg.TRAINER.TASK_NAME
    task = TASK_REGISTRY.get(name)
    if task is None or not issubclass(task, BarlowTaskBase):
        raise ConfigError(
            "TRAINER.TASK_NAME",
            name,
            "a config with a BARLOW section runs under barlow_task (pretraining) or "
            "barlow_evaluation_task; set one of these (MODEL.FSDP_CONFIG.AUTO_SETUP_FSDP and "
            "MODEL.SHARDED_DDP_SETUP.USE_SDP put in VISSL's own), or remove the section",
        )
