"""vissl/utils/checkpoint.py and its hook: checkpoints that survive kills, full disks and damage."""

import functools
import heapq
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import torch

from vissl_barlow.atomic_files import temporary_path
from vissl_barlow.checkpoint import CheckpointError, read_checkpoint, save_atomically
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.wrap import wrap

# Config (`config.BARLOW`): checkpoints kept of each kind, after epochs and after iterations (0: all),
# and the epochs that are kept for good, by their number's multiples (0: none).
KEEP_CHECKPOINTS, KEEP_EVERY_EPOCHS = 2, 100


_NAME = re.compile(r"model_(phase|iteration)(\d+)\.torch")


_KINDS = ("phase", "iteration")


def checkpoints_written_atomically() -> None:
    """classy_vision/generic/util.py:350, `torch.save(state, f)` into the final file.

    Always broken: a run killed while it saves leaves half a checkpoint under the name of a whole one.
    """
    from vissl.utils import checkpoint

    @wrap(checkpoint, "save_checkpoint")
    def save_checkpoint(original, checkpoint_folder, state, checkpoint_file):
        os.makedirs(checkpoint_folder, exist_ok=True)
        path = os.path.join(checkpoint_folder, checkpoint_file)
        save_atomically(state, path)
        return path


def newest_checkpoint_linked_atomically() -> None:
    """vissl/utils/io.py:40, `g_pathmgr.exists(file2)` before the link is removed and made anew.

    Always broken: with a relative CHECKPOINT.DIR the link dangles, is taken for absent and never
    moves on; a kill between the two steps leaves no link at all.
    """
    from vissl.utils import checkpoint

    @wrap(checkpoint, "create_file_symlink")
    def create_file_symlink(original, file1, file2):
        folder = os.path.dirname(file2)
        temporary = temporary_path(folder)
        os.symlink(os.path.relpath(file1, folder), temporary)
        os.replace(temporary, file2)


def resume_from_the_newest_whole_checkpoint() -> None:
    """vissl/utils/checkpoint.py:476 and 540: names alone decide, of one kind alone.

    Always broken: a damaged newest checkpoint stops every resume, a damaged final one passes for a
    finished training, iteration checkpoints are overlooked unless they are still being written, and
    with OVERWRITE_EXISTING and nothing but a final checkpoint the path is `<folder>/None`.
    """
    from vissl.utils import checkpoint, distributed_launcher

    for module in (checkpoint, distributed_launcher):

        @wrap(module, "get_resume_checkpoint")
        def get_resume_checkpoint(original, cfg, checkpoint_folder):
            if "BARLOW" in cfg:
                return _resume_path(cfg.CHECKPOINT, checkpoint_folder)
            path = original(cfg, checkpoint_folder)
            return None if path == f"{checkpoint_folder}/None" else path

        @wrap(module, "is_training_finished")
        def is_training_finished(original, cfg, checkpoint_folder):
            if "BARLOW" not in cfg or not original(cfg, checkpoint_folder):
                return original(cfg, checkpoint_folder)
            final = Path(checkpoint_folder).glob("*model_final*.torch")
            return any(_iterations(path) is not None for path in final)


def _resume_path(settings, folder: str) -> str | None:
    if not settings.AUTO_RESUME:
        return None
    wanted = max(settings.LATEST_CHECKPOINT_RESUME_FILE_NUM, 1)
    found = [str(path) for *_, path in islice(whole_checkpoints(folder), wanted)]
    if found:
        logging.info("Resume from file: %s", found[-1])
        return found[-1]
    if any(_numbered(folder, kind) for kind in _KINDS):
        raise ConfigError(
            "CHECKPOINT.DIR",
            folder,
            "every checkpoint there is damaged, and training anew would overwrite them; name another "
            "folder, or set config.CHECKPOINT.AUTO_RESUME=false to start from the beginning",
        )
    return None


def whole_checkpoints(folder: str | os.PathLike) -> Iterator[tuple[int, bool, Path]]:
    """The checkpoints in `folder` to resume from, newest first: (steps done, epoch done, path).

    Each is read, checksums included, when its turn comes; damaged ones are reported and left out.
    """

    def whole(kind: str) -> Iterator[tuple[int, bool, Path]]:
        for _, path in _numbered(folder, kind):
            iterations = _iterations(path)
            if iterations is not None:
                yield iterations, kind == "phase", path

    return heapq.merge(*map(whole, _KINDS), reverse=True)


def _numbered(folder: str | os.PathLike, kind: str) -> list[tuple[int, Path]]:
    """(number in the name, path) of the regular checkpoints of a kind, the largest number first."""
    names = (_NAME.fullmatch(path.name) for path in Path(folder).iterdir())
    found = [(int(m[2]), Path(folder, m[0])) for m in names if m is not None and m[1] == kind]
    return sorted(found, reverse=True)


