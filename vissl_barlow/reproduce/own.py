"""`python -m vissl_barlow.reproduce own`: a checkpoint's numbers on a folder of one's own images.

Linear classification, k-NN, fine-tuning on shares of the labels, and SVMs, each by VISSL's own engines
and tools, and each once more with the untrained trunk. What follows from the images and the checkpoint
is in `own_protocol`.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch

from vissl_barlow.atomic_files import atomic_file
from vissl_barlow.checkpoint import CheckpointError, checkpoint_in
from vissl_barlow.datasets.file_lists import load_list, write_file_lists
from vissl_barlow.images import UnreadableFolder
from vissl_barlow.own_images import FolderRefused, OwnFolder, read_folder
from vissl_barlow.paths import is_within
from vissl_barlow.reproduce.commands import add_modes, add_out, refuse_own_keys, run_row
from vissl_barlow.reproduce.own_protocol import (
    LABELS,
    Evaluation,
    Pretrained,
    Protocol,
    read_pretrained,
)
from vissl_barlow.reproduce.settings import is_irrelevant
from vissl_barlow.reproduce.studies import folder_name
from vissl_barlow.reproduce.text import printable
from vissl_barlow.reproduce.transfer import OWN, load_table

TRUNKS = ("pretrained", "untrained")
_WEIGHTS_TRUNK = "config.BARLOW.WEIGHTS_TRUNK="
_SEED = "config.SEED_VALUE"  # in no folder's settings, and another run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command `own`."""
    checkpoint = "a pretrained trunk of any format that docs/evaluation.md lists"
    parser.add_argument("--checkpoint", type=Path, help=checkpoint)
    images = "folder of <class>/<image>, or of train/ and val/ with such"
    parser.add_argument("--images", type=Path, metavar="FOLDER", help=images)
    labels = "shares of the labels for fine-tuning, in percent; default: %(default)s"
    default = ",".join(map(str, LABELS))
    parser.add_argument("--labels", default=default, metavar="P,P", help=labels)
    add_out(parser)
    parser.add_argument("--only", default="", help="evaluations whose name contains this")
    mode = add_modes(parser, "evaluations")
    mode.add_argument("--slurm", action="store_true", help="submit them instead of running them")
    parser.add_argument("overrides", nargs="*", help="hydra's overrides, for every VISSL command")


def run(name: str, options: argparse.Namespace) -> int:
    """Runs what is missing, as `commands.run_table` does; returns the exit status.

    Raises:
        ValueError: there is nothing to evaluate, or nothing to evaluate it on, with all reasons; or a
            folder with another checkpoint's or other images' results.
    """
    if options.list:
        return 0
    refuse_own_keys(load_table(OWN).rows, options.overrides)
    protocol = _protocol(options)
    possible, left_out = protocol.evaluations()
    chosen = [each for each in possible if options.only in each.name]
    left_out = {name: why for name, why in left_out.items() if options.only in name}
    if not chosen:
        reasons = [f"{name}: {why}" for name, why in left_out.items()]
        names = ", ".join(each.name for each in possible)
        raise ValueError("; ".join(reasons) or f"--only {options.only} matches none of {names}")
    if not options.dry_run:
        print(printable(f"{options.images}: {protocol.folder.description}"))
        for line in protocol.folder.warnings:
            print(printable(f"warning: {line}"), file=sys.stderr, flush=True)
    for left, why in left_out.items():
        print(printable(f"left out: {left}: {why}"), file=sys.stderr, flush=True)
    lists = options.out.resolve() / OWN / "lists"
    _refuse_other_images(lists, protocol.folder)
    if not options.dry_run:
        _write_lists(lists, protocol)
    succeeded = []
    for each in chosen:
        if not options.dry_run:
            print(f"{each.name}: {each.summary}", flush=True)
        succeeded += [_run(each, trunk, lists, options) for trunk in TRUNKS]
    return int(not all(succeeded))


def _protocol(options: argparse.Namespace) -> Protocol:
    """What is to be evaluated on what.

    Raises:
        ValueError: what is wrong with the checkpoint, the images and the shares, all of it.
    """
    problems: list[str] = []
    pretrained = _read_checkpoint(options, problems)
    folder = _read_images(options.images, problems)
    labels = _shares(options.labels, problems)
    if options.images is not None and is_within(options.out, options.images):
        problems.append(
            f"--out {options.out}: lies in {options.images}, and its picture would be one of "
            f"the images; give {Path(os.path.abspath(options.images)).parent / options.out.name}"
        )
    if problems or pretrained is None or folder is None:
        raise ValueError("; ".join(problems))
    # What a job finds is not known here; GPUs are what VISSL's launcher asks for.
    gpus = 1 if options.slurm else torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0))
    return Protocol(folder, pretrained, gpus, cores, labels, options.overrides)


