"""A trunk of VISSL's that is no ResNet, from pretraining to its evaluations (`checks/test_dry_run.py`
has all of them)."""

import json

from digits_on_disk import OVERLAY
from vissl_runs import run_module, succeeded
from vissl_several import run_several

from vissl_barlow.checkpoint import read_checkpoint

TRUNK = (
    "config.MODEL.TRUNK.NAME=vision_transformer",
    "config.MODEL.TRUNK.VISION_TRANSFORMERS="
    "{IMAGE_SIZE:32,PATCH_SIZE:16,NUM_LAYERS:2,NUM_HEADS:4,HIDDEN_DIM:32}",
)
LAST = "config.MODEL.FEATURE_EVAL_SETTINGS.LINEAR_EVAL_FEAT_POOL_OPS_MAP=[[lastCLS,[Identity,[]]]]"
STEPS_PER_EPOCH = 4


def trunk_of(path) -> dict:
    return read_checkpoint(path)["classy_state_dict"]["base_model"]["model"]["trunk"]


def test_a_vision_transformer_pretrains_resumes_and_is_evaluated(digits_on_disk, tmp_path):
    pretraining = (
        "config=pretrain/vissl_barlow/digits_quickstart",
        *TRUNK,
        "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:32,dims:[16,16]}]]",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16",
        f"config.DATA.TRAIN.DATA_LIMIT={16 * STEPS_PER_EPOCH}",
        "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
        "config.BARLOW.PROBE.KIND=",
        "config.LOG_FREQUENCY=1",
        "config.CHECKPOINT.DIR=pretraining",
    )
    weights = tmp_path / "pretraining" / "checkpoint.torch"
    evaluation = (
        OVERLAY,
        *TRUNK,
        LAST,
        f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={weights}",
        *digits_on_disk.folders(),
    )
    linear = (
        "config=benchmark/vissl_barlow/imagenet1k_linear",
        *evaluation,
        "config.MODEL.HEAD.PARAMS=[[barlow_linear,{in_dim:32,num_classes:10}]]",
        "config.DATA.TRAIN.DATA_LIMIT=64",
        "config.OPTIMIZER.num_epochs=2",
        "config.CHECKPOINT.DIR=linear",
    )
    once = (*pretraining, "config.OPTIMIZER.num_epochs=1")
    twice = (*pretraining, "config.OPTIMIZER.num_epochs=2", "config.BARLOW.EXTEND=true")
    run_several(tmp_path, [once, twice, linear], plugin=True)
    lines = (tmp_path / "pretraining" / "barlow.jsonl").read_text().splitlines()
    steps = [json.loads(line)["iteration"] for line in lines]
    assert steps == list(range(1, 2 * STEPS_PER_EPOCH + 1))

    pretrained = trunk_of(weights)
    evaluated = trunk_of(tmp_path / "linear" / "checkpoint.torch")
    assert len(evaluated) == len(pretrained)
    for name, tensor in evaluated.items():
        assert tensor.equal(pretrained[name.removeprefix("base_model.")]), name

    done = succeeded(
        run_module(
            tmp_path,
            "tools.nearest_neighbor_test",
            "config=benchmark/vissl_barlow/imagenet1k_knn",
            *evaluation,
            "config.CHECKPOINT.DIR=neighbours",
        )
    )
    result = json.loads((tmp_path / "neighbours" / "knn_lastCLS.json").read_text())
    assert result["images"] == 360
    assert f"lastCLS k-NN top-1: {result['top_1']:.2f}" in done.stdout
