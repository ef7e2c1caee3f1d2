"""The mends of VISSL's evaluation: numerics against references of their own, failures that fail."""

import json
import os
import pickle

import numpy as np
import pytest
from digits_on_disk import OVERLAY
from sklearn.svm import LinearSVC
from vissl_runs import run_module, succeeded

import vissl_barlow

vissl_barlow.register()

from vissl.config import AttrDict  # noqa: E402
from vissl.utils import io  # noqa: E402
from vissl.utils.svm_utils.svm_trainer import SVMTrainer  # noqa: E402

from vissl_barlow.vissl_plugin.mends import extraction  # noqa: E402
from vissl_barlow.vissl_plugin.mends.knn_tool import nearest_neighbor_test  # noqa: E402
from vissl_barlow.vissl_plugin.mends.svm_tools import precision_recall  # noqa: E402

# float64 sums of a few hundred terms, in another order.
FLOAT64 = 1e-12
# k-NN's votes are float32 here and float64 in the reference.
FLOAT32 = 1e-4


def voc_average_precision(targets, scores) -> float:
    """VOC 2010: the area under precision made monotonous, threshold by threshold."""
    ranked = [target for _, target in sorted(zip(scores, targets), reverse=True)]
    positives, points = sum(t > 0 for t in ranked), []
    for cut in range(1, len(ranked) + 1):
        hits = sum(t > 0 for t in ranked[:cut])
        points.append((hits / positives, hits / cut))
    area, last = 0.0, 0.0
    for index, (recall, _) in enumerate(points):
        area += (recall - last) * max(precision for _, precision in points[index:])
        last = recall
    return area


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_vocs(seed):
    generator = np.random.default_rng(seed)
    targets = np.where(generator.random(60) < 0.3, 1, -1)
    scores = generator.permutation(60) / 7.0 + 3.05 * targets  # no ties
    precision, recall, ranked, average = precision_recall(targets, scores)
    assert average == pytest.approx(voc_average_precision(targets, scores), abs=FLOAT64)
    assert recall[-1] == 1
    assert precision[-1] == pytest.approx(np.mean(targets > 0))
    assert np.all(np.diff(ranked) < 0)


def test_average_precision_by_hand_and_with_images_left_out():
    targets, scores = np.array([1, -1, 1, -1, 1]), np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    # Precision 1, 1/2, 2/3, 1/2, 3/5, at recalls 1/3 (first), 2/3 (third) and 1 (fifth image).
    assert precision_recall(targets, scores)[-1] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    weights = np.array([1, 0, 1, 1, 1])
    assert precision_recall(targets, scores, weights)[-1] == pytest.approx((1 + 1 + 3 / 4) / 3)


def write_features(folder, split, features, targets) -> None:
    for kind, array in {
        "features": features.astype(np.float32),
        "targets": targets.reshape(-1, 1),
        "inds": np.arange(len(features)),
    }.items():
        np.save(folder / f"rank0_chunk0_{split}_res5avg_{kind}.npy", array)


@pytest.mark.parametrize(
    ("classes", "train", "test", "neighbours", "normalised"),
    [(3, 40, 17, 5, True), (12, 500, 450, 20, False), (8, 30, 9, 200, True)],
)
def test_nearest_neighbours_of_any_number(tmp_path, classes, train, test, neighbours, normalised):
    generator = np.random.default_rng(0)
    x, queries = generator.normal(size=(train, 6)), generator.normal(size=(test, 6))
    y, answers = np.arange(train) % classes, generator.integers(classes, size=test)
    write_features(tmp_path, "train", x, y)
    write_features(tmp_path, "test", queries, answers)
    config = AttrDict(
        {
            "CHECKPOINT": {"DIR": str(tmp_path)},
            "DISTRIBUTED": {"NUM_NODES": 1},
            "MACHINE": {"DEVICE": "cpu"},
            "NEAREST_NEIGHBOR": {"SIGMA": 0.3, "TOPK": neighbours, "L2_NORM_FEATS": normalised},
        }
    )
    top_1, top_5 = nearest_neighbor_test(config, "res5avg")
    if normalised:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    right = np.zeros(2)
    for query, answer in zip(queries, answers):
        nearest = sorted(range(train), key=lambda i: -(query @ x[i]))[:neighbours]
        votes = np.zeros(classes)
        for i in nearest:
            votes[y[i]] += np.exp(query @ x[i] / 0.3)
        ranking = np.argsort(-votes)
        right += [answer == ranking[0], answer in ranking[:5]]
    assert (top_1, top_5) == pytest.approx(100 * right / test, abs=FLOAT32)
    assert json.loads((tmp_path / "knn_res5avg.json").read_text())["top_1"] == top_1


SVM = AttrDict(
    {
        "normalize": True,
        "cls_list": [],
        "loss": "squared_hinge",
        "penalty": "l2",
        "dual": True,
        "max_iter": 500,
        "cross_val_folds": 3,
        "costs": {"costs_list": [1.0], "base": -1.0, "power_range": [4, 20]},
        "force_retrain": False,
    }
)


