"""The transfer configs and the checks before a run; nothing here needs Detectron2."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fvcore.common.config import CfgNode

from vissl_barlow.detection.config import check_hardware, check_input, config_path
from vissl_barlow.detection.datasets import check_dataset, count_images, data_of, metric_note

LEAVES = (
    "voc0712_faster_rcnn_R50_C4_24k",
    "coco_mask_rcnn_R50_C4_1x",
    "coco_mask_rcnn_R50_C4_2x",
    "coco_mask_rcnn_R50_FPN_1x",
)
PROJECT = Path(__file__).resolve().parents[2]
# The table of learning rates is given to four decimals.
LR_ROUNDING = 5e-5
# Written by hand from the paper's appendix C and MoCo's setup, not read from the files.
TRANSFER = {
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "SOLVER.IMS_PER_BATCH": 16,
    "VERSION": 2,
}
VOC = TRANSFER | {
    "MODEL.ROI_HEADS.NAME": "BarlowRes5ROIHeadsExtraNorm",
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "INPUT.MIN_SIZE_TRAIN": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    "INPUT.MIN_SIZE_TEST": 800,
    "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"),
    "DATASETS.TEST": ("voc_2007_test",),
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.MAX_ITER": 24000,
    "SOLVER.STEPS": (18000, 22000),
    "SOLVER.WARMUP_FACTOR": 0.333,
    "SOLVER.WARMUP_ITERS": 1000,
}
COCO = TRANSFER | {
    "MODEL.ROI_HEADS.NAME": "BarlowRes5ROIHeadsExtraNorm",
    "MODEL.MASK_ON": True,
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    "INPUT.MIN_SIZE_TEST": 800,
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "SOLVER.BASE_LR": 0.03,
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.STEPS": (60000, 80000),
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WARMUP_ITERS": 1000,
}


def load(name: str) -> CfgNode:
    return CfgNode(CfgNode.load_yaml_with_base(str(config_path(name))))


def flatten(node: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, str) and value.startswith("("):  # Detectron2 evaluates tuples
            flat[prefix + key] = ast.literal_eval(value)
        else:
            flat[prefix + key] = value
    return flat


def lr_at(solver: CfgNode, iteration: int) -> float:
    """Linear warm-up of the multiplier from WARMUP_FACTOR to 1, then a tenth after each step."""
    steps = ast.literal_eval(solver.STEPS)
    warm = min(iteration / solver.WARMUP_ITERS, 1)
    factor = solver.WARMUP_FACTOR * (1 - warm) + warm
    return solver.BASE_LR * factor * 0.1 ** sum(step <= iteration for step in steps)


@pytest.mark.parametrize("name", LEAVES)
def test_every_key_and_type_is_detectron2s(name):
    known = json.loads(Path(__file__).with_name("detectron2_config_keys.json").read_text())
    for key, value in flatten(load(name)).items():
        # Detectron2's config converts between the two.
        kinds = {"list", "tuple"} if isinstance(value, (list, tuple)) else {type(value).__name__}
        assert known[key] in kinds, key


def test_table_4_recipes_are_stated_whole_and_nothing_else_is_changed():
    assert flatten(load("voc0712_faster_rcnn_R50_C4_24k")) == VOC
    assert flatten(load("coco_mask_rcnn_R50_C4_1x")) == COCO


def test_variants_differ_from_coco_1x_only_where_they_say():
    two = {"SOLVER.MAX_ITER": 180000, "SOLVER.STEPS": (120000, 160000)}
    assert flatten(load("coco_mask_rcnn_R50_C4_2x")) == COCO | two
    fpn = flatten(load("coco_mask_rcnn_R50_FPN_1x"))
    changed = {key for key in fpn if key in COCO and fpn[key] != COCO[key]}
    assert changed == {"MODEL.ROI_HEADS.NAME", "SOLVER.BASE_LR"}
    assert fpn["MODEL.ROI_HEADS.NAME"] == "StandardROIHeads"
    assert fpn["MODEL.FPN.NORM"] == "SyncBN"


@pytest.mark.parametrize(
    ("name", "curve"),
    [
        (
            "voc0712_faster_rcnn_R50_C4_24k",
            {0: 0.0333, 500: 0.0667, 1000: 0.1, 17999: 0.1, 18000: 0.01, 22000: 0.001},
        ),
        (
            "coco_mask_rcnn_R50_C4_1x",
            {0: 0.00003, 500: 0.0150, 1000: 0.03, 60000: 0.003, 80000: 0.0003},
        ),
        ("coco_mask_rcnn_R50_C4_2x", {1000: 0.03, 119999: 0.03, 120000: 0.003, 160000: 0.0003}),
    ],
)
def test_learning_rate_curve(name, curve):
    solver = load(name).SOLVER
    assert {i: lr_at(solver, i) for i in curve} == pytest.approx(curve, rel=0, abs=LR_ROUNDING)
    assert max(curve) < solver.MAX_ITER


def test_config_names_are_found_and_wrong_ones_list_the_right_ones(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.touch()
    assert config_path(str(mine)) == mine
    with pytest.raises(ValueError, match=r"'voc'.*coco_mask_rcnn_R50_C4_1x, .*voc0712_faster") as e:
        config_path("voc")
    assert "base_" not in str(e.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.RESNETS.STRIDE_IN_1X1", True, "STRIDE_IN_1X1 is True.*set it to False"),
        ("INPUT.FORMAT", "BGR", "INPUT.FORMAT is 'BGR'.*set it to 'RGB'"),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675], r"PIXEL_MEAN is \[103.53.*to \[123.675"),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0], r"PIXEL_STD is \[1.0.*to \[58.395"),
        ("MODEL.PIXEL_STD", [58.395], r"PIXEL_STD is \[58.395\]"),
    ],
)
@pytest.mark.parametrize("name", LEAVES)
def test_inputs_that_ruin_pretrained_features_are_refused(name, key, value, message):
    cfg = load(name)
    check_input(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        check_input(cfg)


def test_images_are_normalised_as_in_pretraining():
    other = ([0.5, 0.25, 0.2], [0.2, 0.25, 0.5])
    cfg = load(LEAVES[0])
    with pytest.raises(
        ValueError, match=r"PIXEL_MEAN is .*set it to \[127.5, 63.75, 51.0\]\n.*_STD"
    ):
        check_input(cfg, other)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [127.5, 63.75, 51.0], [51.0, 63.75, 127.5]
    check_input(cfg, other)
    with pytest.raises(ValueError, match="PIXEL_MEAN is"):
        check_input(cfg)


def hardware(cfg, **changes):
    check_hardware(cfg, **{"processes": 1, "processes_per_machine": 1, "gpus": 0} | changes)


@pytest.mark.parametrize("name", LEAVES)
def test_gpus_are_asked_for_only_where_the_config_needs_them(name):
    cfg = load(name)
    cfg.MODEL.DEVICE = "cuda"
    hardware(cfg, processes=16, processes_per_machine=8, gpus=8)
    fpn = " MODEL.FPN.NORM BN" if "FPN" in cfg.MODEL else ""
    remedy = rf"no CUDA device.*MODEL.DEVICE cpu MODEL.RESNETS.NORM BN{fpn}$"
    with pytest.raises(ValueError, match=remedy):
        hardware(cfg)
    with pytest.raises(ValueError, match=r"--num-gpus 4 but 2 CUDA.*--num-gpus 2"):
        hardware(cfg, processes=4, processes_per_machine=4, gpus=2)
    with pytest.raises(ValueError, match="IMS_PER_BATCH 16 cannot be divided among 3"):
        hardware(cfg, processes=3, processes_per_machine=3, gpus=8)
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(ValueError, match=r"RESNETS.NORM is 'SyncBN', which needs GPUs.*NORM BN"):
        hardware(cfg, gpus=8)
    cfg.MODEL.RESNETS.NORM = "BN"
    if "FPN" in cfg.MODEL:
        with pytest.raises(ValueError, match=r"add MODEL.FPN.NORM BN"):
            hardware(cfg)
        cfg.MODEL.FPN.NORM = "BN"
    hardware(cfg, processes=2, processes_per_machine=2)


def test_missing_datasets_are_named_with_the_folder_expected(tmp_path, monkeypatch):
    voc = SimpleNamespace(dirname=str(tmp_path / "VOC2007"), split="test")
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    with pytest.raises(ValueError, match=r"voc_2007_test is missing.*is unset.*\./datasets"):
        check_dataset("voc_2007_test", voc)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        Path(voc.dirname, name).mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(ValueError) as error:
        check_dataset("voc_2007_test", voc)
    assert f"expected {voc.dirname}/ImageSets/Main/test.txt (" in str(error.value)
    assert f"DETECTRON2_DATASETS is {tmp_path}" in str(error.value)
    Path(voc.dirname, "ImageSets/Main/test.txt").touch()
    check_dataset("voc_2007_test", voc)

    coco = SimpleNamespace(json_file=str(tmp_path / "a.json"), image_root=str(tmp_path / "val"))
    with pytest.raises(ValueError, match=r"expected \S+/val and \S+/a.json"):
        check_dataset("coco_2017_val", coco)


def test_images_are_counted_and_their_files_are_there(tmp_path):
    voc = SimpleNamespace(dirname=str(tmp_path), split="test")
    names = ["000001", "000002"]
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.{ending}").touch()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("\n".join(names) + "\n")
    assert count_images("voc_2007_test", voc) == len(names)
    read = data_of({"test": {"voc_2007_test": voc, "voc_2012_test": voc}})
    assert read["test"]["images"] == 2 * len(names)
    (tmp_path / "Annotations" / "000002.xml").unlink()
    with pytest.raises(
        ValueError, match=r"test.txt: 1 files .* missing: \S+ions/000002.xml; unpack"
    ):
        count_images("voc_2007_test", voc)

    listed = tmp_path / "val.json"
    coco = SimpleNamespace(json_file=str(listed), image_root=str(tmp_path / "JPEGImages"))
    listed.write_text(json.dumps({"images": [{"file_name": "000001.jpg"}]}))
    assert count_images("coco_2017_val", coco) == 1
    for number, (text, reason) in enumerate(
        (('{"images": []}', "is empty"), ("{", "cannot be read"))
    ):
        coco.json_file = str(tmp_path / f"{number}.json")
        Path(coco.json_file).write_text(text)
        with pytest.raises(ValueError, match=rf"coco_2017_val: \S+{number}.json.*{reason}"):
            count_images("coco_2017_val", coco)


def test_the_metric_is_named_for_what_it_is():
    def note(**metadata):
        node = SimpleNamespace(name="mine", **metadata)
        node.get = metadata.get
        return metric_note(node)

    voc07 = note(evaluator_type="pascal_voc", year=2007)
    assert "0.50 to 0.95" in voc07 and "11-point" in voc07 and "not pycocotools" in voc07
    assert "11-point" not in note(evaluator_type="pascal_voc", year=2012)
    assert "101-point" in note(evaluator_type="coco")
    with pytest.raises(ValueError, match="mine has evaluator_type 'lvis'"):
        note(evaluator_type="lvis")


def test_without_detectron2_the_command_says_how_to_install_it():
    hidden = f"""if True:
        import sys
        class Absent:
            def find_spec(name, path=None, target=None):
                if name == "detectron2":
                    raise ModuleNotFoundError(name, name=name)
        sys.meta_path.insert(0, Absent)
        sys.path.insert(0, {str(PROJECT)!r})
        from vissl_barlow.detection.__main__ import main
        sys.exit(main([]))
    """
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Detectron2 is not installed.")
    assert "pip install --no-build-isolation" in done.stderr
    assert done.stderr.count("\n") == 1
