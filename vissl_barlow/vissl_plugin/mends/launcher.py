"""vissl/utils/distributed_launcher.py and trainer_main.py: how VISSL starts a run's processes."""

import functools
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from vissl.utils.env import get_machine_local_and_dist_rank

from vissl_barlow.vissl_plugin.run.lock import lock, unlock
from vissl_barlow.vissl_plugin.run.processes import spawn as spawn_together
from vissl_barlow.vissl_plugin.wrap import wrap


def lock_checkpoint_folder() -> None:
    """vissl/utils/distributed_launcher.py:105, nothing keeps two runs out of one folder.

    Always so: their checkpoints replace each other. The lock is the system's own (flock), so it ends
    with the process that holds it, however that ends, and holds wherever the file system has locks.
    The first node's launcher takes it, which its other processes and nodes need anyway.
    """
    from vissl.utils import distributed_launcher

    @wrap(distributed_launcher, "get_checkpoint_folder")
    def get_checkpoint_folder(original, cfg):
        folder = original(cfg)
        if "BARLOW" in cfg and get_machine_local_and_dist_rank()[1] == 0:
            lock(Path(folder))
        return folder

    @wrap(distributed_launcher, "_cleanup_local_dir")
    def cleanup(original, cfg):
        original(cfg)
        if "BARLOW" in cfg:
            unlock()


def end_processes_together() -> None:
    """vissl/utils/distributed_launcher.py:134, `torch.multiprocessing.spawn`.

    Always so: a signal to the launcher ends it alone, and when a process dies the message is of
    another one's broken connection. Now signals reach all of them, and the message names the rank.
    """
    from vissl.utils import distributed_launcher

    spawn = torch.multiprocessing.spawn
    distributed_launcher.torch = SimpleNamespace(
        cuda=torch.cuda,
        backends=torch.backends,
        multiprocessing=SimpleNamespace(
            spawn=lambda fn, nprocs, args, daemon: (
                spawn_together(fn, nprocs, args) if "BARLOW" in args[0] else spawn(fn, args, nprocs)
            )
        ),
    )


def set_process_group_timeout() -> None:
    """vissl/trainer/trainer_main.py:126, `init_process_group` without a timeout.

    Always so: gloo waits half an hour for a process that hangs.
    """
    from vissl.trainer import SelfSupervisionTrainer

    @wrap(SelfSupervisionTrainer, "setup_distributed")
    def setup_distributed(original, trainer, use_gpu):
        if "BARLOW" not in trainer.cfg:
            return original(trainer, use_gpu)
        minutes = trainer.cfg.BARLOW.TIMEOUT_MINUTES
        init = dist.init_process_group
        dist.init_process_group = functools.partial(init, timeout=timedelta(minutes=minutes))
        try:
            return original(trainer, use_gpu)
        finally:
            dist.init_process_group = init
