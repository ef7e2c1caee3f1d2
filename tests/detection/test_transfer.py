"""The transfer runs, for real, on CPU: drawn data sets, Detectron2's own trainer and evaluators."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from detection_datasets import draw_coco, draw_voc
from torch import nn

from vissl_barlow.checkpoint import CheckpointError, to_vissl

pytestmark = pytest.mark.detectron2
PROJECT = Path(__file__).resolve().parents[2]
VOC = "voc0712_faster_rcnn_R50_C4_24k"
COCO = "coco_mask_rcnn_R50_C4_1x"
FPN = "coco_mask_rcnn_R50_FPN_1x"
# 53 convolutions, and four tensors for each of their 53 norms.
BACKBONE_TENSORS = 265
# The same float32 operations in the same order; the issue of the weights' layout is far above it.
FEATURE_TOLERANCE = 1e-5
# Sums of eleven 1/11 and means over classes, in float64.
PERFECT_TOLERANCE = 1e-9
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
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from vissl_barlow.detection import compat  # noqa: F401, I001
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
    from detectron2.data.datasets.pascal_voc import CLASS_NAMES

    root = tmp_path_factory.mktemp("datasets")
    draw_voc(root, CLASS_NAMES)
    things = [c for c in COCO_CATEGORIES if c["isthing"]]
    draw_coco(root, [{"id": c["id"], "name": c["name"]} for c in things])
    return root


@pytest.fixture(scope="module")
def resnet():
    """Weights of pretraining's initialisation, with running statistics and scales of their own."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    model.fc = nn.Identity()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoints(resnet, tmp_path_factory):
    """The authors' format and VISSL's."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = SimpleNamespace(authors=folder / "resnet50.pth", vissl=folder / "final.torch")
    torch.save(resnet.state_dict(), paths.authors)
    torch.save(to_vissl(resnet.state_dict()), paths.vissl)
    return paths


def config(name, *options):
    from vissl_barlow.detection import trainer

    arguments = ["--config-file", name, *CPU, "MODEL.FPN.NORM", "BN", *map(str, options)]
    return trainer.build_config(trainer.argument_parser().parse_args(arguments))


def build(name, *options):
    from vissl_barlow.detection.trainer import TransferTrainer

    return TransferTrainer.build_model(config(name, *options)).eval()


def command(data, *arguments):
    """Runs the command line on `data`; two processes share what cores there are."""
    environment = os.environ | {
        "DETECTRON2_DATASETS": str(data),
        "PYTHONPATH": str(PROJECT),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "vissl_barlow.detection", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )


def train(data, output, name, weights, *flags, options=()):
    done = command(
        data,
        *flags,
        *("--config-file", name, *SMALL, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", output),
        *options,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    # One line per 20 iterations, each with the medians over them, and one after each evaluation.
    training = [line for line in lines if "total_loss" in line]
    return training, json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def voc_run(data, checkpoints, tmp_path_factory):
    """Two processes on CPU, from VISSL's format."""
    output = tmp_path_factory.mktemp("voc")
    metrics, results = train(data, output, VOC, checkpoints.vissl, "--num-gpus", 2)
    return SimpleNamespace(output=output, metrics=metrics, results=results)


def test_voc_trains_in_two_processes_and_is_evaluated_on_voc2007(voc_run):
    first, last = voc_run.metrics
    assert (first["iteration"], last["iteration"]) == (19, 39)
    assert last["total_loss"] < first["total_loss"]
    assert last["lr"] == pytest.approx(0.02 * 0.01)
    assert "VOC2007's 11-point" in voc_run.results["voc_2007_test"]["metric"]
    assert voc_run.results["voc_2007_test"]["bbox"].keys() == {"AP", "AP50", "AP75"}


def test_resume_continues_the_schedule_and_the_trained_model_evaluates_alike(
    voc_run, data, checkpoints
):
    (voc_run.output / "last_checkpoint").write_text("model_0000019.pth")
    (voc_run.output / "metrics.json").unlink()
    metrics, resumed = train(data, voc_run.output, VOC, checkpoints.vissl, "--resume")
    # A run begun anew would report at iteration 19 first; a schedule begun anew would end at 0.02.
    assert [line["iteration"] for line in metrics] == [39]
    assert metrics[0]["lr"] == pytest.approx(0.02 * 0.01)

    final = voc_run.output / "model_final.pth"
    _, again = train(data, voc_run.output, VOC, final, "--eval-only")
    assert again == resumed


