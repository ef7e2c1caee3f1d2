"""The mends of VISSL's SVM tools: numbers against references of their own, failures that fail."""

import json

import numpy as np
import pytest
from digits_on_disk import OVERLAY
from vissl_runs import run_module, succeeded

import vissl_barlow
from vissl_barlow.provenance import read_provenance, write_provenance

vissl_barlow.register()

from vissl.config import AttrDict  # noqa: E402
from vissl.utils.io import load_file  # noqa: E402
from vissl.utils.svm_utils.evaluate import calculate_ap  # noqa: E402
from vissl.utils.svm_utils.evaluate import get_precision_recall as precision_recall  # noqa: E402
from vissl.utils.svm_utils.svm_trainer import SVMTrainer  # noqa: E402

# float64 sums of a few hundred terms, in another order.
FLOAT64 = 1e-12


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


def test_images_of_equal_score_are_counted_one_by_one():
    """As VISSL does; scikit-learn's curve would take them together."""
    targets, scores = np.array([1, -1, -1, 1, -1, 1]), np.array([2.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    ranked = (targets > 0)[np.argsort(scores)[::-1]]
    precision, recall, _, average = precision_recall(targets, scores)
    assert precision.tolist() == (np.cumsum(ranked) / np.arange(1, 7)).tolist()
    assert recall.tolist() == (np.cumsum(ranked) / 3).tolist()
    assert average == calculate_ap(recall, precision)[0]


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


@pytest.mark.usefixtures("barlow_run")
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
    (tmp_path / "res5avg" / "test_ap.json").write_text('{"mAP": 1.0}')
    write_provenance(tmp_path, 0, ["earlier"])
    done = run_module(
        tmp_path,
        "tools.train_svm",
        "config=benchmark/vissl_barlow/voc07_svm",
        *svm_command(tmp_path, digits_on_disk, "config.SVM.loss=no_such_loss"),
    )
    assert done.returncode == 1
    assert "the evaluation failed in a child process" in done.stderr
    assert "no_such_loss" in done.stdout + done.stderr
    assert not (tmp_path / "res5avg" / "test_ap.json").exists()
    (start,) = read_provenance(tmp_path)
    assert "config.SVM.loss=no_such_loss" in start["command"]


@pytest.mark.usefixtures("barlow_run")
def test_a_few_classes_of_a_handful_of_images_of_several_labels(digits_on_disk, tmp_path):
    """Three classes where voc07_svm names twenty: the results are by number."""
    rows = {"train": [0, 1, 2, 5, 6, 8, 10, 11, 15, 16, 18, 20], "test": [0, 1, 2, 5, 6]}
    lists = {}
    for split, chosen in rows.items():
        for kind in ("images", "labels"):
            lists[split, kind] = tmp_path / f"{split}_{kind}.npy"
            np.save(
                lists[split, kind], np.load(digits_on_disk.lists / f"{split}_{kind}.npy")[chosen]
            )
    assert (np.load(lists["train", "labels"]).sum(axis=1) > 1).any()
    succeeded(
        run_module(
            tmp_path,
            "tools.train_svm",
            "config=benchmark/vissl_barlow/voc07_svm",
            OVERLAY,
            "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=",
            *(
                f"config.DATA.{split.upper()}.{key}_PATHS=[{lists[split, kind]}]"
                for split in rows
                for key, kind in (("DATA", "images"), ("LABEL", "labels"))
            ),
            "config.SVM.costs.costs_list=[0.1,1.0]",
            f"config.CHECKPOINT.DIR={tmp_path}",
        )
    )
    result = json.loads((tmp_path / "res5avg" / "test_ap.json").read_text())
    assert list(result["AP"]) == ["0", "1", "2"]
    features, labels = (
        np.load(tmp_path / f"rank0_chunk0_test_res5avg_{kind}.npy")
        for kind in ("features", "targets")
    )
    assert labels.tolist() == np.load(lists["test", "labels"]).tolist()
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    cost = np.load(tmp_path / "res5avg" / "chosen_cost.npy")
    for cls, average in enumerate(result["AP"].values()):
        svm = load_file(f"{tmp_path}/res5avg/cls{cls}_cost{cost[cls]}.pickle")
        expected = voc_average_precision(labels[:, cls], svm.decision_function(features))
        assert average == pytest.approx(expected, abs=1e-3)


@pytest.mark.usefixtures("barlow_run")
def test_svms_of_other_settings_are_not_reused(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    targets = np.stack([np.arange(60) % 2, np.arange(60) % 3 == 0], axis=1).astype(np.int32)
    features = np.hstack([targets, generator.normal(scale=0.1, size=(60, 3))])
    mean_ap(tmp_path, features, targets)
    costs = {"costs_list": [0.5, 2.0], "base": -1.0, "power_range": [4, 20]}
    monkeypatch.setitem(SVM, "costs", AttrDict(costs))
    mean_ap(tmp_path, features, targets)
    assert np.load(tmp_path / "res5avg" / "crossval_ap.npy").shape == (2, 2)
    assert set(np.load(tmp_path / "res5avg" / "chosen_cost.npy")) <= {0.5, 2.0}


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
