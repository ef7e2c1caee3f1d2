"""scikit-learn's digits as RGB images."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vissl_barlow.digits import digits


def test_the_split_is_stratified_and_whole():
    (train, train_labels), (test, test_labels) = digits("train"), digits("test")
    assert train.shape == (1437, 32, 32, 3) and test.shape == (360, 32, 32, 3)
    assert train.dtype == np.uint8 and train_labels.dtype == np.int64
    everything = np.bincount(load_digits().target)
    assert (np.bincount(train_labels) + np.bincount(test_labels)).tolist() == everything.tolist()
    assert (abs(np.bincount(test_labels) - 0.2 * everything) < 1).all()


def test_images_are_the_originals_enlarged():
    images, labels = digits("test")
    grey = images[..., 0]
    assert (images == grey[..., None]).all()
    assert grey.min() == 0 and grey.max() == 255
    # Each image, made small again, is nearest to an original of its own label.
    small = grey[:50].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)) * 16 / 255
    source = load_digits()
    distances = ((small[:, None] - source.images[None]) ** 2).mean(axis=(2, 3))
    assert (source.target[distances.argmin(axis=1)] == labels[:50]).all()
    assert distances.min(axis=1).max() < 2


def test_another_split_is_refused():
    with pytest.raises(ValueError, match=r'val.*"train" and "test"'):
        digits("val")
