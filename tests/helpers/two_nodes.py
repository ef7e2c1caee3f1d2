"""A pretraining by two processes on two nodes, in the folder `run`, long enough to be interrupted."""

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
