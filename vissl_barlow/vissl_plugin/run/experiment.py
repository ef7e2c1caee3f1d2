"""A folder's run is one experiment: what that is, and the refusal of another one in its folder.

Every checkpoint says which experiment it is of. The folder's `train_config.yaml` does not: VISSL writes
it when a start has passed the checks, so a start that then fails leaves its own there. It is asked only
about checkpoints from before they said it themselves.
"""

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from vissl.config import AttrDict
from vissl.utils import checkpoint as vissl_checkpoint

from vissl_barlow.atomic_files import file_state
from vissl_barlow.experiment import IRRELEVANT_KEYS, keeps_statistics
from vissl_barlow.patient_files import read_bytes, set_aside
from vissl_barlow.provenance import file_sha256
from vissl_barlow.views import TwoViews
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.run.checkpoint_folder import Inspection, final_checkpoints, inspect
from vissl_barlow.vissl_plugin.run.images import classes_of
from vissl_barlow.vissl_plugin.run.saved_state import BATCH, EPOCHS

WEIGHTS = "MODEL.WEIGHTS_INIT.PARAMS_FILE"
PROCESSES = "processes"
CHUNK_SIZE = "BARLOW.CHUNK_SIZE"
_CHUNK_BATCH_NORM = "BARLOW.CHUNK_BATCH_NORM"
_SYNCHRONISED = "MODEL.SYNC_BN_CONFIG.CONVERT_BN_TO_SYNC_BN"
_GROUP_SIZE = "MODEL.SYNC_BN_CONFIG.GROUP_SIZE"
# Differences named in a refusal; another data set or model would have dozens.
SHOWN = 6
# What VISSL derives from the number of processes or of images, adds to configs for its own use, or
# reads in other tools than its trainer.
_OF_VISSL = (
    *("BARLOW.COMMAND", "BARLOW.DERIVED", "MODEL._MODEL_INIT_SEED", "MODEL.FSDP_CONFIG."),
    "EXTRACT_FEATURES.",
    *("CLUSTERFIT.", "SVM.", "IMG_RETRIEVAL.", "NEAREST_NEIGHBOR."),
)
# Keys younger than some checkpoints, and the value with which a run computes what it did without them.
_LATER = {"LOSS.barlow_loss.gather_in_bfloat16": False, "BARLOW.PROBE.IMAGES": 50_000}
_OF_TRANSFORM = re.compile(r"(DATA\.\w+\.TRANSFORMS\.\d+)\.(.+)")
_DERIVED_OF_LOSS = {"name", "num_train_samples", "world_size", "local_queue_length"}


def experiment_of(cfg: Mapping) -> dict[str, Any]:
    """What the resolved config `cfg` computes: dotted keys to plain values, and the global batch.

    Without the weights it starts from and the images, which are known by their content.
    """
    settings = {key: value for key, value in flat(cfg) if _counts(key, cfg["LOSS"]["name"])}
    chunk_size, batch_norm = settings.pop(CHUNK_SIZE, 0), settings.pop(_CHUNK_BATCH_NORM, "")
    settings = {k: v for k, v in settings.items() if k not in _LATER or v != _LATER[k]}
    processes = cfg["DISTRIBUTED"]["NUM_NODES"] * cfg["DISTRIBUTED"]["NUM_PROC_PER_NODE"]
    batch = cfg["DATA"]["TRAIN"]["BATCHSIZE_PER_REPLICA"] * processes
    if 0 < chunk_size < cfg["DATA"]["TRAIN"]["BATCHSIZE_PER_REPLICA"]:
        # As an ordinary step does: then checkpoints from before there were pieces are of no other.
        settings |= {} if keeps_statistics(batch_norm) else {CHUNK_SIZE: chunk_size}
    return {BATCH: batch, PROCESSES: processes, **settings}


def weights_identity(path: str) -> str:
    """What says which weights a run starts from: their SHA-256, "" for none, the URL of a download."""
    if not path or not os.path.isfile(path):
        return path or ""
    return _sha256(os.path.realpath(path), file_state(path))


