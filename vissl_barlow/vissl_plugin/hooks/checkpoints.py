"""VISSL's hook that saves checkpoints and metrics: neither a full disk nor a NaN costs a training."""

import logging
import os
from typing import Any

import torch
from classy_vision.generic.distributed_util import is_primary
from vissl.hooks.log_hooks import LogLossMetricsCheckpointHook
from vissl.utils.checkpoint import is_checkpoint_phase

from vissl_barlow.patient_files import FolderGone
from vissl_barlow.vissl_plugin.hooks.logs import tolerate_failed_logs
from vissl_barlow.vissl_plugin.hooks.record import note_saved
from vissl_barlow.vissl_plugin.run.checkpoint_folder import (
    remove_old_checkpoints,
    unmark_extended_checkpoints,
)


class BarlowCheckpointHook(LogLossMetricsCheckpointHook):
    """Saves as VISSL's hook does (vissl/hooks/log_hooks.py:371; 427 of main), but for three things.

    A save that fails is reported, and training goes on to the next; the last one of a training has no
    next and fails. Weights that are not finite are not saved. Of what was saved, the newest remain,
    and milestones (`BARLOW.KEEP_CHECKPOINTS`, `BARLOW.KEEP_EVERY_EPOCHS`).
    """

    def _checkpoint_model(self, task, mode_frequency, mode_num, mode="phase") -> None:
        self.save(task, mode_frequency, mode_num, mode)

    def checkpoint_model(self, task, world_size, mode_frequency, mode_num, mode="phase") -> None:
        """What VISSL main calls in the place of `_checkpoint_model`."""
        self.save(task, mode_frequency, mode_num, mode)

    def save(self, task, mode_frequency: int, mode_num: int, mode: str = "phase") -> None:
        """Saves if `mode_num`, an epoch ("phase") or a step ("iteration"), is one to save after: every
        `mode_frequency`, and the last epoch.

        Raises:
            OSError: the final checkpoint cannot be written.
            FolderGone: its folder has been removed.
        """
        last = task.num_train_phases
        if not task.train or not is_checkpoint_phase(
            mode_num, mode_frequency, task.train_phase_idx, last, mode
        ):
            return
        if is_primary():
            _refuse_non_finite(task)
        try:
            self._save_as_vissl_does(task, mode_frequency, mode_num, mode)
            if is_primary():
                note_saved(task)
                settings = task.config.BARLOW
                if settings.EXTEND:
                    unmark_extended_checkpoints(task.checkpoint_folder, task.iteration)
                remove_old_checkpoints(
                    task.checkpoint_folder,
                    settings.KEEP_CHECKPOINTS,
                    settings.KEEP_EVERY_EPOCHS,
                    steps=task.iteration,
                    steps_per_epoch=task.max_iteration // last,
                )
        except OSError as error:
            if not os.path.isdir(task.checkpoint_folder):
                raise FolderGone(task.checkpoint_folder) from None
            if mode == "phase" and task.train_phase_idx == last - 1:
                raise
            logging.error(
                "checkpoint of step %d not saved (%s): training goes on, and the next one is tried "
                "in its turn; the checkpoints saved so far remain",
                task.iteration,
                error,
            )

    def _print_and_save_meters(self, task, train_phase_idx) -> None:
        self._save_meters("_print_and_save_meters", task, train_phase_idx)

    def print_and_save_meters(self, task, *arguments) -> None:
        """What VISSL main calls in the place of `_print_and_save_meters`."""
        self._save_meters("print_and_save_meters", task, *arguments)

    def _save_meters(self, name: str, task, *arguments) -> None:
        with tolerate_failed_logs():
            getattr(super(), name)(task, *arguments)
            if task.config.TEST_ONLY:
                note_saved(task)

    def _save_as_vissl_does(self, task, mode_frequency: int, mode_num: int, mode: str) -> None:
        theirs: Any = super()  # 0.1.6 has the first of the two, main the second
        if hasattr(theirs, "_checkpoint_model"):
            theirs._checkpoint_model(task, mode_frequency, mode_num, mode)
        else:
            theirs.checkpoint_model(task, self.world_size, mode_frequency, mode_num, mode)


def _refuse_non_finite(task) -> None:
    """A gradient can be NaN where the loss was finite: the next step would tell, too late."""
    tensors = [t for t in task.base_model.state_dict().values() if t.is_floating_point()]
    if not torch.stack([torch.isfinite(t).all() for t in tensors]).all():
        raise FloatingPointError(
            f"weights that are not finite at step {task.iteration}, not saved; the checkpoints saved "
            "so far are good. Likely causes: a learning rate too high "
            "(config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value), or NaN in the images"
        )