def mean_ap(folder, features, targets) -> float:
    trainer = SVMTrainer(SVM, layer="res5avg", output_dir=str(folder))
    trainer.train(features, targets)
    trainer.test(features, targets)
    return json.loads((folder / "res5avg" / "test_ap.json").read_text())["mAP"]


def test_svms_of_other_features_are_not_reused_and_finished_ones_are(tmp_path):
    generator = np.random.default_rng(0)
    targets = np.stack([np.arange(60) % 2, np.arange(60) % 3 == 0], axis=1).astype(np.int32)
    good = np.hstack([targets, generator.normal(scale=0.1, size=(60, 3))])
    noise = generator.normal(size=(60, 5))
    assert mean_ap(tmp_path, noise, targets) < 0.95
    svm = tmp_path / "res5avg" / "cls0_cost1.0.pickle"
    of_noise = svm.read_bytes()
    assert mean_ap(tmp_path, good, targets) > 0.99
    assert svm.read_bytes() != of_noise
    written = svm.stat().st_mtime_ns
    mean_ap(tmp_path, good, targets)
    assert svm.stat().st_mtime_ns == written


def test_features_of_an_earlier_run_on_more_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction.dist, "get_world_size", lambda: 2)
    names = [f"rank{rank}_chunk0_train_res5avg_inds.npy" for rank in range(4)]
    for rank, left in ((1, {0, 2, 3}), (0, {1})):
        for name in names:
            (tmp_path / name).touch()
        monkeypatch.setattr(extraction.dist, "get_rank", lambda rank=rank: rank)
        extraction._remove_stale_features(str(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == {names[rank] for rank in left}


class Code:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_svms_are_unpickled_and_code_is_not(tmp_path):
    svm = LinearSVC().fit(np.array([[0.0], [1.0], [2.0], [3.0]]), [-1, -1, 1, 1])
    io.save_file(svm, str(tmp_path / "svm.pickle"))
    loaded = io.load_file(str(tmp_path / "svm.pickle"))
    assert np.array_equal(loaded.decision_function([[4.0]]), svm.decision_function([[4.0]]))

    for name in ("svm.pickle", "svm.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Code(tmp_path / "ran")))
        with pytest.raises(pickle.UnpicklingError, match=r"refused: the file holds posix\.mkdir"):
            io.load_file(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


def test_labels_with_code_are_refused_by_the_data_set(tmp_path):
    from vissl.data.ssl_dataset import GenericSSLDataset

    path = tmp_path / "labels.npy"
    np.save(path, np.array([Code(tmp_path / "ran")], dtype=object), allow_pickle=True)
    data_set = GenericSSLDataset.__new__(GenericSSLDataset)
    data_set.split = "TRAIN"
    for mmap in (True, False):
        data_set.cfg = {"DATA": {"TRAIN": AttrDict({"MMAP_MODE": mmap})}}
        with pytest.raises(ValueError, match="not a plain array"):
            data_set.load_single_label_file(str(path))
    assert not (tmp_path / "ran").exists()
    np.save(path, np.array(["cat", "dog"]))
    assert data_set.load_single_label_file(str(path)).tolist() == ["cat", "dog"]


def svm_command(folder, digits_on_disk, *overrides):
    return (
        OVERLAY,
        "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=",
        *digits_on_disk.attribute_lists(),
        "config.SVM.costs.costs_list=[1.0]",
        f"config.CHECKPOINT.DIR={folder}",
        *overrides,
    )


def test_a_failed_child_fails_the_svm_tool(digits_on_disk, tmp_path):
    # What an earlier run left must not pass for this one's result.
    (tmp_path / "res5avg").mkdir()
    np.save(tmp_path / "res5avg" / "test_ap.npy", np.ones((3, 1)))
    done = run_module(
        tmp_path,
        "tools.train_svm",
        "config=benchmark/vissl_barlow/voc07_svm",
        *svm_command(tmp_path, digits_on_disk, "config.SVM.loss=no_such_loss"),
    )
    assert done.returncode == 1
    assert "the evaluation failed in a child process" in done.stderr
    assert "no_such_loss" in done.stdout + done.stderr


def test_low_shot_svms(digits_on_disk, tmp_path):
    succeeded(
        run_module(
            tmp_path,
            "tools.train_svm_low_shot",
            "config=benchmark/vissl_barlow/voc07_low_shot_svm",
            *svm_command(
                tmp_path,
                digits_on_disk,
                "config.SVM.low_shot.k_values=[2,16]",
                "config.SVM.low_shot.sample_inds=[1,2]",
            ),
        )
    )
    for k in (2, 16):
        sampled = np.load(tmp_path / f"res5avg_sample1_k{k}.npy")
        assert (sampled == 1).sum(axis=0).tolist() == [k] * 3
        samples = [np.load(tmp_path / "res5avg" / f"test_ap_sample{s}_k{k}.npy") for s in (1, 2)]
        assert all(sample.shape == (1, 1) and 0 < sample.item() < 1 for sample in samples)
        mean = np.load(tmp_path / "res5avg" / "test_ap_mean.npy")[[2, 16].index(k)]
        assert mean == pytest.approx(np.mean(samples))