def _iterations(path: Path) -> int | None:
    """Steps a checkpoint's run had done (-1 where it does not say); None if damaged."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _read_iterations(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)  # asked at validation and again at launch; reported once
def _read_iterations(path: Path, size: int, mtime_ns: int) -> int | None:
    try:
        checkpoint = read_checkpoint(path)
        if not isinstance(checkpoint, Mapping):
            raise CheckpointError(f"{path}: holds no checkpoint of VISSL's")
    except (CheckpointError, OSError) as error:
        logging.warning("checkpoint passed over: %s", error)
        return None
    return int(checkpoint.get("iteration", -1))


def saving_outlives_the_disk() -> None:
    """vissl/hooks/log_hooks.py:428, a failed save ends the run, and nothing is ever removed.

    Always so. A save that fails is reported and training goes on to the next; the last one of a
    training has no next and fails. Weights that are not finite are not saved. Of what was saved,
    the newest remain, and milestones.
    """
    from classy_vision.generic.distributed_util import is_primary
    from vissl.hooks import log_hooks

    @wrap(log_hooks.LogLossMetricsCheckpointHook, "_checkpoint_model")
    def checkpoint_model(original, hook, task, mode_frequency, mode_num, mode="phase"):
        last = task.num_train_phases
        saves = task.train and log_hooks.is_checkpoint_phase(
            mode_num, mode_frequency, task.train_phase_idx, last, mode
        )
        if not saves or "BARLOW" not in task.config:
            return original(hook, task, mode_frequency, mode_num, mode)
        if is_primary():
            _refuse_non_finite(task)
        try:
            original(hook, task, mode_frequency, mode_num, mode)
            if is_primary():
                settings = task.config.BARLOW
                remove_old_checkpoints(
                    task.checkpoint_folder,
                    settings.get("KEEP_CHECKPOINTS", KEEP_CHECKPOINTS),
                    settings.get("KEEP_EVERY_EPOCHS", KEEP_EVERY_EPOCHS),
                )
        except OSError as error:
            if mode == "phase" and task.train_phase_idx == last - 1:
                raise
            logging.error(
                "checkpoint of step %d not saved (%s): training goes on, and the next one is tried "
                "in its turn; the checkpoints saved so far remain",
                task.iteration,
                error,
            )
        return None


def _refuse_non_finite(task) -> None:
    """A gradient can be NaN where the loss was finite: the next step would tell, too late."""
    tensors = [t for t in task.base_model.state_dict().values() if t.is_floating_point()]
    if not torch.stack([torch.isfinite(t).all() for t in tensors]).all():
        raise FloatingPointError(
            f"weights that are not finite at step {task.iteration}, not saved; the checkpoints saved "
            "so far are good. Likely causes: a learning rate too high "
            "(config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value), or NaN in the images"
        )


def remove_old_checkpoints(folder: str | os.PathLike, keep: int, every_epochs: int) -> None:
    """Leaves the `keep` last written checkpoints of each kind, the final one and the milestones.

    Args:
        folder: the run's checkpoint folder.
        keep: 0 keeps all.
        every_epochs: the checkpoint after every so many epochs is a milestone; 0: none is.
    """
    if keep < 1:
        return
    for kind in _KINDS:
        # By time: a run told not to resume counts from 0 beside an older run's larger numbers.
        written = sorted(_numbered(folder, kind), key=lambda n: n[1].stat().st_mtime_ns)
        for number, path in written[:-keep]:
            is_milestone = kind == "phase" and every_epochs and (number + 1) % every_epochs == 0
            if not is_milestone:
                path.unlink(missing_ok=True)


def broadcast_checkpoints_without_copying_bytewise() -> None:
    """classy_vision/generic/distributed_util.py:265, `torch.ByteTensor(data_view)`.

    Slow since torch 1.x: the constructor walks the bytes one by one, 15 s for 190 MB.
    """
    import torch.distributed as dist
    from classy_vision.generic.distributed_util import get_world_size, is_primary
    from classy_vision.generic.util import load_checkpoint
    from vissl.utils import checkpoint as vissl_checkpoint

    if hasattr(vissl_checkpoint.load_and_broadcast_checkpoint, "mended_by"):
        return

    def load_and_broadcast_checkpoint(checkpoint_path, device):
        checkpoint = load_checkpoint(checkpoint_path, device) if is_primary() else None
        if get_world_size() == 1:
            return checkpoint
        where = "cuda" if dist.get_backend() == "nccl" else "cpu"
        buffer = io.BytesIO()
        if is_primary():
            torch.save(checkpoint, buffer)
        size = torch.tensor([buffer.getbuffer().nbytes], device=where)
        dist.broadcast(size, src=0)
        payload = torch.empty(int(size), dtype=torch.uint8, device=where)
        if is_primary():
            payload.copy_(torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8))
        dist.broadcast(payload, src=0)
        if is_primary():
            return checkpoint
        return torch.load(
            io.BytesIO(payload.cpu().numpy().data), map_location=device, weights_only=True
        )

    load_and_broadcast_checkpoint.mended_by = broadcast_checkpoints_without_copying_bytewise
    vissl_checkpoint.load_and_broadcast_checkpoint = load_and_broadcast_checkpoint
