"""Every run leaves its provenance in its folder: pretraining, evaluations and feature extraction.

Active for configs with a `BARLOW` section. The command line is known where VISSL resolves its
config, and travels in it (`config.BARLOW.COMMAND`): workers have command lines of their own.
"""

from pathlib import Path

import torch.distributed as dist
import vissl.hooks
from classy_vision.generic.distributed_util import is_primary
from classy_vision.hooks.classy_hook import ClassyHook
from vissl.trainer.trainer_main import SelfSupervisionTrainer
from vissl.utils import hydra_config
from vissl.utils.checkpoint import get_checkpoint_folder

from vissl_barlow.provenance import command_line, note_hours, write_provenance


def install() -> None:
    """Records every run that VISSL's runner and tools start from now on."""

    resolve = hydra_config.infer_and_assert_hydra_config
    add_loss_hooks = vissl.hooks.add_loss_hooks
    extract = SelfSupervisionTrainer.extract

    def resolve_with_command(cfg, *engine_name):
        if "BARLOW" in cfg:
            cfg.BARLOW.setdefault("COMMAND", command_line())
        return resolve(cfg, *engine_name)

    def add_loss_hooks_and_record(hooks, loss_cfg, cfg):
        hooks = add_loss_hooks(hooks, loss_cfg, cfg)
        return [*hooks, RunRecord()] if "BARLOW" in cfg else hooks

    def extract_and_record(trainer, output_folder):
        recorded = "BARLOW" in trainer.cfg and is_primary()
        if recorded:
            record_start(trainer.cfg)
        extract(trainer, output_folder)
        if recorded:
            note_hours(Path(get_checkpoint_folder(trainer.cfg)))

    hydra_config.infer_and_assert_hydra_config = resolve_with_command
    vissl.hooks.add_loss_hooks = add_loss_hooks_and_record
    SelfSupervisionTrainer.extract = extract_and_record


class RunRecord(ClassyHook):
    """Writes `barlow_run.json` when training or testing starts, and the time it has taken."""

    on_phase_start = ClassyHook._noop
    on_forward = ClassyHook._noop
    on_loss_and_meter = ClassyHook._noop
    on_backward = ClassyHook._noop
    on_update = ClassyHook._noop
    on_step = ClassyHook._noop

    def on_start(self, task) -> None:
        if is_primary():
            record_start(task.config)

    def on_phase_end(self, task) -> None:
        if is_primary():
            note_hours(Path(task.checkpoint_folder))

    def on_end(self, task) -> None:
        if is_primary():
            note_hours(Path(task.checkpoint_folder))


def record_start(cfg) -> None:
    """Notes a start of the run that `cfg`, a resolved config, describes."""
    write_provenance(
        Path(get_checkpoint_folder(cfg)),
        cfg.SEED_VALUE,
        cfg.BARLOW.COMMAND,
        weights=cfg.MODEL.WEIGHTS_INIT.PARAMS_FILE,
        processes=dist.get_world_size(),
    )
