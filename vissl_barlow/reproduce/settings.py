"""What a command line computes: its config, and what it changes of what that config computes."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

DETECTION = "vissl_barlow.detection"
BATCH = "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA"
# Keys that say where a run finds and leaves things and how it goes about it, not what it computes. The
# batch per process counts as a part of the global batch only.
IRRELEVANT_OVERRIDES = re.compile(
    r"""
    config | node_id | engine_name | OUTPUT_DIR | SEED | MODEL\.WEIGHTS | DATALOADER\.NUM_WORKERS
    | SOLVER\.CHECKPOINT_PERIOD | TEST\.EVAL_PERIOD
    | config\.(
        (CHECKPOINT | DISTRIBUTED | MACHINE | SLURM | HOOKS)\..*
        | SEED_VALUE | LOG_FREQUENCY | MULTI_PROCESSING_METHOD
        | DATA\.(NUM_DATALOADER_WORKERS | PIN_MEMORY | (TRAIN | TEST)\.BATCHSIZE_PER_REPLICA)
        | DATA\.(TRAIN | TEST)\.((DATA | LABEL)_PATHS | COPY_TO_LOCAL_DISK)
        | MODEL\.(WEIGHTS_INIT\.PARAMS_FILE | ACTIVATION_CHECKPOINTING\..*)
        | LOSS\.\w+\.embedding_dim
        | BARLOW\.(CHECK_IMAGES | KEEP_.* | TIMEOUT_MINUTES | GRACE_SECONDS | COMPILE | CHANNELS_LAST
            | MAX_CONSECUTIVE_UNREADABLE | RANKED_IMAGES | COLLAPSED_.*
            | PROBE\.(EVERY_EPOCHS | CORRELATION_IMAGES))
    )""",
    re.VERBOSE,
)
# Options of Detectron2's command line whose value is the next word.
_DETECTION_OPTIONS = (
    *("--num-gpus", "--config-file", "--num-machines", "--machine-rank", "--dist-url"),
)


def is_irrelevant(key: str) -> bool:
    """Whether a key says where a run finds and leaves things and how it goes about it."""
    return IRRELEVANT_OVERRIDES.fullmatch(key.lstrip("+~")) is not None


def config_of(arguments: Sequence[str]) -> str | None:
    """What a command line runs: hydra's `config=...`, or the name of Detectron2's `--config-file`."""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        if argument.startswith("config="):
            return argument.removeprefix("config=").removesuffix(".yaml")
        if argument.startswith("--config-file"):
            return Path(argument.partition("=")[2] or following).stem
    return None


def settings_of(arguments: Sequence[str], batch: int | None = None) -> frozenset[str]:
    """What a command line changes of what its config computes, as KEY=VALUE, and the global batch."""
    settings = set() if batch is None else {f"global batch={batch}"}
    for word in _overrides(arguments):
        if not is_irrelevant(word.partition("=")[0]):
            settings.add(word.lstrip("+").replace(" ", ""))
    return frozenset(settings)


def _overrides(arguments: Sequence[str]) -> Iterator[str]:
    """The overrides of a command line, Detectron2's `KEY VALUE` written as hydra's `KEY=VALUE`."""
    if DETECTION not in arguments:
        yield from (word for word in arguments if "=" in word)
        return
    words = iter(arguments[arguments.index(DETECTION) + 1 :])
    for word in words:
        if word in _DETECTION_OPTIONS:
            next(words, None)
        elif word == "--scale-batch-and-lr":
            yield f"{word}=true"
        elif not word.startswith("-"):
            yield f"{word}={next(words, '')}"


def describe(settings: Iterable[str]) -> str:
    """Settings as text; the same text for the same settings."""
    return ", ".join(sorted(settings))
