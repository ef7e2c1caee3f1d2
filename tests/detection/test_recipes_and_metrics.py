"""Detectron2's own account of the recipes: keys, learning rates, scaling, and what a score is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_runs import COCO, FPN, VOC, config
from torch import nn

pytestmark = pytest.mark.detectron2
# Sums of eleven 1/11 and means over classes, in float64.
PERFECT_TOLERANCE = 1e-9


def test_scaling_keeps_the_images_per_gpu_and_the_epochs():
    from vissl_barlow.detection import trainer

    arguments = ["--scale-batch-and-lr", "--num-gpus", "2", "--config-file", VOC]
    solver = trainer.build_config(trainer.argument_parser().parse_args(arguments)).SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (4, 0.1 / 4)
    assert (solver.MAX_ITER, solver.STEPS) == (96000, (72000, 88000))
    assert solver.WARMUP_ITERS == 4000


@pytest.mark.parametrize("name", [VOC, COCO])
def test_detectron2_computes_the_learning_rates_of_the_recipe(name):
    from detectron2.solver import build_lr_scheduler

    curves = {
        VOC: {0: 0.0333, 500: 0.06665, 1000: 0.1, 17999: 0.1, 18000: 0.01, 22000: 0.001},
        COCO: {0: 3e-5, 500: 0.015015, 1000: 0.03, 59999: 0.03, 60000: 3e-3, 80000: 3e-4},
    }
    cfg = config(name)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for iteration, expected in curves[name].items():
        scheduler.last_epoch = iteration
        assert scheduler.get_lr() == [pytest.approx(expected)], iteration


def test_recorded_keys_are_detectron2s():
    """test_config.py checks our files against the record where Detectron2 is absent."""
    from detectron2.config import get_cfg

    def leaves(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key, type(value).__name__

    recorded = json.loads(Path(__file__).with_name("detectron2_config_keys.json").read_text())
    actual = dict(leaves(get_cfg()))
    used = dict(leaves(config(VOC))) | dict(leaves(config(FPN)))
    assert {key: recorded[key] for key in recorded if key in actual} == actual
    assert used.keys() <= actual.keys()


def instances(record, mask_format=False):
    from detectron2.structures import Boxes, BoxMode, Instances
    from pycocotools import mask

    found = Instances((record["height"], record["width"]))
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]
    ]
    found.pred_boxes = Boxes(torch.tensor(boxes))
    found.scores = torch.ones(len(boxes))
    found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
    if mask_format:
        size = (record["height"], record["width"])
        masks = [
            mask.decode(mask.merge(mask.frPyObjects(a["segmentation"], *size)))
            for a in record["annotations"]
        ]
        found.pred_masks = torch.from_numpy(np.stack(masks)).bool()
    return found


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_ground_truth_scores_exactly_100(kind, data, tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances, register_pascal_voc

    from vissl_barlow.detection.trainer import TransferTrainer

    name = f"drawn_{kind}_test"
    if kind == "voc":
        register_pascal_voc(name, str(data / "VOC2007"), "test", 2007)
        MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    else:
        annotations = data / "coco/annotations/instances_val2017.json"
        register_coco_instances(name, {}, str(annotations), str(data / "coco/val2017"))
    try:
        evaluator = TransferTrainer.build_evaluator(config(VOC, "OUTPUT_DIR", tmp_path), name)
        evaluator.reset()
        for record in DatasetCatalog.get(name):
            found = instances(record, mask_format=kind == "coco")
            evaluator.process([record], [{"instances": found}])
        results = evaluator.evaluate()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert results.keys() == ({"bbox"} if kind == "voc" else {"bbox", "segm"})
    for task in results.values():
        for key in ("AP", "AP50", "AP75"):
            assert task[key] == pytest.approx(100, rel=0, abs=PERFECT_TOLERANCE)