@functools.lru_cache(maxsize=8)
def _sha256(path: str, state: tuple[int, ...]) -> str:
    return file_sha256(path)


def images_identity(split: str, dataset) -> dict[str, Any]:
    """How many images VISSL's `dataset` of a split has, where they are labelled, classes, and which
    images they are, where a source says so."""
    found: dict[str, Any] = {
        f"images in DATA.{split}": sum(len(source) for source in dataset.data_objs)
    }
    classes = classes_of(dataset)
    if classes is not None:
        found[f"classes in DATA.{split}"] = classes
    known = [source.identity() for source in dataset.data_objs if hasattr(source, "identity")]
    if known:
        found[f"the digest of names and files in DATA.{split}"] = " ".join(known)
    return found


def refuse_other_experiment(cfg, images: Callable[[], Mapping] | None = None) -> None:
    """Raises ConfigError if the folder's run, finished or to be resumed, is of another experiment.

    A start that goes on from nothing (a folder without a whole checkpoint, AUTO_RESUME=false) may be
    of any. `BARLOW.EXTEND` allows more epochs.

    Args:
        cfg: resolved, with a `BARLOW` section.
        images: gives `images_identity` of the splits in use; called only if there is a run to
            compare with. None: the images are not compared.
    """
    folder = Path(cfg.CHECKPOINT.DIR)
    finished = vissl_checkpoint.is_training_finished(cfg, checkpoint_folder=str(folder))
    found = final_checkpoints(folder) if finished else _resumed(cfg, folder)
    known = [saved for saved in (_saved_experiment(each, folder) for each in found) if saved]
    if not known:
        return
    own = experiment_of(cfg)
    own[WEIGHTS] = weights_identity(cfg.MODEL.WEIGHTS_INIT.PARAMS_FILE)
    own |= images() if images else {}
    differences = [_differences(saved, own, bool(cfg.BARLOW.EXTEND)) for saved in known]
    if [] in differences:
        warn_of_batch_norm(known[differences.index([])], own)
        return
    wanted = differences[0]
    # Of fewer epochs, which more would go on from, it is finished all the same.
    finished = not cfg.CHECKPOINT.OVERWRITE_EXISTING and bool(final_checkpoints(folder))
    what = "a finished run" if finished else "an unfinished run"
    raise ConfigError(
        "CHECKPOINT.DIR",
        folder,
        f"holds {what} of another experiment: {_listed(wanted)}; set these as they are there, or name "
        f"another folder{_more_epochs(wanted)}, or train anew over it with "
        f"config.CHECKPOINT.AUTO_RESUME=false{_overwrite(finished)}",
    )


def _resumed(cfg, folder: Path) -> list[Inspection]:
    """What the launcher would go on from (vissl/utils/distributed_launcher.py:111)."""
    path: str | Path | None = folder / "checkpoint.torch"
    if not (cfg.CHECKPOINT.USE_SYMLINK_CHECKPOINT_FOR_RESUME and Path(str(path)).exists()):
        path = vissl_checkpoint.get_resume_checkpoint(cfg, checkpoint_folder=str(folder))
    saved = None if path is None else inspect(path)
    return [] if saved is None else [saved]


def _saved_experiment(saved: Inspection, folder: Path) -> dict[str, Any] | None:
    if saved.experiment is not None:
        return saved.experiment
    config = folder / "train_config.yaml"
    content = read_bytes(config)
    if content is None:
        return None
    try:
        return experiment_of(AttrDict(yaml.safe_load(content)))
    except Exception as error:  # whatever a damaged file leads to
        set_aside(config, error)
        return None


def _differences(there: Mapping, now: Mapping, extend: bool) -> list[tuple[str, Any, Any]]:
    """(key, value there, value now) of each that differs; "none" for a key that one side lacks."""
    keys = [key for key in {**now, **there} if key != PROCESSES]
    values = ((key, _value(there, key), _value(now, key)) for key in keys)
    found = [(key, theirs, own) for key, theirs, own in values if theirs != own]
    return [each for each in found if not _is_same(*each, extend, there, now)]


