"""Hooks of VISSL's trainer: what a run says, records and learns, and how it is stopped.

Active for configs with a `BARLOW` section; its keys are in docs/pretraining.md.
"""

from pathlib import Path

import vissl.hooks
from classy_vision.generic.distributed_util import is_primary
from vissl.trainer.trainer_main import SelfSupervisionTrainer
from vissl.utils import hydra_config
from vissl.utils.checkpoint import get_checkpoint_folder

from vissl_barlow.provenance import command_line, note_hours
from vissl_barlow.vissl_plugin.hooks.finite import BarlowFiniteLoss
from vissl_barlow.vissl_plugin.hooks.monitor import BarlowMonitor
from vissl_barlow.vissl_plugin.hooks.probe import BarlowProbe
from vissl_barlow.vissl_plugin.hooks.record import RunRecord, record_start
from vissl_barlow.vissl_plugin.hooks.stop import BarlowStop
from vissl_barlow.vissl_plugin.hooks.target import BarlowTargetHook


def install() -> None:
    """Adds the hooks to those of `default_hook_generator`, and records every run that VISSL starts."""
    resolve = hydra_config.infer_and_assert_hydra_config
    add_loss_hooks = vissl.hooks.add_loss_hooks
    extract = SelfSupervisionTrainer.extract

    def resolve_with_command(cfg, *engine_name):
        # The command line is known here; workers have command lines of their own.
        if "BARLOW" in cfg:
            cfg.BARLOW.setdefault("COMMAND", command_line())
        return resolve(cfg, *engine_name)

    def add_loss_and_barlow_hooks(hooks, loss_cfg, cfg):
        hooks = add_loss_hooks(hooks, loss_cfg, cfg)
        if "BARLOW" not in cfg:
            return hooks
        return [*hooks, *_pretraining_hooks(cfg), RunRecord()]

    def extract_and_record(trainer, output_folder):
        recorded = "BARLOW" in trainer.cfg and is_primary()
        if recorded:
            record_start(trainer.cfg)
        extract(trainer, output_folder)
        if recorded:
            note_hours(Path(get_checkpoint_folder(trainer.cfg)))

    hydra_config.infer_and_assert_hydra_config = resolve_with_command
    vissl.hooks.add_loss_hooks = add_loss_and_barlow_hooks
    SelfSupervisionTrainer.extract = extract_and_record


def _pretraining_hooks(cfg) -> list:
    if not cfg.MODEL.BASE_MODEL_NAME.startswith("barlow_"):
        return []
    hooks: list = []
    if cfg.MODEL.BASE_MODEL_NAME == "barlow_byol_model":
        hooks.append(BarlowTargetHook(cfg.MODEL.TARGET_MOMENTUM))
    finite_loss = BarlowFiniteLoss()
    hooks += [finite_loss, BarlowMonitor()]
    if cfg.TRAINER.TASK_NAME == "barlow_task":  # the one that resumes within an epoch
        hooks.append(BarlowStop(finite_loss.check))
    probe = cfg.BARLOW.PROBE
    if probe.KIND:
        hooks.append(BarlowProbe(probe.KIND, probe.EVERY_EPOCHS, probe.NEIGHBOURS))
    return hooks
