"""vissl/utils/distributed_launcher.py and trainer_main.py: how VISSL starts a run's processes."""

import functools
from datetime import timedelta
from pathlib import Path

import submitit
import torch
import torch.distributed as dist
from submitit.core.utils import FailedJobError
from submitit.helpers import TorchDistributedEnvironment
from vissl.trainer import SelfSupervisionTrainer
from vissl.utils import distributed_launcher
from vissl.utils.env import get_machine_local_and_dist_rank

from vissl_barlow.stop_signals import stopped_by_ctrl_c
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.run.checkpoint_folder import LINK, inspect
from vissl_barlow.vissl_plugin.run.experiment import refuse_other_experiment
from vissl_barlow.vissl_plugin.run.lock import lock, unlock
from vissl_barlow.vissl_plugin.run.processes import spawn as spawn_together
from vissl_barlow.vissl_plugin.wrap import (
    Overlay,
    in_barlow_run,
    of_barlow_config,
    of_barlow_owner,
    overlay,
    wrap,
)

# The default of `config.SLURM.PORT_ID`.
VISSLS_PORT = "40050"


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

    overlay(
        distributed_launcher, "torch", multiprocessing=Overlay(torch.multiprocessing, spawn=spawn)
    )


def end_by_ctrl_c() -> None:
    """vissl/utils/distributed_launcher.py:161: `except (KeyboardInterrupt, RuntimeError)`.

    A fault of VISSL 0.1.6: a run of one process that Ctrl-C ends says "All Done!", and its exit status
    is 0. Now it is 130, in whatever the run does not finish first (see `hooks/stop.py`).
    """

    @wrap(distributed_launcher, "_distributed_worker", applies=in_barlow_run)
    def distributed_worker(original, *args, **kwargs):
        try:
            original(*args, **kwargs)
        except KeyboardInterrupt:
            raise stopped_by_ctrl_c() from None


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


def meet_at_a_port_of_the_jobs_own() -> None:
    """vissl/utils/distributed_launcher.py:215 (`_ResumableSlurmJob.__call__`): `SLURM.PORT_ID`, 40050.

    A fault of VISSL 0.1.6: every job listens there, and of two on one node the second ends at once
    (EADDRINUSE). Now it is the port that submitit draws from the job's number, unless the key names
    another.
    """

    @wrap(distributed_launcher, "get_dist_run_id", applies=of_barlow_config)
    def get_dist_run_id(original, cfg, num_nodes):
        run_id = original(cfg, num_nodes)
        address, _, port = run_id.rpartition(":")
        if not cfg.SLURM.USE_SLURM or port != VISSLS_PORT:
            return run_id
        return f"{address}:{TorchDistributedEnvironment().master_port}"


def submit_to_slurm_what_it_takes() -> None:
    """vissl/utils/distributed_launcher.py:219 (`launch_distributed_on_slurm`): what a job asks for.

    Faults of VISSL 0.1.6: a job on CPUs asks for GPUs, which SLURM refuses; submitit gives a job up
    that has met its time limit three times, where a long pretraining on a partition of a day meets it
    five times and more; and what SLURM refuses ends in a traceback. The runner has imported VISSL's
    function by its name, so that only what this calls can be replaced.
    """

    def is_job_of_ours(executor, job, *args, **kwargs) -> bool:
        return isinstance(job, distributed_launcher._ResumableSlurmJob) and "BARLOW" in job.config

    @wrap(submitit.AutoExecutor, "submit", applies=is_job_of_ours)
    def submit(original, executor, job, *args, **kwargs):
        cfg = job.config
        chosen = executor._executor
        if isinstance(chosen, submitit.SlurmExecutor):  # not on a machine without SLURM
            chosen.max_num_timeout = cfg.BARLOW.SLURM_TIME_LIMITS
            if cfg.MACHINE.DEVICE != "gpu":
                chosen.parameters.pop("gpus_per_node", None)
        try:
            return original(executor, job, *args, **kwargs)
        except FailedJobError as error:
            said = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines()]
            raise ConfigError(
                "SLURM",
                f"{{PARTITION: {cfg.SLURM.PARTITION}, ...}}",
                f"sbatch refuses the job ({'; '.join(filter(None, said))}); set the keys of this "
                "section to what the cluster has",
            ) from None