def _read_checkpoint(options: argparse.Namespace, problems: list[str]) -> Pretrained | None:
    path = options.checkpoint
    if path is None:
        problems.append("give --checkpoint FILE (the pretrained trunk)")
        return None
    trunks = (word for word in options.overrides if word.startswith(_WEIGHTS_TRUNK))
    prefix = "".join(word.removeprefix(_WEIGHTS_TRUNK) for word in trunks)
    try:
        return read_pretrained(str(path), prefix)
    except CheckpointError as error:
        problems.append(f"--checkpoint {error}")
    except OSError as error:
        newest = checkpoint_in(path)
        instead = f"; --checkpoint {newest} is one" if newest else ""
        problems.append(f"--checkpoint {path}: {error.strerror}{instead}")
    return None


def _read_images(path: Path | None, problems: list[str]) -> OwnFolder | None:
    if path is None:
        problems.append("give --images FOLDER (of class folders with images)")
        return None
    try:
        folder = read_folder(path)
    except FolderRefused as error:
        instead = f"; try --images {error.instead}" if error.instead else ""
        problems.append(f"--images {path}: {error}{instead}")
        return None
    except UnreadableFolder as error:
        problems.append(f"--images {path}: {error}")
        return None
    if len(folder.classes) < 2:
        problems.append(
            f"--images {path}: {folder.description}; an evaluation needs labels: sort the images into "
            f"{path}/CLASS/, two classes or more"
        )
        return None
    return folder


def _shares(text: str, problems: list[str]) -> list[float]:
    try:
        shares = [float(each) for each in text.split(",") if each]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 100 for share in shares):
        problems.append(f"--labels {text}: give percentages above 0, such as --labels 1,10")
    return list(dict.fromkeys(shares))


def _refuse_other_images(lists: Path, folder: OwnFolder) -> None:
    """Raises ValueError if `lists` are of other images, or of other labels."""
    for split, images, labels in _splits(folder):
        for kind, own in (("images", images), ("labels", labels)):
            path = lists / f"{split}_{kind}.npy"
            if path.exists() and not np.array_equal(load_list(path), np.asarray(own)):
                raise ValueError(
                    f"{lists.parent} holds the results of other images than are in {folder.root} now "
                    f"({path} differs); choose another folder with --out"
                )


def _splits(folder: OwnFolder) -> list[tuple[str, list[str], np.ndarray]]:
    """Name, absolute paths and labels of both splits."""
    assert folder.train_labels is not None and folder.test_labels is not None
    root = os.path.abspath(folder.root)
    return [
        (split, [os.path.join(root, name) for name in names], labels)
        for split, names, labels in (
            ("train", folder.train, folder.train_labels),
            ("test", folder.test, folder.test_labels),
        )
    ]


def _write_lists(lists: Path, protocol: Protocol) -> None:
    """Writes the lists of both splits, of the shares, and of the classes that SVMs want: a column
    each."""
    (_, images, labels), (_, test_images, test_labels) = _splits(protocol.folder)
    columns = np.eye(len(protocol.folder.classes), dtype=np.int32)
    lists.mkdir(parents=True, exist_ok=True)
    for split, numbers in (("train", labels), ("test", test_labels)):
        with atomic_file(lists / f"{split}_classes.npy") as file:
            np.save(file, columns[numbers], allow_pickle=False)
    write_file_lists(lists, "test", test_images, test_labels.tolist())
    for name, places in protocol.lists().items():
        write_file_lists(lists, name, [images[i] for i in places], labels[places].tolist())


def _run(evaluation: Evaluation, trunk: str, lists: Path, options: argparse.Namespace) -> bool:
    """Runs, submits or prints an evaluation of one of TRUNKS; whether nothing failed."""
    # Runs with more overrides are others: they must not pass for the protocol's own.
    more = [
        word
        for word in options.overrides
        if not is_irrelevant(key := word.partition("=")[0]) or key.lstrip("+") == _SEED
    ]
    name = f"{OWN}/{folder_name(evaluation.name, more)}/{trunk}"
    values = {
        "checkpoint": str(options.checkpoint.resolve()) if trunk == "pretrained" else "",
        "lists": str(lists),
        "train": evaluation.train,
        "num-gpus": "1",
    }
    given = argparse.Namespace(**{**vars(options), "overrides": evaluation.overrides})
    return run_row(evaluation.row, name, values, given)
