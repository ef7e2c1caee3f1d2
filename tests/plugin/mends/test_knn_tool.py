"""The mend of VISSL's k-NN tool, against the vote written out image by image."""

import json

import numpy as np
import pytest

import vissl_barlow

vissl_barlow.register()

from vissl.config import AttrDict  # noqa: E402

from vissl_barlow.reproduce.results import read_neighbours  # noqa: E402
from vissl_barlow.vissl_plugin.mends.knn_tool import nearest_neighbor_test  # noqa: E402

# k-NN's votes are float32 here and float64 in the reference.
FLOAT32 = 1e-4


def write_features(folder, split, features, targets) -> None:
    for kind, array in {
        "features": features.astype(np.float32),
        "targets": targets.reshape(-1, 1),
        "inds": np.arange(len(features)),
    }.items():
        np.save(folder / f"rank0_chunk0_{split}_res5avg_{kind}.npy", array)


def configured(folder, **options) -> AttrDict:
    return AttrDict(
        {
            "CHECKPOINT": {"DIR": str(folder)},
            "DISTRIBUTED": {"NUM_NODES": 1},
            "MACHINE": {"DEVICE": "cpu"},
            "NEAREST_NEIGHBOR": {"SIGMA": 0.3, "L2_NORM_FEATS": True, **options},
        }
    )


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
    config = configured(tmp_path, TOPK=neighbours, L2_NORM_FEATS=normalised)
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
    # Of the classes there are, five would always have the right one among them.
    reported = read_neighbours(tmp_path / "knn_res5avg.json")
    assert reported == ({"top-1": top_1, "top-5": top_5} if classes > 5 else {"top-1": top_1})


@pytest.mark.parametrize(("labels", "top_1"), [([9, 2, 9, 2], 75.0), ([4, 4, 4, 4], 100.0)])
def test_numbers_of_classes_with_gaps_one_class_and_more_neighbours_than_images(
    tmp_path, labels, top_1
):
    corners = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    write_features(tmp_path, "train", corners, np.array(labels))
    # The last image is where the others of its class are not.
    queries, answers = np.vstack([corners[:3] + 0.1, corners[:1]]), np.array(labels)
    write_features(tmp_path, "test", queries, answers)
    found = nearest_neighbor_test(configured(tmp_path, TOPK=200, SIGMA=0.01), "res5avg")
    assert found == (top_1, 100.0)
    assert json.loads((tmp_path / "knn_res5avg.json").read_text())["neighbours"] == 4


@pytest.mark.parametrize("split", ["train", "test"])
def test_features_that_are_not_finite_have_no_neighbours(tmp_path, split):
    for each in ("train", "test"):
        write_features(tmp_path, each, np.eye(4), np.arange(4))
    broken = np.eye(4)
    broken[2, 1] = np.nan
    write_features(tmp_path, split, broken, np.arange(4))
    with pytest.raises(FloatingPointError, match=f"1 of 4 {split} images are not finite"):
        nearest_neighbor_test(configured(tmp_path, TOPK=2), "res5avg")
    assert not (tmp_path / "knn_res5avg.json").exists()