def _value(settings: Mapping, key: str) -> Any:
    """ "none" where it is not set; what views are drawn with where no config says so."""
    if key not in settings and (of_views := _OF_TRANSFORM.fullmatch(key)):
        transform, parameter = of_views.groups()
        if settings.get(f"{transform}.name") == "BarlowTwoViews":
            return _views_defaults().get(parameter, "none")
    return settings.get(key, "none")


@functools.cache
def _views_defaults() -> dict[str, Any]:
    parameters = signature(TwoViews).parameters.items()
    defaults = {name: each.default for name, each in parameters if each.default is not each.empty}
    return dict(flat({k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}))


def _is_same(key: str, theirs, own, extend: bool, there: Mapping, now: Mapping) -> bool:
    if key == EPOCHS:
        return extend and own > theirs
    if key == WEIGHTS:
        # Gone since: a resumed run has no need of the file. Older checkpoints do not name it.
        gone = bool(own) and len(own) != 64 and "://" not in own
        return gone or WEIGHTS not in there
    # One side does not know its images: an older checkpoint, or a split that is not in use.
    return " in DATA." in key and not (key in there and key in now)


def warn_of_batch_norm(there: Mapping, now: Mapping) -> None:
    """Warns where a run that goes on on another number of processes has other batch statistics."""
    if not now.get(_SYNCHRONISED):
        per, key, value = "process", _SYNCHRONISED, "false"
    elif CHUNK_SIZE in now:
        per, key, value = "piece of all processes", CHUNK_SIZE, now[CHUNK_SIZE]
    elif now.get(_GROUP_SIZE):
        per, key, value = "group of processes", _GROUP_SIZE, now[_GROUP_SIZE]
    else:
        return
    if there.get(PROCESSES) != now[PROCESSES]:
        logging.warning(
            "the run was started on %s processes and goes on on %s: the images of each step stay the "
            "same, but batch normalization that trains has its statistics per %s (config.%s=%s)",
            there.get(PROCESSES),
            now[PROCESSES],
            per,
            key,
            value,
        )


def _listed(differences: list[tuple[str, Any, Any]]) -> str:
    shown = [f"{key} is {theirs} there and {own} now" for key, theirs, own in differences[:SHOWN]]
    left = len(differences) - SHOWN
    return ", ".join([*shown, *([f"and {left} keys more"] if left > 0 else [])])


def _more_epochs(differences: list[tuple[str, Any, Any]]) -> str:
    (key, theirs, own), *others = differences
    extends = key == EPOCHS and not others and own > theirs
    return ", or train on for more epochs with config.BARLOW.EXTEND=true" if extends else ""


def _overwrite(finished: bool) -> str:
    return " config.CHECKPOINT.OVERWRITE_EXISTING=true" if finished else ""


def _counts(key: str, loss: str) -> bool:
    if key.startswith(_OF_VISSL):
        return False
    if key.startswith("LOSS.") and key != "LOSS.name":
        _, section, *_, last = key.split(".")
        if section != loss or last in _DERIVED_OF_LOSS:
            return False
    # Another seed is the same experiment to a report, and another run to its folder.
    return key == "SEED_VALUE" or not IRRELEVANT_KEYS.fullmatch(f"config.{key}")


def flat(section: Mapping | list, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A config's values by their dotted keys, as plain values; "empty" for a section without any."""
    items = section.items() if isinstance(section, Mapping) else enumerate(section)
    for name, value in items:
        if isinstance(value, Mapping | list | tuple) and len(value):
            yield from flat(
                value if isinstance(value, Mapping) else list(value), f"{prefix}{name}."
            )
        elif isinstance(value, Mapping | list | tuple):
            yield f"{prefix}{name}", "empty"
        else:
            plain = value is None or isinstance(value, str | int | float | bool)
            yield f"{prefix}{name}", value if plain else str(value)
