"""Every run leaves its provenance in its folder: pretraining, evaluations and feature extraction."""

from pathlib import Path

import torch.distributed as dist
from classy_vision.generic.distributed_util import is_primary
from vissl.utils.checkpoint import get_checkpoint_folder

from vissl_barlow.patient_files import append, replace
from vissl_barlow.provenance import note_hours, note_left, write_provenance
from vissl_barlow.run_files import METRICS_FILE
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook
from vissl_barlow.vissl_plugin.run.checkpoint_folder import (
    set_replaced_checkpoints_aside,
    written_checkpoints,
)

# The logs of a run that every start appends to: VISSL's and the monitor's.
_APPENDED = ("metrics.json", METRICS_FILE)


class RunRecord(BarlowHook):
    """Writes `barlow_run.json` when training or testing starts, and the time it has taken."""

    def on_start(self, task) -> None:
        if is_primary():
            anew, self.left = task.checkpoint is None, False
            paths = [Path(task.checkpoint_folder, name) for name in _APPENDED if anew]
            # What is in them is of an earlier run, until this one has left something.
            self.earlier = {path: path.stat().st_size for path in paths if path.is_file()}
            replaces = anew and not task.config.TEST_ONLY
            self.replaced = written_checkpoints(task.checkpoint_folder) if replaces else {}
            record_start(task, anew)

    def has_left_something(self, task) -> None:
        """To be called on the primary process when a checkpoint or a result was written."""
        if self.left:
            return
        for path, size in self.earlier.items():
            if path.is_file():
                content = path.read_bytes()
                earlier = content[:size].decode(errors="replace").rstrip("\n")
                append(path.with_name(f"{path.name}.replaced"), earlier + "\n")
                replace(path, content[size:].lstrip(b"\n"))
        note_left(Path(task.checkpoint_folder))
        # A final one would pass for this run's, and a later start would resume from another.
        weights = task.config.MODEL.WEIGHTS_INIT.PARAMS_FILE
        set_replaced_checkpoints_aside(self.replaced, keep=weights)
        self.left = True

    def on_phase_end(self, task) -> None:
        if is_primary():
            note_hours(Path(task.checkpoint_folder))

    def on_end(self, task) -> None:
        if is_primary():
            note_hours(Path(task.checkpoint_folder))


def note_saved(task) -> None:
    """Tells `RunRecord`, on the primary process, that a checkpoint or a result was written."""
    for hook in task.hooks:
        if isinstance(hook, RunRecord):
            hook.has_left_something(task)


def record_start(task, anew: bool) -> None:
    """Notes a start of the run of `task`, one of the plugin's; `anew`: it is no resume."""
    cfg = task.config
    write_provenance(
        Path(get_checkpoint_folder(cfg)),
        cfg.SEED_VALUE,
        cfg.BARLOW.COMMAND,
        weights=cfg.MODEL.WEIGHTS_INIT.PARAMS_FILE,
        processes=dist.get_world_size(),
        data=task.images,
        derived=cfg.BARLOW.get("DERIVED", ()),
        anew=anew,
    )
