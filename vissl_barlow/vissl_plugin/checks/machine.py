"""Refuses machines and folders with which no run can work."""

import contextlib
import importlib.util
import os
import signal
from pathlib import Path

import torch

from vissl_barlow.vissl_plugin.checks.common import is_typed
from vissl_barlow.vissl_plugin.errors import ConfigError

# Folders that were made for the config checked last, the innermost last.
_made: list[Path] = []


def check_devices(cfg) -> None:
    if cfg.MACHINE.DEVICE != "gpu":
        typed = is_typed(cfg, "MACHINE.DEVICE") or is_typed(cfg, "DISTRIBUTED.BACKEND")
        if typed and cfg.DISTRIBUTED.BACKEND == "nccl":
            raise ConfigError(
                "DISTRIBUTED.BACKEND",
                "nccl",
                "needs GPUs, and the device is the CPU; type config.DISTRIBUTED.BACKEND=gloo",
            )
        ours = cfg.TRAINER.TASK_NAME == "barlow_task" and cfg.BARLOW.AMP_DTYPE == "bfloat16"
        if cfg.MODEL.AMP_PARAMS.USE_AMP and not ours:
            raise ConfigError(
                "MODEL.AMP_PARAMS.USE_AMP",
                True,
                "float16 needs a GPU: set it to false, config.BARLOW.AMP_DTYPE=bfloat16 or "
                "config.MACHINE.DEVICE=gpu",
            )
        return
    if cfg.SLURM.USE_SLURM:
        return  # the GPUs are those of the node the job will run on
    available = torch.cuda.device_count()
    if available == 0:
        raise ConfigError(
            "MACHINE.DEVICE",
            "gpu",
            "no GPU is visible to torch; set config.MACHINE.DEVICE=cpu and "
            "config.DISTRIBUTED.BACKEND=gloo, or mend the driver or CUDA_VISIBLE_DEVICES",
        )
    if cfg.DISTRIBUTED.NUM_PROC_PER_NODE > available:
        raise ConfigError(
            "DISTRIBUTED.NUM_PROC_PER_NODE",
            cfg.DISTRIBUTED.NUM_PROC_PER_NODE,
            f"one process needs one GPU and this machine has {available}; set at most {available}",
        )


def check_wandb(cfg) -> None:
    if cfg.BARLOW.WANDB_PROJECT and not _is_installed("wandb"):
        raise ConfigError(
            "BARLOW.WANDB_PROJECT",
            cfg.BARLOW.WANDB_PROJECT,
            "the package is not installed: pip install wandb",
        )


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder of that name has none


def check_starter(cfg) -> None:
    """Raises ConfigError under torchrun, in one of its processes on each machine.

    The others wait for torchrun to end them: the first to fail would end the one that says why.

    VISSL overwrites what torchrun tells its processes (vissl/utils/env.py:14), so each of them would be
    the launcher of a whole run.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" not in os.environ or processes == "1":
        return
    while os.environ["LOCAL_RANK"] != "0":
        signal.pause()
    raise ConfigError(
        "DISTRIBUTED.NUM_PROC_PER_NODE",
        cfg.DISTRIBUTED.NUM_PROC_PER_NODE,
        f"torchrun has started {processes} processes, but VISSL starts its own, as many as this key "
        "says: start it once on each machine, with python -m instead of torchrun",
    )


def check_nodes(cfg) -> None:
    distributed = cfg.DISTRIBUTED
    nodes = distributed.NUM_NODES
    if nodes > 1 and distributed.RUN_ID == "auto" and not cfg.SLURM.USE_SLURM:
        raise ConfigError(
            "DISTRIBUTED.RUN_ID",
            "auto",
            f"{nodes} nodes find each other by an address; set it to ADDRESS_OF_NODE_0:PORT, and "
            "node_id, on each of them, or config.DISTRIBUTED.NUM_NODES=1 for one machine, or "
            "config.SLURM.USE_SLURM=true",
        )


def check_checkpoint_folder(cfg) -> None:
    if not cfg.CHECKPOINT.DIR:
        raise ConfigError(
            "CHECKPOINT.DIR", '""', "name the run's folder; config.CHECKPOINT.DIR=. is this one"
        )
    folder = Path(cfg.CHECKPOINT.DIR)
    if "${" in cfg.CHECKPOINT.DIR and not folder.exists():
        raise ConfigError(
            "CHECKPOINT.DIR",
            folder,
            "VISSL resolves no ${...}; write the path out, or make the folder",
        )
    try:
        absent = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        _made[:] = reversed(absent)
        # Asking the permission bits is not enough: root, quotas and read-only mounts.
        probe = folder / f".write_test_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            "CHECKPOINT.DIR",
            folder,
            f"checkpoints cannot be written there ({error.strerror}); name a writable folder",
        ) from None


def remove_new_checkpoint_folder() -> None:
    """Removes what `check_checkpoint_folder` has made, as far as it is empty: the start is refused."""
    while _made:
        with contextlib.suppress(OSError):
            _made.pop().rmdir()
