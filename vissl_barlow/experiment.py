"""Which keys of a config make an experiment, and which only say where and how it is run."""

import re

# Keys that say where a run finds and leaves things and how it goes about it, not what it computes. The
# batch per process counts as a part of the global batch only.
IRRELEVANT_KEYS = re.compile(
    r"""
    config | node_id | engine_name | OUTPUT_DIR | SEED | MODEL\.WEIGHTS | DATALOADER\.NUM_WORKERS
    | SOLVER\.CHECKPOINT_PERIOD | TEST\.EVAL_PERIOD
    | config\.(
        (CHECKPOINT | DISTRIBUTED | MACHINE | SLURM | HOOKS | PROFILING)\..*
        | SEED_VALUE | LOG_FREQUENCY | MULTI_PROCESSING_METHOD | VERBOSE
        | DATA\.(NUM_DATALOADER_WORKERS | PIN_MEMORY | DDP_BUCKET_CAP_MB | ENABLE_ASYNC_GPU_COPY
            | (TRAIN | TEST)\.BATCHSIZE_PER_REPLICA)
        | DATA\.(TRAIN | TEST)\.((DATA | LABEL)_PATHS(\..*)? | COPY_TO_LOCAL_DISK
            | COPY_DESTINATION_DIR | (REMOVE | NEW)_IMG_PATH_PREFIX | MMAP_MODE)
        | MODEL\.(WEIGHTS_INIT\.PARAMS_FILE | ACTIVATION_CHECKPOINTING\..* | CUDA_CACHE\..*)
        | LOSS\.\w+\.embedding_dim
        | BARLOW\.(CHECK_IMAGES | KEEP_.* | TIMEOUT_MINUTES | GRACE_SECONDS | COMPILE | CHANNELS_LAST
            | SLURM_TIME_LIMITS | MAX_CONSECUTIVE_UNREADABLE | RANKED_IMAGES | COLLAPSED_.* | EXTEND
            | WANDB_PROJECT | MAP_IMAGES
            | PROBE\.(EVERY_EPOCHS | WHILE_TRAINING | CORRELATION_IMAGES))
    )""",
    re.VERBOSE,
)


def in_pieces(chunk_size: int, batch_norm: str) -> bool:
    """Whether a step with these `BARLOW.CHUNK_SIZE` and `CHUNK_BATCH_NORM` is one in pieces."""
    return chunk_size > 0 or batch_norm == "per_view"


def keeps_statistics(batch_norm: str) -> bool:
    """Whether a step in pieces computes what an ordinary one does, but for rounding."""
    return batch_norm != "per_piece"
