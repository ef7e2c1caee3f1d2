"""The probes of frozen features."""

import numpy as np
import pytest

from vissl_barlow.probe import probe_accuracy


def two_classes(seed, scale):
    """(60, 3): the class shows in the first dimension's sign, at the given scale of all."""
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 2
    features = rng.normal(0, 0.1, (60, 3)) + np.array([1, 0, 0]) * (2 * labels[:, None] - 1)
    return scale * features, labels


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_separable_classes_are_told_apart_and_random_labels_are_not(kind):
    train, labels = two_classes(0, scale=1)
    test, test_labels = two_classes(1, scale=1)
    assert probe_accuracy(kind, train, labels, test, test_labels) == 1.0
    assert probe_accuracy(kind, train, labels, test, 1 - test_labels) == 0.0
    half_wrong = np.where(np.arange(60) < 30, test_labels, 1 - test_labels)
    assert probe_accuracy(kind, train, labels, test, half_wrong) == 0.5


def test_neighbours_are_those_of_the_cosine():
    train, labels = two_classes(0, scale=1)
    test, test_labels = two_classes(1, scale=1e-6)
    assert probe_accuracy("knn", train, labels, test, test_labels) == 1.0


def test_the_linear_probe_standardises():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    # The class lies in a dimension a million times smaller than the other.
    features = np.stack([1e3 * rng.normal(size=200), 1e-3 * (2 * labels - 1)], axis=1)
    assert probe_accuracy("linear", features[:100], labels[:100], features[100:], labels[100:]) == 1


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"svm.*linear, knn"):
        probe_accuracy("svm", np.ones((2, 1)), np.arange(2), np.ones((2, 1)), np.arange(2))


def test_fewer_images_than_neighbours_all_vote():
    features, labels = np.eye(3), np.array([0, 0, 1])
    assert probe_accuracy("knn", features, labels, features, labels, neighbours=5) == 2 / 3
