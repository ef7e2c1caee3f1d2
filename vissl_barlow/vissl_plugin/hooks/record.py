"""Every run leaves its provenance in its folder: pretraining, evaluations and feature extraction."""

from pathlib import Path

import torch.distributed as dist
from classy_vision.generic.distributed_util import is_primary
from vissl.utils.checkpoint import get_checkpoint_folder

from vissl_barlow.provenance import note_hours, write_provenance
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook


class RunRecord(BarlowHook):
    """Writes `barlow_run.json` when training or testing starts, and the time it has taken."""

    def on_start(self, task) -> None:
        if is_primary():
            record_start(task)

    def on_phase_end(self, task) -> None:
        if is_primary():
            note_hours(Path(task.checkpoint_folder))

    def on_end(self, task) -> None:
        if is_primary():
            note_hours(Path(task.checkpoint_folder))


def record_start(task) -> None:
    """Notes a start of the run that `task`, one of the plugin's, is made for."""
    cfg = task.config
    write_provenance(
        Path(get_checkpoint_folder(cfg)),
        cfg.SEED_VALUE,
        cfg.BARLOW.COMMAND,
        weights=cfg.MODEL.WEIGHTS_INIT.PARAMS_FILE,
        processes=dist.get_world_size(),
        data=task.images,
    )
