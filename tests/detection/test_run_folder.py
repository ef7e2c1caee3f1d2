"""Whose folder OUTPUT_DIR is, and which of its numbers count; nothing here needs Detectron2."""

import json
import re
import shutil

import pytest
import yaml
from fvcore.common.config import CfgNode

from vissl_barlow.detection.config import config_path
from vissl_barlow.detection.run_folder import (
    EVAL_ONLY,
    TRAINING,
    check_folder,
    evaluated,
    forget_starts_without_checkpoint,
    last_checkpoint,
    why_not_final,
)
from vissl_barlow.provenance import file_sha256, read_provenance, write_provenance


def entry(*record) -> dict:
    return {"metric": "VOC's", "bbox": {"AP": 56.8}, "evaluated": evaluated(*record)}


def test_the_model_at_the_end_of_a_training_counts_and_is_named_by_its_hash(tmp_path):
    weights = tmp_path / "model_final.pth"
    weights.write_bytes(b"trained")
    final = entry(TRAINING, 24000, 24000, weights)
    assert final["evaluated"]["weights"] == {"path": str(weights), "sha256": file_sha256(weights)}
    assert why_not_final(json.loads(json.dumps(final))) is None


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ((TRAINING, 6000, 24000, None), "iteration 6000 of 24000.*--resume continues"),
        ((TRAINING, 23999, 24000, None), "iteration 23999 of 24000"),
        ((EVAL_ONLY, 6000, 24000, None), "--eval-only"),
        # The same model, but by a command that may have had other settings than the training's.
        ((EVAL_ONLY, 24000, 24000, None), "--eval-only"),
        ((EVAL_ONLY, None, 24000, None), "--eval-only"),
    ],
)
def test_other_evaluations_do_not_count(record, reason):
    assert re.search(reason, why_not_final(entry(*record)))


def test_numbers_of_no_known_iteration_do_not_count():
    assert "--resume evaluates" in why_not_final({"metric": "VOC's", "bbox": {"AP": 56.8}})


@pytest.fixture
def begun(tmp_path):
    """A training that saved a checkpoint, as its folder and its config."""
    folder = tmp_path / "voc"
    folder.mkdir()
    weights = tmp_path / "checkpoint.torch"
    weights.write_bytes(b"pretrained")
    name = "voc0712_faster_rcnn_R50_C4_24k"
    cfg = CfgNode(CfgNode.load_yaml_with_base(str(config_path(name))))
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.WEIGHTS = str(folder), 0, str(weights)
    cfg.MODEL.DEVICE, cfg.TEST.EVAL_PERIOD = "cuda", 0
    (folder / "config.yaml").write_text(cfg.dump())
    write_provenance(folder, 0, ["python"], weights=weights, processes=8)
    (folder / "last_checkpoint").write_text("model_0004999.pth")
    (folder / "model_0004999.pth").write_bytes(b"trained for a while")
    return folder, cfg


def test_a_folders_training_is_continued_on_request_only(begun):
    folder, cfg = begun
    assert last_checkpoint(folder) == folder / "model_0004999.pth"
    check_folder(cfg, resume=True)
    with pytest.raises(ValueError, match=rf"OUTPUT_DIR {folder} holds a training: add --resume"):
        check_folder(cfg, resume=False)


def test_a_start_that_saved_nothing_binds_nobody(begun):
    folder, cfg = begun
    (folder / "last_checkpoint").unlink()
    cfg.SOLVER.BASE_LR = 0.3
    for resume in (True, False):
        check_folder(cfg, resume=resume)
    shutil.rmtree(folder)
    check_folder(cfg, resume=True)


def test_the_next_start_owes_nothing_to_one_that_saved_nothing(begun, tmp_path):
    folder, cfg = begun
    forget_starts_without_checkpoint(folder)
    assert len(read_provenance(folder)) == 1
    (folder / "last_checkpoint").unlink()
    forget_starts_without_checkpoint(folder)
    assert read_provenance(folder) == []

    other = tmp_path / "other.torch"
    other.write_bytes(b"pretrained otherwise")
    cfg.MODEL.WEIGHTS = str(other)
    write_provenance(folder, 0, ["python"], weights=other, processes=8)
    (folder / "last_checkpoint").write_text("model_0004999.pth")
    check_folder(cfg, resume=True)


def test_a_training_without_its_checkpoint_is_not_resumed(begun):
    folder, cfg = begun
    (folder / "model_0004999.pth").unlink()
    with pytest.raises(ValueError, match=rf"checkpoint, model_0004999.pth, is gone.*{folder}/last"):
        check_folder(cfg, resume=True)


@pytest.mark.parametrize(
    ("record", "refused"),
    [
        ({"start": "training", "iteration": 24000, "max_iter": 24000}, True),
        ({"start": "training", "iteration": 1000, "max_iter": 24000}, False),
        (None, True),  # of an earlier version
    ],
)
def test_numbers_of_a_whole_training_are_not_written_over(record, refused, begun):
    folder, cfg = begun
    (folder / "last_checkpoint").unlink()
    scores = {"bbox": {"AP": 56.8}} | ({"evaluated": record} if record else {})
    (folder / "results.json").write_text(json.dumps({"voc_2007_test": scores}))
    if not refused:
        return check_folder(cfg, resume=True)
    for resume in (True, False):
        with pytest.raises(ValueError, match="checkpoints are gone: give another OUTPUT_DIR"):
            check_folder(cfg, resume=resume)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LR", 0.02, "SOLVER.BASE_LR was 0.1 and is 0.02"),
        ("SOLVER.MAX_ITER", 48000, "SOLVER.MAX_ITER was 24000 and is 48000"),
        ("MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.NORM was SyncBN and is BN"),
        ("SEED", 1, "SEED was 0 and is 1"),
    ],
)
def test_a_training_is_not_resumed_as_another(begun, key, value, message):
    folder, cfg = begun
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message) as error:
        check_folder(cfg, resume=True)
    assert f"OUTPUT_DIR {folder}" in str(error.value) and "give another" in str(error.value)


def test_every_difference_is_said_at_once(begun, tmp_path):
    _, cfg = begun
    (tmp_path / "other.torch").write_bytes(b"pretrained otherwise")
    changes = ["SOLVER.BASE_LR", 0.02, "SEED", 1, "MODEL.WEIGHTS", str(tmp_path / "other.torch")]
    cfg.merge_from_list(changes)
    with pytest.raises(
        ValueError, match=r"SEED was 0 .*BASE_LR was 0.1 .*other.torch is not the file"
    ):
        check_folder(cfg, resume=True)


def test_moving_files_and_devices_is_no_other_training(begun, tmp_path):
    _, cfg = begun
    moved = (tmp_path / "checkpoint.torch").rename(tmp_path / "moved.torch")
    changes = ["MODEL.WEIGHTS", str(moved), "MODEL.DEVICE", "cpu", "TEST.EVAL_PERIOD", 5000]
    cfg.merge_from_list(changes)
    check_folder(cfg, resume=True)
    moved.unlink()
    check_folder(cfg, resume=True)


def test_a_key_that_a_newer_detectron2_has_is_no_difference(begun):
    folder, cfg = begun
    before = yaml.safe_load(cfg.dump())
    del before["SEED"]
    (folder / "config.yaml").write_text(yaml.safe_dump(before))
    check_folder(cfg, resume=True)
