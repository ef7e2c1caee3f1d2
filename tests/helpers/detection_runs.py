"""Runs of the transfer tasks on drawn data sets: names, settings for a small run on CPU, commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
VOC = "voc0712_faster_rcnn_R50_C4_24k"
COCO = "coco_mask_rcnn_R50_C4_1x"
FPN = "coco_mask_rcnn_R50_FPN_1x"
CPU = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN"]
SMALL = [
    *CPU,
    *("INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MAX_SIZE_TRAIN", "128"),
    *("INPUT.MIN_SIZE_TEST", "128", "INPUT.MAX_SIZE_TEST", "128"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.02", "SOLVER.WARMUP_ITERS", "4"),
    *("SOLVER.MAX_ITER", "40", "SOLVER.STEPS", "(25, 35)", "SOLVER.CHECKPOINT_PERIOD", "20"),
    *("TEST.PRECISE_BN.NUM_ITER", "2", "DATALOADER.NUM_WORKERS", "0", "SEED", "0"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "16"),
    # So few iterations make no class likely: every detection counts, for scores above 0.
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
]

# Two of the schedule's steps, on 128-pixel images of drawn rectangles.
TWO_STEPS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.NORM": "BN",
    "INPUT.MIN_SIZE_TRAIN": "(128,)",
    "INPUT.MAX_SIZE_TRAIN": "128",
    "INPUT.MIN_SIZE_TEST": "128",
    "INPUT.MAX_SIZE_TEST": "128",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "2",
    "SOLVER.STEPS": "(1,)",
    "SOLVER.WARMUP_ITERS": "1",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.PRECISE_BN.NUM_ITER": "2",
    "DATALOADER.NUM_WORKERS": "0",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "8",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "50",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "16",
}


def config(name, *options):
    from vissl_barlow.detection import trainer

    arguments = ["--config-file", name, *CPU, "MODEL.FPN.NORM", "BN", *map(str, options)]
    return trainer.build_config(trainer.argument_parser().parse_args(arguments))


def build(name, *options):
    from vissl_barlow.detection.trainer import TransferTrainer

    return TransferTrainer.build_model(config(name, *options)).eval()


def environment(data):
    return os.environ | {
        "DETECTRON2_DATASETS": str(data),
        "PYTHONPATH": str(PROJECT),
        "OMP_NUM_THREADS": "1",
    }


def command(data, *arguments):
    """Runs the command line on `data`; two processes share what cores there are."""
    return subprocess.run(
        [sys.executable, "-m", "vissl_barlow.detection", *map(str, arguments)],
        env=environment(data),
        capture_output=True,
        text=True,
    )


def succeed(data, output, name, weights, *flags, options=()):
    """Runs the command line with the settings of a small run, to its end."""
    done = command(
        data,
        *flags,
        *("--config-file", name, *SMALL, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", output),
        *options,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def train(data, output, name, weights, *flags, options=()):
    """A training's metrics and results; a line of metrics has the medians over 20 iterations."""
    succeed(data, output, name, weights, *flags, options=options)
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    # There is one line more after each evaluation.
    return [line for line in lines if "total_loss" in line], read_results(output)


def read_results(folder):
    return json.loads((folder / "results.json").read_text())
