"""A pretraining by two processes on two nodes, in the folder `run`, long enough to be interrupted; and
two nodes on this machine alone."""

import socket
from pathlib import Path

from forked_runs import CONFIG as DIGITS
from forked_runs import logged_steps

# 2 processes of 8 images: 24 steps an epoch, of which the first few are waited for.
STEPS_PER_EPOCH = 24
EPOCHS = 3
CONFIG = (
    DIGITS,
    f"config.OPTIMIZER.num_epochs={EPOCHS}",
    "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=1",
    "config.DATA.TRAIN.DATA_LIMIT=384",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8",
    "config.DATA.NUM_DATALOADER_WORKERS=0",
    "config.BARLOW.PROBE.KIND=none",
    "config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY=3",
    "config.LOG_FREQUENCY=1",
    "config.CHECKPOINT.DIR=run",
)
TWO_NODES = ("config.DISTRIBUTED.NUM_NODES=2", "config.DISTRIBUTED.NUM_PROC_PER_NODE=1")


def steps(folder: Path) -> list[int]:
    """Those logged, in the order of the log."""
    return logged_steps(folder / "run")


def meet_here() -> tuple[str, ...]:
    """Overrides with which two nodes on this machine meet, at a port that is free."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return ("config.DISTRIBUTED.NUM_NODES=2", f"config.DISTRIBUTED.RUN_ID={address}")


def as_node(number: str) -> dict[str, str]:
    """How VISSL's launcher learns which node it is on, in a SLURM job: its environment there."""
    return {
        "SLURM_STEP_NODELIST": "node[0-1]",
        "SLURMD_NODENAME": "node",
        "SLURM_NODEID": number,
    }
