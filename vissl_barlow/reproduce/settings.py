"""What a command line computes: its config, and what it changes of what that config computes."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vissl_barlow.experiment import IRRELEVANT_KEYS, keeps_statistics

DETECTION = "vissl_barlow.detection"
BATCH = "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA"
WEIGHTS = "config.MODEL.WEIGHTS_INIT.PARAMS_FILE"
_CHUNKS = "config.BARLOW.CHUNK_"
_CHUNK_BATCH_NORM = "config.BARLOW.CHUNK_BATCH_NORM="
# Options of Detectron2's command line whose value is the next word.
_DETECTION_OPTIONS = (
    *("--num-gpus", "--config-file", "--num-machines", "--machine-rank", "--dist-url"),
)


def is_irrelevant(key: str) -> bool:
    """Whether a key says where a run finds and leaves things and how it goes about it."""
    return IRRELEVANT_KEYS.fullmatch(key.lstrip("+~")) is not None


def config_of(arguments: Sequence[str]) -> str | None:
    """What a command line runs: hydra's `config=...`, or the name of Detectron2's `--config-file`."""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        if argument.startswith("config="):
            return argument.removeprefix("config=").removesuffix(".yaml")
        if argument.startswith("--config-file"):
            return Path(argument.partition("=")[2] or following).stem
    return None


def settings_of(arguments: Sequence[str], batch: int | None = None) -> frozenset[str]:
    """What a command line changes of what its config computes, as KEY=VALUE, or ~KEY, and the global
    batch."""
    words = (word.lstrip("+").replace(" ", "") for word in _overrides(arguments))
    # Of several overrides of one key the last holds.
    last = {word.partition("=")[0]: word for word in words}
    settings = {word for key, word in last.items() if not is_irrelevant(key)}
    settings |= set() if batch is None else {f"global batch={batch}"}
    modes = [word.partition("=")[2] for word in settings if word.startswith(_CHUNK_BATCH_NORM)]
    if modes and all(map(keeps_statistics, modes)):
        settings = {word for word in settings if not word.startswith(_CHUNKS)}
    return frozenset(settings)


def _overrides(arguments: Sequence[str]) -> Iterator[str]:
    """The overrides of a command line, Detectron2's `KEY VALUE` written as hydra's `KEY=VALUE`."""
    if DETECTION not in arguments:
        yield from (word for word in arguments if "=" in word or word.startswith("~"))
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