def test_coco_trains_boxes_and_masks(data, checkpoints, tmp_path):
    (first, last), results = train(data, tmp_path, COCO, checkpoints.authors)
    assert last["total_loss"] < first["total_loss"]
    assert last["loss_mask"] > 0
    assert "COCO's" in results["coco_2017_val"]["metric"]
    for task in ("bbox", "segm"):
        assert {"AP", "AP50", "AP75"} <= results["coco_2017_val"][task].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.WEIGHTS", ""), "MODEL.WEIGHTS is empty"),
        (("MODEL.WEIGHTS", "absent.pth"), "absent.pth: no such file"),
        (("MODEL.RESNETS.DEPTH", 101), f"matches {BACKBONE_TENSORS} of 520 backbone tensors"),
        (("MODEL.RESNETS.NORM", "SyncBN"), "'SyncBN', which needs GPUs"),
        (("INPUT.FORMAT", "BGR"), "set it to 'RGB'"),
        (("DATASETS.TEST", "('voc_2007_val',)"), "voc_2007_val is missing: expected"),
        (("DATASETS.TEST", "('nowhere',)"), "'nowhere' is not registered"),
        (("SOLVER.NO_SUCH_KEY", "1"), "SOLVER.NO_SUCH_KEY"),
        (("SOLVER.BASE_LR", "fast"), "config key: SOLVER.BASE_LR"),
        (("MODEL.ROI_HEADS.NAME", "Nobodys"), "cannot be built: \"No object named 'Nobodys'"),
        (("--resume",), "--resume: flags go before"),
    ],
)
def test_what_a_user_can_mend_is_one_line_before_any_work(
    options, message, data, checkpoints, tmp_path, monkeypatch, capfd
):
    from detectron2.data import MetadataCatalog

    from vissl_barlow.detection.__main__ import main

    # Detectron2 reads DETECTRON2_DATASETS once, when it is imported.
    for name, year in (("voc_2007_trainval", 2007), ("voc_2012_trainval", 2012)):
        metadata = MetadataCatalog.get(name)
        monkeypatch.setitem(metadata.__dict__, "dirname", str(data / f"VOC{year}"))
    metadata = MetadataCatalog.get("voc_2007_test")
    monkeypatch.setitem(metadata.__dict__, "dirname", str(data / "VOC2007"))
    output = tmp_path / "run"
    given = ["MODEL.WEIGHTS", checkpoints.authors, "OUTPUT_DIR", output, *options]
    assert main(["--config-file", VOC, *SMALL, *map(str, given)]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not output.exists()


def test_eval_only_refuses_a_pretrained_trunk(checkpoints):
    from vissl_barlow.detection.weights import StrictCheckpointer

    with pytest.raises(CheckpointError, match=r"tensors of the detection model random.*eval-only"):
        StrictCheckpointer(build(VOC)).load(str(checkpoints.authors))


def test_scaling_keeps_the_images_per_gpu_and_the_epochs():
    from vissl_barlow.detection import trainer

    arguments = ["--scale-batch-and-lr", "--num-gpus", "2", "--config-file", VOC]
    solver = trainer.build_config(trainer.argument_parser().parse_args(arguments)).SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (4, 0.1 / 4)
    assert (solver.MAX_ITER, solver.STEPS) == (96000, (72000, 88000))
    assert solver.WARMUP_ITERS == 4000


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        (VOC, {"conv1": "backbone.stem.conv1", "layer4.2.bn3": "roi_heads.res5.2.conv3.norm"}),
        (FPN, {"layer4.0.downsample.1": "backbone.bottom_up.res5.0.shortcut.norm"}),
    ],
)
@pytest.mark.parametrize("source", ["authors", "vissl"])
def test_every_backbone_tensor_is_loaded(name, layers, source, resnet, checkpoints):
    from vissl_barlow.detection.weights import load_backbone

    model = build(name)
    assert load_backbone(model, getattr(checkpoints, source)) == BACKBONE_TENSORS
    for theirs, ours in layers.items():
        expected = resnet.get_submodule(theirs).weight
        assert torch.equal(model.get_submodule(ours).weight, expected)


def test_features_equal_torchvisions(resnet, checkpoints):
    from vissl_barlow.detection.weights import load_backbone

    model = build(VOC, "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4']")
    load_backbone(model, checkpoints.vissl)
    pixels = torch.randint(256, (3, 128, 160), dtype=torch.uint8)
    image = model.preprocess_image([{"image": pixels}]).tensor
    normalize = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(
        image[0], normalize(pixels / 255), rtol=FEATURE_TOLERANCE, atol=FEATURE_TOLERANCE
    )
    with torch.no_grad():
        ours = model.backbone(image)
        ours["res5"] = model.roi_heads.res5[:3](ours["res4"])
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image))))
        for stage in (2, 3, 4, 5):
            x = resnet.get_submodule(f"layer{stage - 1}")(x)
            torch.testing.assert_close(
                ours[f"res{stage}"], x, rtol=FEATURE_TOLERANCE, atol=FEATURE_TOLERANCE
            )


def test_strides_in_the_1x1_convolutions_load_as_well_and_change_the_features(resnet, checkpoints):
    """Why `check_input` exists: nothing else notices."""
    from vissl_barlow.detection.weights import load_backbone

    model = build(VOC, "MODEL.RESNETS.STRIDE_IN_1X1", True)
    assert load_backbone(model, checkpoints.vissl) == BACKBONE_TENSORS
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        stem = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image))))
        expected = resnet.layer3(resnet.layer2(resnet.layer1(stem)))
        distance = (model.backbone(image)["res4"] - expected).norm() / expected.norm()
    assert distance > 0.1


def test_the_extra_norm_follows_res5_beside_vissls_head():
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY

    import vissl_barlow.detection.roi_heads  # noqa: F401

    head = build(VOC).roi_heads
    assert [type(m).__name__ for m in head.res5] == ["BottleneckBlock"] * 3 + ["BatchNorm2d"]
    if importlib.util.find_spec("tools.object_detection_benchmark") is None:
        pytest.skip("VISSL is not installed beside Detectron2")
    import tools.object_detection_benchmark  # noqa: F401

    assert "Res5ROIHeadsExtraNorm" in ROI_HEADS_REGISTRY
    theirs = build(VOC, "MODEL.ROI_HEADS.NAME", "Res5ROIHeadsExtraNorm")
    assert theirs.roi_heads.state_dict().keys() == head.state_dict().keys()


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
