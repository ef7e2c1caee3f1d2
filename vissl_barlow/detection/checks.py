"""What is refused before a run: all of it at once, a line for each fault."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from vissl_barlow.checkpoint import read_checkpoint, read_trunk
from vissl_barlow.checkpoint.pretraining import pretraining_views
from vissl_barlow.detection import compat, roi_heads  # noqa: F401 (first: mends what follows)
from vissl_barlow.detection.config import (
    PAPERS,
    Normalization,
    check_hardware,
    check_input,
    check_precision,
    check_schedule,
    check_trunk,
    check_unread,
    leaves,
    refuse,
    shipped_configs,
)
from vissl_barlow.detection.datasets import check_dataset, count_images, metric_note
from vissl_barlow.detection.run_folder import check_folder, last_checkpoint, pixels_of
from vissl_barlow.detection.weights import StrictCheckpointer, load_backbone

# isort: split
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager


def check_run(cfg: CfgNode, args: argparse.Namespace, typed: CfgNode, recipe: CfgNode) -> None:
    """Finds in seconds what would fail after minutes of loading, or would fail silently.

    Args:
        typed, recipe: its section `SOLVER` before it was scaled, and without the command's overrides.

    Raises:
        ValueError: a line for each fault: a data set is missing, the hardware, the config or
            OUTPUT_DIR unfit, the weights missing, unreadable or not whole.
    """
    checks: list[Callable[[], None]] = [
        partial(_check_machines, args),
        partial(check_input, cfg, _normalization(cfg, args)),
        partial(
            check_hardware,
            cfg,
            processes=args.num_gpus * args.num_machines,
            processes_per_machine=args.num_gpus,
            gpus=torch.cuda.device_count(),
        ),
    ]
    trained_on = () if args.eval_only else cfg.DATASETS.TRAIN
    checks += [partial(_check_dataset, name, tested=False) for name in trained_on]
    checks += [partial(_check_dataset, name, tested=True) for name in cfg.DATASETS.TEST]
    checks += [partial(_check_classes, cfg), partial(check_unread, cfg)]
    if not args.eval_only:
        checks.append(partial(_check_name, args.config_file))
        checks.append(partial(check_schedule, typed, recipe))
        checks.append(partial(check_precision, cfg))
        checks.append(partial(check_folder, cfg, resume=args.resume))
    checks.append(partial(_check_weights, cfg, args))
    faults = []
    for check in checks:
        try:
            check()
        except (ValueError, OSError) as error:
            faults.append(str(error))
    refuse(faults)


def _check_name(config_file: str) -> None:
    """Refuses a changed copy of a shipped config by its name, under which a report has its runs."""
    path, shipped = Path(config_file), shipped_configs().get(Path(config_file).stem)
    if shipped is None:
        return
    own, theirs = get_cfg(), get_cfg()
    own.merge_from_file(str(path))
    theirs.merge_from_file(str(shipped))
    known = leaves(theirs)
    if changed := sorted(k for k, v in leaves(own).items() if known.get(k) != v):
        raise ValueError(
            f"--config-file {path} has the name of the config that this package brings, and other"
            f" values ({', '.join(changed)}), so that its numbers would pass for that one's: rename it,"
            f" or give --config-file {shipped.stem} and those values as overrides"
        )


def _normalization(cfg: CfgNode, args: argparse.Namespace) -> Normalization:
    """Of the images that the weights were trained on; the paper's where nothing says so."""
    resumed = last_checkpoint(Path(cfg.OUTPUT_DIR)) if args.resume and not args.eval_only else None
    try:
        path = resumed or Path(PathManager.get_local_path(cfg.MODEL.WEIGHTS))
        config = path.parent / "config.yaml"
        if (resumed or args.eval_only) and config.is_file():
            return pixels_of(config)
        views = pretraining_views(read_checkpoint(path))
        return (views.mean, views.std) if views else PAPERS
    except (ValueError, OSError):  # `_check_weights` says why
        return PAPERS


def _check_machines(args: argparse.Namespace) -> None:
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError(
            f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT of the first one"
        )


def _check_dataset(name: str, *, tested: bool) -> None:
    if name not in DatasetCatalog.list():
        raise ValueError(f"dataset {name!r} is not registered with Detectron2")
    metadata = MetadataCatalog.get(name)
    check_dataset(name, metadata)
    count_images(name, metadata)
    if tested:
        metric_note(metadata)


def _check_classes(cfg: CfgNode) -> None:
    own = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        classes = MetadataCatalog.get(name).get("thing_classes") or ()
        if len(classes) not in (0, own):
            raise ValueError(
                f"MODEL.ROI_HEADS.NUM_CLASSES {own}, but dataset {name} has {len(classes)} classes:"
                f" set it to {len(classes)}"
            )


def _check_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    resumes = args.resume and last_checkpoint(Path(cfg.OUTPUT_DIR)) is not None
    if resumes and not args.eval_only:
        return
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: give the checkpoint to transfer")
    try:
        path = PathManager.get_local_path(cfg.MODEL.WEIGHTS)
    except OSError as error:
        raise ValueError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: cannot be downloaded ({error}): download it yourself,"
            " and name the file"
        ) from None
    if not os.path.isfile(path):
        raise FileNotFoundError(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: no such file")
    if not args.eval_only:
        check_trunk(cfg, read_trunk(path).layout)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    try:
        model = build_model(cfg)
    except (AssertionError, KeyError) as error:
        raise ValueError(f"the model of {args.config_file} cannot be built: {error}") from error
    if args.eval_only:
        StrictCheckpointer(model).load(path)
    else:
        load_backbone(model, path)
