"""What a run leaves in OUTPUT_DIR: whose folder it is, and which of its numbers count; pure Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vissl_barlow.detection.config import PIXEL_RANGE, Normalization, leaves
from vissl_barlow.provenance import PROVENANCE_FILE, file_sha256, read_provenance

RESULTS_FILE = "results.json"
# Below OUTPUT_DIR: what --eval-only writes, so that it replaces nothing that a training left.
EVAL_ONLY_FOLDER = "eval_only"
TRAINING = "training"
EVAL_ONLY = "eval-only"
# Detectron2's: the name of the newest checkpoint, and the config of the last start.
_LAST_CHECKPOINT = "last_checkpoint"
_CONFIG = "config.yaml"
# Keys that say where a run finds and leaves things and how it goes about it, not what it computes. The
# file in MODEL.WEIGHTS may have moved: its content is compared.
_IRRELEVANT_KEYS = {
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "CUDNN_BENCHMARK"),
    *("SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD", "VIS_PERIOD"),
}


def evaluated(
    start: str, iteration: int | None, max_iter: int, weights: Path | None
) -> dict[str, Any]:
    """What was evaluated: the record beside the scores, under "evaluated", in results.json.

    Args:
        start: TRAINING or EVAL_ONLY.
        iteration: that the model was trained for, counted from 1; None where its file does not say.
        max_iter: SOLVER.MAX_ITER.
        weights: the file that holds the model; None where it was not saved.
    """
    file = None
    if weights is not None:
        file = {"path": str(weights.resolve()), "sha256": file_sha256(weights)}
    return {"start": start, "iteration": iteration, "max_iter": max_iter, "weights": file}


def why_not_final(entry: Mapping[str, Any]) -> str | None:
    """Why a data set's entry in results.json is not the result of a whole training; None if it is.

    Args:
        entry: has the record of `evaluated`, or none if an earlier version of this package wrote it.
    """
    record = entry.get("evaluated")
    if record is None:
        return (
            "its numbers do not say which iteration they are of, as those of earlier versions:"
            " the training's command with --resume evaluates the final model again"
        )
    if record["start"] != TRAINING:
        return "its numbers are of --eval-only: those at the end of a training count"
    if record["iteration"] < record["max_iter"]:
        return (
            f"its numbers are of iteration {record['iteration']} of {record['max_iter']}:"
            " the training's command with --resume continues it"
        )
    return None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of the training in `folder`; None where none was begun or saved."""
    pointer = folder / _LAST_CHECKPOINT
    return folder / pointer.read_text().strip() if pointer.is_file() else None


def pixels_of(config: Path) -> Normalization:
    """What a training subtracts and divides by, in the range of 0 to 1, by its resolved config.yaml."""
    model = yaml.safe_load(config.read_text())["MODEL"]
    mean, std = (
        [value / PIXEL_RANGE for value in model[f"PIXEL_{key}"]] for key in ("MEAN", "STD")
    )
    return mean, std


def check_folder(cfg: Any, *, resume: bool) -> None:
    """Refuses to train in a folder that holds another run, or this one unasked.

    A start that saved no checkpoint, and has no numbers of a whole training, binds nobody.

    Args:
        cfg: a config node; OUTPUT_DIR names the folder.
        resume: whether `--resume` was given.

    Raises:
        ValueError: the folder's training is to be resumed under other settings, with another
            pretrained model or without its checkpoint, or there is one and `resume` is false.
    """
    folder = Path(cfg.OUTPUT_DIR)
    newest = last_checkpoint(folder)
    if newest is None:
        if _has_final_numbers(folder):
            raise ValueError(
                f"OUTPUT_DIR {folder} holds the {RESULTS_FILE} of a training whose checkpoints are"
                " gone: give another OUTPUT_DIR"
            )
        return
    if not resume:
        raise ValueError(
            f"OUTPUT_DIR {folder} holds a training: add --resume to continue it, or give another"
            " OUTPUT_DIR"
        )
    if not newest.is_file():
        raise ValueError(
            f"OUTPUT_DIR {folder} holds a training whose newest checkpoint, {newest.name}, is gone:"
            f" name one that is there in {folder / _LAST_CHECKPOINT}, or give another OUTPUT_DIR"
        )
    config = folder / _CONFIG
    before = leaves(yaml.safe_load(config.read_text())) if config.exists() else {}
    now = leaves(yaml.safe_load(cfg.dump()))
    changed = [
        f"{key} was {before[key]} and is {now[key]}"
        for key in sorted(before.keys() & now.keys() - _IRRELEVANT_KEYS)
        if before[key] != now[key]
    ]
    if model := _other_pretrained_model(folder, Path(cfg.MODEL.WEIGHTS)):
        changed.append(model)
    if changed:
        raise ValueError(
            f"OUTPUT_DIR {folder} holds another training ({'; '.join(changed)}): give another"
            " OUTPUT_DIR, or the settings that it was begun with"
        )


def forget_starts_without_checkpoint(folder: Path) -> None:
    """Removes the provenance of starts that saved no checkpoint: the next one owes them nothing."""
    if last_checkpoint(folder) is None:
        (folder / PROVENANCE_FILE).unlink(missing_ok=True)


def _has_final_numbers(folder: Path) -> bool:
    path = folder / RESULTS_FILE
    entries = json.loads(path.read_text()).values() if path.exists() else ()
    records = [entry.get("evaluated") for entry in entries]
    # Without a record they are of an earlier version, and may be.
    return any(record is None or record["iteration"] >= record["max_iter"] for record in records)


def _other_pretrained_model(folder: Path, weights: Path) -> str | None:
    starts = read_provenance(folder)
    first = (starts[0]["weights"] or {}).get("sha256") if starts else None
    # A resumed run does without the file.
    if first is None or not weights.is_file() or file_sha256(weights) == first:
        return None
    return f"MODEL.WEIGHTS {weights} is not the file whose sha256 is in {PROVENANCE_FILE}"
