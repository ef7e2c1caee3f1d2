"""Evaluations of the model asked for, over each image exactly once: `imagenet1k_linear` and
`imagenet1k_knn` on digits, as a user runs them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from digits_on_disk import OVERLAY
from gloo import run_gloo
from vissl_runs import resolve, run_engines, succeeded

from vissl_barlow.reproduce.results import read_accuracy

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


def evaluate(folder, digits_on_disk, weights, *overrides):
    folder.mkdir()
    return run_engines(
        folder,
        *(LINEAR, OVERLAY, *digits_on_disk.folders()),
        "config.TEST_ONLY=true",
        f"{WEIGHTS}={weights}",
        f"config.CHECKPOINT.DIR={folder}",
        *overrides,
    )


def test_a_trained_classifier_is_evaluated_and_no_other(
    trained, checkpoints, digits_on_disk, tmp_path
):
    succeeded(evaluate(tmp_path / "again", digits_on_disk, trained / "checkpoint.torch"))
    again = last_accuracy(tmp_path / "again")
    # Once, whatever the epochs of the training were (100), and read as the result of one is.
    (tested,) = (tmp_path / "again" / "metrics.json").read_text().splitlines()
    assert read_accuracy(tmp_path / "again" / "metrics.json")["top-1"] == again
    assert json.loads(tested)["train_phase_idx"] == 99
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


@pytest.mark.parametrize(("processes", "heads"), [(2, True), (3, False)])
def test_features_are_of_each_image_once_and_in_order(
    trained, digits_on_disk, tmp_path, processes, heads
):
    """Of the trunk or of the heads on it, from several processes with several files each."""
    command = (
        *(KNN, OVERLAY, *digits_on_disk.folders()),
        f"{WEIGHTS}={trained / 'checkpoint.torch'}",
        f"config.MODEL.FEATURE_EVAL_SETTINGS.EXTRACT_TRUNK_FEATURES_ONLY={not heads}",
        "config.DATA.TRAIN.DATA_LIMIT=13",
        f"config.DATA.TEST.DATA_LIMIT={IMAGES}",
        "config.DATA.TRAIN.DROP_LAST=true",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=2",
        "config.DATA.TEST.BATCHSIZE_PER_REPLICA=2",
    )
    succeeded(
        run_engines(
            tmp_path,
            "engine_name=extract_features",
            *command,
            "config.EXTRACT_FEATURES.CHUNK_THRESHOLD=2",
            f"config.DISTRIBUTED.NUM_PROC_PER_NODE={processes}",
            f"config.CHECKPOINT.DIR={tmp_path}",
        )
    )
    expected = features_one_by_one(tmp_path, command)
    for split, images in (("train", 13), ("test", IMAGES)):
        files = sorted(tmp_path.glob(f"rank*_{split}_res5avg_inds.npy"))
        indices = np.concatenate([np.load(file) for file in files])
        assert sorted(indices) == list(range(images))
        assert len(files) > processes
        # As the tools put them together: in the order of the images.
        merged = merge_features(str(tmp_path), split, "res5avg")
        assert merged["inds"].tolist() == list(range(images))
        features, labels = expected[split]
        assert merged["targets"].flatten().tolist() == labels
        assert merged["features"].shape[1] == (10 if heads else 256)
        if split == "test":  # the training images are cropped at random
            found = merged["features"].reshape(features.shape)
            # A sum's rounding is of the size of what is summed, whatever is left of it.
            np.testing.assert_allclose(found, features, atol=1e-5 * np.abs(features).max())


def merge_features(*arguments):
    from vissl.utils import misc

    return misc.merge_features(*arguments)


def features_one_by_one(folder, command) -> dict[str, tuple[np.ndarray, list[int]]]:
    """What the model of an extraction makes of each image of a split, and their labels."""
    import vissl_barlow

    vissl_barlow.register()
    from vissl.data import build_dataset
    from vissl.models import build_model

    from vissl_barlow.vissl_plugin.components.weights import initialise_from

    cfg = resolve(folder, command[0].removeprefix("config="), *command[1:])
    cfg.MODEL["_MODEL_INIT_SEED"] = 0
    model = build_model(cfg.MODEL, cfg.OPTIMIZER).eval()
    initialise_from(model, cfg, extracts=True)
    found = {}
    for split in ("TRAIN", "TEST"):
        dataset = build_dataset(cfg, split)
        items = [dataset[index] for index in range(len(dataset))]
        with torch.no_grad():
            outputs = [model(item["data"][0][None])[0] for item in items]
        outputs = [output[0] if isinstance(output, list) else output for output in outputs]
        found[split.lower()] = (
            torch.cat([output.flatten(1) for output in outputs]).numpy(),
            [int(item["label"][0]) for item in items],
        )
    return found


SCORES = torch.randn(IMAGES, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(IMAGES) % 4


def step_losses(rank: int, batch: int) -> list[float]:
    """What VISSL's step takes for the loss of each of its test steps, on this process."""
    import vissl_barlow

    vissl_barlow.register()
    from vissl_barlow.vissl_plugin.components.every_image import ordered_sampler, test_loss

    task = SimpleNamespace(last_batch=SimpleNamespace())
    losses = []
    for indices in torch.tensor(list(ordered_sampler(range(IMAGES), None))).split(batch):
        task.last_batch.sample = {"data_idx": [indices[:, None]]}
        loss = test_loss(torch.nn.functional.cross_entropy, task)(SCORES[indices], LABELS[indices])
        loss = loss.double()
        dist.all_reduce(loss)
        losses.append(loss.item() / dist.get_world_size())
    return losses


@pytest.mark.parametrize(("processes", "batch"), [(2, 2), (3, 2), (3, 4)])
def test_the_test_loss_is_over_each_image_once(processes, batch):
    found = run_gloo(step_losses, processes, batch)
    images = torch.arange(IMAGES).split(processes * batch)
    expected = [torch.nn.functional.cross_entropy(SCORES[i], LABELS[i]).item() for i in images]
    for losses in found:
        assert losses == pytest.approx(expected, abs=1e-12)
