"""Training and evaluation of the transfer tasks on Detectron2's DefaultTrainer."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from vissl_barlow.atomic_files import write_text_atomically
from vissl_barlow.detection import compat, roi_heads  # noqa: F401 (first: mends what follows)
from vissl_barlow.detection.checks import check_run
from vissl_barlow.detection.config import config_path, leaves, refuse
from vissl_barlow.detection.datasets import data_of, metric_note
from vissl_barlow.detection.machines import refuse_unlike_machines
from vissl_barlow.detection.run_folder import (
    EVAL_ONLY,
    EVAL_ONLY_FOLDER,
    RESULTS_FILE,
    TRAINING,
    evaluated,
    forget_starts_without_checkpoint,
    last_checkpoint,
)
from vissl_barlow.detection.stopping import StopHook, passed_on
from vissl_barlow.detection.weights import StrictCheckpointer, load_backbone
from vissl_barlow.provenance import command_line, note_hours, write_provenance
from vissl_barlow.stop_signals import (
    end_loader_workers_at_exit,
    held_back,
    leave_signals_to_the_run,
    let_through,
)

# isort: split
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    DefaultTrainer,
    default_argument_parser,
    default_setup,
    hooks,
    launch,
)
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

# A child of the logger that `default_setup` configures.
logger = logging.getLogger("detectron2.vissl_barlow")

# GPUs for which the configs state IMS_PER_BATCH and BASE_LR (paper, appendix C).
REFERENCE_WORLD_SIZE = 8


class TransferTrainer(DefaultTrainer):
    """DefaultTrainer that starts from a whole pretrained trunk, evaluates the model that is saved,
    and says which one that was and what its metric is."""

    def resume_or_load(self, resume: bool = True) -> None:
        """Resumes OUTPUT_DIR's last checkpoint, or loads the trunk in MODEL.WEIGHTS.

        Raises:
            CheckpointError: not every backbone tensor is matched.
        """
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume=True)
            return
        model = self.model
        if isinstance(model, DistributedDataParallel):
            model = model.module
        count = load_backbone(model, PathManager.get_local_path(self.cfg.MODEL.WEIGHTS))
        logger.info("Loaded all %d backbone tensors from %s", count, self.cfg.MODEL.WEIGHTS)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        if MetadataCatalog.get(dataset_name).evaluator_type == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        return COCOEvaluator(dataset_name, output_dir=output_folder)

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict:
        """Evaluates the main process's model, the one that is saved, on DATASETS.TEST.

        Detectron2 evaluates in each process with that process's running statistics, which differ: plain
        BN sees the local images, and precise BN weighs by the local batch, under SyncBN too. The AP is
        then of no single model, and not that of model_final.pth. (engine/defaults.py:414 in main, :380
        in 0.6, `broadcast_buffers=False`; fvcore 0.1.5, nn/precise_bn.py:152; Detectron2's issue 5398.)
        """
        if comm.get_world_size() > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        return super().test(cfg, model, evaluators)

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Detectron2's, the evaluations recorded, and what stops a training without losing a step."""
        recorded = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
        own = [
            recorded if isinstance(hook, hooks.EvalHook) else hook for hook in super().build_hooks()
        ]
        return [*own, StopHook()]

    def run_step(self) -> None:
        # The first starts the loader's workers: they leave requests to stop to the training for good.
        with held_back() if self.iter == self.start_iter else contextlib.nullcontext():
            super().run_step()

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        loader = super().build_test_loader(cfg, dataset_name)
        loader.worker_init_fn = leave_signals_to_the_run
        return loader

    def _evaluate(self) -> dict:
        self._last_eval_results = results = self.test(self.cfg, self.model)
        if comm.is_main_process():
            last = self.iter + 1 >= self.max_iter
            # After the last step, `iter` is MAX_ITER, more after a resume without a step, and less
            # where that step failed.
            iteration = min(self.iter, self.max_iter) if last else self.iter + 1
            names = (f"model_{iteration - 1:07d}", *(["model_final"] if last else []))
            newest = last_checkpoint(Path(self.cfg.OUTPUT_DIR))
            weights = newest if newest is not None and newest.stem in names else None
            record = evaluated(TRAINING, iteration, self.max_iter, weights)
            write_results(self.cfg, results, record)
        return results


def write_results(cfg: CfgNode, results: Mapping, record: Mapping[str, Any]) -> None:
    """Writes OUTPUT_DIR/results.json; to be called by the main process.

    The file maps each data set to its `metric`, a sentence, to what was `evaluated`, as
    `run_folder.evaluated` describes it, and to the numbers of each task, in percent, null where a
    class has no ground truth:
    `{"voc_2007_test": {"metric": ..., "evaluated": {"start": "training", "iteration": 24000, ...},
    "bbox": {"AP": ..., "AP50": ..., "AP75": ...}}}`.

    Args:
        results: of `TransferTrainer.test`.
        record: of `run_folder.evaluated`.
    """
    names = cfg.DATASETS.TEST
    by_dataset = {names[0]: results} if len(names) == 1 else results
    report = {}
    for name, tasks in by_dataset.items():
        metric = metric_note(MetadataCatalog.get(name))
        logger.info("%s: %s", name, metric)
        report[name] = {"metric": metric, "evaluated": record, **_finite(tasks)}
    write_text_atomically(Path(cfg.OUTPUT_DIR, RESULTS_FILE), json.dumps(report, indent=2) + "\n")


def _finite(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    return {
        task: {k: float(v) if math.isfinite(v) else None for k, v in scores.items()}
        for task, scores in tasks.items()
    }


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments and `--scale-batch-and-lr`."""
    parser = default_argument_parser(
        epilog="example: python -m vissl_barlow.detection --num-gpus 8 --config-file"
        " voc0712_faster_rcnn_R50_C4_24k MODEL.WEIGHTS checkpoint.torch OUTPUT_DIR voc SEED 0"
    )
    parser.prog = "python -m vissl_barlow.detection"
    parser.add_argument(
        "--scale-batch-and-lr",
        action="store_true",
        help=f"keep the images per GPU of the {REFERENCE_WORLD_SIZE}-GPU recipe: batch size and"
        " learning rate scale with the number of GPUs, the schedule's length inversely",
    )
    parser.set_defaults(dist_url="auto")
    return parser


def build_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run; sets `args.config_file` to the file's path.

    With `--eval-only`, OUTPUT_DIR is the folder `eval_only` below the one that was given, and with
    `--resume` too, MODEL.WEIGHTS is the newest checkpoint of the one that was given.

    Raises:
        ValueError: the file, a key or a value is not what Detectron2 knows.
    """
    _check_processes(args)
    if flags := [option for option in args.opts if option.startswith("--")]:
        raise ValueError(f"{' '.join(flags)}: flags go before the first KEY VALUE pair")
    if len(args.opts) % 2:
        raise ValueError(f"{args.opts[-1]}: overrides are pairs, KEY VALUE")
    args.config_file = str(config_path(args.config_file))
    cfg = get_cfg()
    refuse(_faults_of_merging(args.config_file, lambda: cfg.merge_from_file(args.config_file)))
    faults: list[str] = []
    keys = set(leaves(cfg))
    for key, value in zip(args.opts[::2], args.opts[1::2]):
        near = [] if key in keys else get_close_matches(key, keys, n=1)
        what = f"{key} {value}" + "".join(f" (is {name} meant?)" for name in near)
        faults += _faults_of_merging(what, partial(cfg.merge_from_list, [key, value]))
    refuse(faults)
    if args.scale_batch_and_lr:
        if cfg.SOLVER.IMS_PER_BATCH % REFERENCE_WORLD_SIZE:
            raise ValueError(
                f"--scale-batch-and-lr with SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}: give the"
                f" batch for {REFERENCE_WORLD_SIZE} GPUs, a multiple of {REFERENCE_WORLD_SIZE}"
            )
        cfg.SOLVER.REFERENCE_WORLD_SIZE = REFERENCE_WORLD_SIZE
        cfg = DefaultTrainer.auto_scale_workers(cfg, args.num_gpus * args.num_machines)
    if args.eval_only:
        newest = last_checkpoint(Path(cfg.OUTPUT_DIR)) if args.resume else None
        cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS if newest is None else str(newest)
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, EVAL_ONLY_FOLDER)
    cfg.freeze()
    return cfg


def _check_processes(args: argparse.Namespace) -> None:
    faults = [
        f"--{flag} {value}: give 1 or more{remedy}"
        for flag, value, remedy in (
            (
                "num-gpus",
                args.num_gpus,
                "; on CPU (MODEL.DEVICE cpu MODEL.RESNETS.NORM BN) it counts processes",
            ),
            ("num-machines", args.num_machines, ""),
        )
        if value < 1
    ]
    if not 0 <= args.machine_rank < max(1, args.num_machines):
        faults.append(
            f"--machine-rank {args.machine_rank}: of --num-machines {args.num_machines}, give each "
            "its own, from 0"
        )
    refuse(faults)


def _faults_of_merging(what: str, merge: Callable[[], Any]) -> list[str]:
    try:
        merge()
    except Exception as error:  # of yaml, yacs or fvcore, each with kinds and layouts of its own
        return [f"{what}: {' '.join(str(error).split())}"]
    return []


def run(args: argparse.Namespace, cfg: CfgNode, data: Mapping[str, Any]) -> None:
    """One process of a run that reads `data`, as `data_of` has it."""
    if comm.get_world_size() > 1:
        let_through()
    end_loader_workers_at_exit()
    refuse_unlike_machines(cfg, args, data)
    default_setup(cfg, args)
    if args.eval_only:
        model = TransferTrainer.build_model(cfg)
        checkpoint = StrictCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        results = TransferTrainer.test(cfg, model)
        if comm.is_main_process():
            last = checkpoint.get("iteration")
            iteration = None if last is None else last + 1
            path = Path(PathManager.get_local_path(cfg.MODEL.WEIGHTS))
            write_results(cfg, results, evaluated(EVAL_ONLY, iteration, cfg.SOLVER.MAX_ITER, path))
        return
    trainer = TransferTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def prepare(args: argparse.Namespace) -> CfgNode:
    """The config of a run that can start: `build_config`, then `check_run`; same errors."""
    cfg = build_config(args)
    # What is to be typed is in the recipe's own units.
    unscaled = {**vars(args), "scale_batch_and_lr": False}
    typed, recipe = (
        build_config(argparse.Namespace(**each)) for each in (unscaled, unscaled | {"opts": []})
    )
    check_run(cfg, args, typed.SOLVER, recipe.SOLVER)
    return cfg


def _data(cfg: CfgNode, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    names = {"train": () if args.eval_only else cfg.DATASETS.TRAIN, "test": cfg.DATASETS.TEST}
    splits = {split: {name: MetadataCatalog.get(name) for name in names[split]} for split in names}
    return data_of({split: datasets for split, datasets in splits.items() if datasets})


def launch_run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Starts the processes of a prepared run and waits for them."""
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        # Where it sees a GPU, Detectron2 joins processes over NCCL, which cannot move CPU tensors.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    folder, data = Path(cfg.OUTPUT_DIR), _data(cfg, args)
    recorded = args.machine_rank == 0
    if recorded:
        folder.mkdir(parents=True, exist_ok=True)
        forget_starts_without_checkpoint(folder)
        write_provenance(
            folder,
            cfg.SEED,
            command_line(),
            weights=cfg.MODEL.WEIGHTS and PathManager.get_local_path(cfg.MODEL.WEIGHTS),
            processes=args.num_gpus * args.num_machines,
            data=data,
        )
    several = args.num_gpus * args.num_machines > 1
    with passed_on() if several else contextlib.nullcontext():
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, cfg, data),
        )
    if recorded:
        note_hours(folder)
