"""Evaluations of the model asked for, over each image exactly once: `imagenet1k_linear` and
`imagenet1k_knn` on digits, as a user runs them."""

import json

import numpy as np
import pytest
from digits_on_disk import OVERLAY
from vissl_runs import run_engines, succeeded

LINEAR = "config=benchmark/vissl_barlow/imagenet1k_linear"
KNN = "config=benchmark/vissl_barlow/imagenet1k_knn"
WEIGHTS = "config.MODEL.WEIGHTS_INIT.PARAMS_FILE"
# VISSL rounds accuracies to 6 digits of their share.
ROUNDING = 1e-3
IMAGES = 11


def last_accuracy(folder) -> float:
    entries = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    name = "test_accuracy_list_meter"
    meters = [entry[name] for entry in entries if name in entry]
    return next(iter(meters[-1]["top_1"].values()))


@pytest.fixture(scope="module")
def trained(checkpoints, digits_on_disk, tmp_path_factory):
    """The folder of a linear classifier after two epochs."""
    folder = tmp_path_factory.mktemp("linear")
    succeeded(
        run_engines(
            folder,
            *(LINEAR, OVERLAY, *digits_on_disk.folders()),
            f"{WEIGHTS}={checkpoints['pretrained']}",
            "config.OPTIMIZER.num_epochs=2",
            f"config.CHECKPOINT.DIR={folder}",
        )
    )
    return folder


def evaluate(folder, digits_on_disk, weights, *overrides):
    folder.mkdir()
    return run_engines(
        folder,
        *(LINEAR, OVERLAY, *digits_on_disk.folders()),
        "config.TEST_ONLY=true",
        "config.OPTIMIZER.num_epochs=1",
        f"{WEIGHTS}={weights}",
        f"config.CHECKPOINT.DIR={folder}",
        *overrides,
    )


def test_a_trained_classifier_is_evaluated_and_no_other(
    trained, checkpoints, digits_on_disk, tmp_path
):
    succeeded(evaluate(tmp_path / "again", digits_on_disk, trained / "checkpoint.torch"))
    again = last_accuracy(tmp_path / "again")
    assert again == pytest.approx(last_accuracy(trained), abs=ROUNDING)
    assert again > 40  # a random one has 10
    key = f"vissl_barlow: {WEIGHTS}="
    for name, weights in (("projector", checkpoints["pretrained"]), ("none", '""')):
        done = evaluate(tmp_path / name, digits_on_disk, weights)
        assert done.returncode != 0
        (line,) = done.stderr.strip().splitlines()[-1:]
        assert line.startswith(key)
        assert "nothing here trains the heads" in line


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_accuracy_is_over_each_image_once(trained, digits_on_disk, tmp_path, processes):
    succeeded(
        evaluate(
            tmp_path / "run",
            digits_on_disk,
            trained / "checkpoint.torch",
            f"config.DATA.TEST.DATA_LIMIT={IMAGES}",
            "config.DATA.TEST.BATCHSIZE_PER_REPLICA=2",
            f"config.DISTRIBUTED.NUM_PROC_PER_NODE={processes}",
        )
    )
    right = last_accuracy(tmp_path / "run") * IMAGES / 100
    assert right == pytest.approx(round(right), abs=IMAGES / 100 * ROUNDING)


@pytest.mark.parametrize("processes", [2, 3])
def test_features_are_of_each_image_once(checkpoints, digits_on_disk, tmp_path, processes):
    succeeded(
        run_engines(
            tmp_path,
            "engine_name=extract_features",
            *(KNN, OVERLAY, *digits_on_disk.folders()),
            f"{WEIGHTS}={checkpoints['pretrained']}",
            "config.DATA.TRAIN.DATA_LIMIT=13",
            f"config.DATA.TEST.DATA_LIMIT={IMAGES}",
            "config.DATA.TRAIN.DROP_LAST=true",
            "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=2",
            "config.DATA.TEST.BATCHSIZE_PER_REPLICA=2",
            f"config.DISTRIBUTED.NUM_PROC_PER_NODE={processes}",
            f"config.CHECKPOINT.DIR={tmp_path}",
        )
    )
    for split, images in (("train", 13), ("test", IMAGES)):
        files = sorted(tmp_path.glob(f"rank*_{split}_res5avg_inds.npy"))
        indices = np.concatenate([np.load(file) for file in files])
        assert sorted(indices) == list(range(images))
