"""vissl/utils/distributed_launcher.py and trainer_main.py: how VISSL starts a run's processes."""

import functools
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from vissl.trainer import SelfSupervisionTrainer
from vissl.utils import distributed_launcher
from vissl.utils.env import get_machine_local_and_dist_rank

from vissl_barlow.vissl_plugin.run.checkpoint_folder import LINK, inspect
from vissl_barlow.vissl_plugin.run.experiment import refuse_other_experiment
from vissl_barlow.vissl_plugin.run.lock import lock, unlock
from vissl_barlow.vissl_plugin.run.processes import spawn as spawn_together
from vissl_barlow.vissl_plugin.wrap import Overlay, of_barlow_config, of_barlow_owner, wrap


def lock_checkpoint_folder() -> None:
    """vissl/utils/distributed_launcher.py:104: nothing keeps two runs out of one folder.

    A fault of VISSL 0.1.6: their checkpoints replace each other. The lock is the system's own (flock),
    so it ends with the process that holds it, however that ends, and holds wherever the file system
    has locks. The first node's launcher takes it, which its other processes and nodes need anyway.
    """

    @wrap(distributed_launcher, "get_checkpoint_folder", applies=of_barlow_config)
    def get_checkpoint_folder(original, cfg):
        folder = original(cfg)
        if get_machine_local_and_dist_rank()[1] == 0:
            lock(Path(folder))
        link, settings = Path(folder, LINK), cfg.CHECKPOINT
        if settings.USE_SYMLINK_CHECKPOINT_FOR_RESUME and link.exists() and inspect(link) is None:
            settings.USE_SYMLINK_CHECKPOINT_FOR_RESUME = False  # the one before, then
        # Again: between the checks and this moment (a queue, a lock) another run may have been here.
        refuse_other_experiment(cfg)
        return folder

    @wrap(distributed_launcher, "_cleanup_local_dir", applies=of_barlow_config)
    def cleanup(original, cfg):
        original(cfg)
        unlock()


def end_processes_together() -> None:
    """vissl/utils/distributed_launcher.py:135: `torch.multiprocessing.spawn`.

    A fault of VISSL 0.1.6: a signal to the launcher ends it alone, and when a process dies the message
    is of another one's broken connection. Now signals reach all of them, and the message names the
    rank.
    """

    def spawn(fn, nprocs, args, daemon):
        if of_barlow_config(*args):
            spawn_together(fn, nprocs, args)
        else:
            torch.multiprocessing.spawn(fn, nprocs=nprocs, args=args, daemon=daemon)

    distributed_launcher.torch = Overlay(
        torch, multiprocessing=Overlay(torch.multiprocessing, spawn=spawn)
    )


def set_process_group_timeout() -> None:
    """vissl/trainer/trainer_main.py:118: `init_process_group` without a timeout.

    A fault of VISSL 0.1.6: gloo waits half an hour for a process that hangs.
    """

    @wrap(SelfSupervisionTrainer, "setup_distributed", applies=of_barlow_owner)
    def setup_distributed(original, trainer, use_gpu):
        minutes = trainer.cfg.BARLOW.TIMEOUT_MINUTES
        init = dist.init_process_group
        dist.init_process_group = functools.partial(init, timeout=timedelta(minutes=minutes))
        try:
            return original(trainer, use_gpu)
        finally:
            dist.init_process_group = init
