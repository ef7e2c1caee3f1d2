"""vissl/utils/checkpoint.py: checkpoints that survive kills, full disks and damage.

What VISSL's checkpoint hook does with them is in `hooks/checkpoints.py`: for hooks it has a door.
"""

import heapq
import io
import logging
import os
from itertools import islice

import torch
import torch.distributed as dist
from classy_vision.generic.distributed_util import get_world_size, is_primary
from classy_vision.generic.util import load_checkpoint
from vissl.utils import checkpoint as vissl_checkpoint
from vissl.utils import distributed_launcher

from vissl_barlow.atomic_files import temporary_path
from vissl_barlow.checkpoint import save_atomically
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.run.checkpoint_folder import (
    Inspection,
    checkpoint_to_extend,
    final_checkpoints,
    has_numbered_checkpoints,
    whole_checkpoints,
)
from vissl_barlow.vissl_plugin.run.saved_state import EPOCHS
from vissl_barlow.vissl_plugin.wrap import in_barlow_run, of_barlow_config, wrap


def write_checkpoints_atomically() -> None:
    """classy_vision/generic/util.py:353: `torch.save(state, f)` writes into the final file.

    A fault of classy-vision 0.7.0: a run killed while it saves leaves half a checkpoint under the
    name of a whole one.
    """

    @wrap(vissl_checkpoint, "save_checkpoint", applies=in_barlow_run)
    def save_checkpoint(original, checkpoint_folder, state, checkpoint_file):
        path = os.path.join(checkpoint_folder, checkpoint_file)
        save_atomically(state, path)
        return path


def link_newest_checkpoint_atomically() -> None:
    """vissl/utils/io.py:47: `g_pathmgr.exists(file2)`, then the link is removed and made anew.

    A fault of VISSL 0.1.6: with a relative CHECKPOINT.DIR the link dangles, is taken for absent and
    never moves on; a kill between the two steps leaves no link at all.
    """

    @wrap(vissl_checkpoint, "create_file_symlink", applies=in_barlow_run)
    def create_file_symlink(original, file1, file2):
        folder = os.path.dirname(file2)
        temporary = temporary_path(folder)
        os.symlink(os.path.relpath(file1, folder), temporary)
        os.replace(temporary, file2)


def resume_from_newest_whole_checkpoint() -> None:
    """vissl/utils/checkpoint.py:444, 564 and 624: the names of the files decide, of one kind alone.

    A fault of VISSL 0.1.6: a damaged newest checkpoint stops every resume, a damaged final one passes
    for a finished training, iteration checkpoints are overlooked unless they are still being
    written, and with OVERWRITE_EXISTING and nothing but a final checkpoint the path is
    `<folder>/None`. A final checkpoint finishes a training of as many epochs; one of more goes on
    from it.
    """
    for module in (vissl_checkpoint, distributed_launcher):

        @wrap(module, "get_resume_checkpoint", applies=of_barlow_config)
        def get_resume_checkpoint(original, cfg, checkpoint_folder):
            return _resume_path(cfg.CHECKPOINT, checkpoint_folder)

    # The launcher asks here too (`logs.leave_the_screen_to_people`).
    @wrap(vissl_checkpoint, "is_training_finished", applies=of_barlow_config)
    def is_training_finished(original, cfg, checkpoint_folder):
        if not original(cfg, checkpoint_folder):
            return False
        finals = final_checkpoints(checkpoint_folder)
        return bool(finals) and not (
            cfg.CHECKPOINT.AUTO_RESUME and all(_has_fewer_epochs(f, cfg) for f in finals)
        )


def _has_fewer_epochs(final: Inspection, cfg) -> bool:
    """Whether a training of `cfg` goes on from `final`, if `refuse_other_experiment` lets it."""
    return final.experiment is not None and final.experiment[EPOCHS] < cfg.OPTIMIZER.num_epochs


def _resume_path(settings, folder: str) -> str | None:
    if not settings.AUTO_RESUME:
        return None
    wanted = max(settings.LATEST_CHECKPOINT_RESUME_FILE_NUM, 1)
    numbered = whole_checkpoints(folder)
    final = None if settings.get("OVERWRITE_EXISTING") else checkpoint_to_extend(folder)
    candidates = heapq.merge(numbered, [final] if final else [], reverse=True)
    found = [str(path) for *_, path in islice(candidates, wanted)]
    if found:
        logging.info("Resume from file: %s", found[-1])
        return found[-1]
    if has_numbered_checkpoints(folder):
        raise ConfigError(
            "CHECKPOINT.DIR",
            folder,
            "every checkpoint there is damaged or no run's, and training anew would overwrite them; "
            "name another folder, or train anew with config.CHECKPOINT.AUTO_RESUME=false",
        )
    return None


def broadcast_checkpoints_as_one_buffer() -> None:
    """classy_vision/generic/distributed_util.py:265: `torch.ByteTensor(data_view)`.

    Slow since torch 1.x: the constructor walks the bytes one by one, 15 s for 190 MB.
    """

    @wrap(vissl_checkpoint, "load_and_broadcast_checkpoint", applies=in_barlow_run)
    def load_and_broadcast_checkpoint(original, checkpoint_path, device):
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
