"""Neighbours and maps of representations."""

import numpy as np
import pytest

from vissl_barlow.look import flat_map, nearest


def clusters(count=3, each=12, dimensions=16):
    """Directions around `count` axes, of lengths that mean nothing; and whose is which."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(count), each)
    z = np.eye(dimensions)[labels] + 0.05 * rng.normal(size=(len(labels), dimensions))
    return (z * rng.uniform(0.1, 9, (len(z), 1))).astype(np.float32), labels


def test_the_nearest_are_those_of_the_largest_cosine():
    z, _ = clusters()
    for query in (0, 20):
        a = z.astype(np.float64)
        cosines = {
            row: a[row] @ a[query] / np.sqrt((a[row] ** 2).sum() * (a[query] ** 2).sum())
            for row in range(len(a))
            if row != query
        }
        expected = sorted(cosines, key=cosines.__getitem__, reverse=True)[:5]
        found = nearest(z, query, 5)
        assert [row for row, _ in found] == expected
        assert [value for _, value in found] == pytest.approx([cosines[row] for row in expected])


def test_a_row_of_zeros_is_near_to_none():
    z, _ = clusters()
    z[3] = 0
    assert [value for _, value in nearest(z, 3, 2)] == [0, 0]
    assert 3 not in [row for row, _ in nearest(z, 0, 5)]
    assert len(nearest(z, 0, 100)) == len(z) - 1


def test_the_map_keeps_clusters_together_and_is_the_same_each_time():
    z, labels = clusters()
    places = flat_map(z)
    assert np.array_equal(places, flat_map(z)) and np.isfinite(places).all()
    centres = np.stack([places[labels == label].mean(0) for label in range(3)])
    distances = np.linalg.norm(places[:, None] - centres, axis=2)
    assert (distances.argmin(1) == labels).all()


@pytest.mark.parametrize(
    "z", (np.ones((9, 4)), np.zeros((9, 4)), np.eye(3)), ids=("one", "zero", "few")
)
def test_what_has_no_map_is_at_0(z):
    assert (flat_map(z) == 0).all() and flat_map(z).shape == (len(z), 2)
