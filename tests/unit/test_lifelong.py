"""A long history compressed: every item in one cluster, and a cluster represented by one of its own."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.onerec.model import lifelong
from kvtools.onerec.model.lifelong import average, compress

# few values and many items give duplicates, far values give rounding
numbers = st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e30, 3.4e38, -3.4e38, 16_777_216.0, 16_777_217.0]) | st.floats(
    -2, 2, width=16
)
histories = st.integers(1, 3).flatmap(lambda n: st.lists(st.tuples(*[numbers] * n), max_size=200))


def vectors(rows):
    return np.array(rows, np.float32).reshape(len(rows), -1 if rows else 4)


@settings(deadline=None, max_examples=150)
@given(histories, st.integers(1, 9), st.integers(0, 3))
def test_every_item_is_in_one_small_cluster_that_one_of_its_own_represents(rows, leaf_items, seed):
    x_ND = vectors(rows)
    found = compress(x_ND, leaf_items=leaf_items, seed=seed, key="u")
    assert (found.labels.dtype, found.labels.shape) == (np.int32, (len(rows),))
    assert (found.representatives.dtype, found.representatives.shape) == (np.int32, (len(found),))
    # numbered by their first item, none of them empty
    assert list(dict.fromkeys(found.labels.tolist())) == list(range(len(found)))
    assert found.labels[found.representatives].tolist() == list(range(len(found)))
    for cluster in range(len(found)):
        mine = x_ND[found.labels == cluster]
        assert len(mine) <= leaf_items or (mine == mine[0]).all()


@settings(deadline=None, max_examples=40)
@given(histories, st.integers(1, 9))
def test_the_same_seed_gives_the_same_clusters(rows, leaf_items):
    one, two = (compress(vectors(rows), leaf_items=leaf_items, seed=3, key="u") for _ in range(2))
    assert one.labels.tolist() == two.labels.tolist()
    assert one.representatives.tolist() == two.representatives.tolist()


def test_random_numbers_are_the_users_own():
    x_ND = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    labels = compress(x_ND, seed=0, key="u").labels.tolist()
    assert labels != compress(x_ND, seed=0, key="v").labels.tolist()
    assert labels != compress(x_ND, seed=1, key="u").labels.tolist()


@pytest.mark.parametrize("n", [1, 2, 7, 8, 200])
def test_items_that_are_the_same_are_one_cluster(n):
    found = compress(np.full((n, 3), 0.1, np.float32), leaf_items=1, seed=0, key="u")
    assert (len(found), found.representatives.tolist()) == (1, [0])


def test_leaves_of_one_are_the_distinct_items():
    x_ND = np.random.default_rng(1).integers(0, 4, (150, 2)).astype(np.float32)
    found = compress(x_ND, leaf_items=1, seed=0, key="u")
    _, expected = np.unique(x_ND, axis=0, return_inverse=True)
    assert len(found) == expected.max() + 1
    assert len(set(zip(found.labels.tolist(), expected.ravel().tolist(), strict=True))) == len(found)
    assert found.representatives.tolist() == [found.labels.tolist().index(cluster) for cluster in range(len(found))]


def test_a_history_that_is_short_enough_is_one_cluster_with_the_item_in_its_middle():
    found = compress(np.array([[0.0], [10.0], [4.0], [6.0]], np.float32), leaf_items=4, seed=0, key="u")
    assert found.labels.tolist() == [0, 0, 0, 0]
    assert found.representatives.tolist() == [2]  # 4 and 6 are as near to 5: the lower number


def test_clusters_that_lie_apart_are_found():
    rng = np.random.default_rng(2)
    group = rng.integers(0, 4, 240)
    x_ND = (100 * np.eye(4)[group] + rng.normal(size=(240, 4))).astype(np.float32)
    found = compress(x_ND, leaf_items=60, seed=0, key="u")
    assert all(len(set(group[found.labels == cluster].tolist())) == 1 for cluster in range(len(found)))


def test_a_far_away_mean_costs_no_accuracy():
    rng = np.random.default_rng(3)
    near_ND = rng.integers(-50, 50, (300, 4)).astype(np.float32)
    far_ND = near_ND + np.float32(1e6)  # whole numbers below 2^24: exact
    assert (compress(near_ND, seed=0, key="u").labels == compress(far_ND, seed=0, key="u").labels).all()


def test_where_rounding_undoes_a_cut_another_is_made(monkeypatch):
    monkeypatch.setattr(lifelong, "_assign", lambda x_nD, centres_kD: np.zeros(len(x_nD), np.int64))
    x_ND = np.random.default_rng(4).normal(size=(100, 3)).astype(np.float32)
    found = compress(x_ND, leaf_items=5, seed=0, key="u")
    assert np.bincount(found.labels).max() <= 5


@pytest.mark.parametrize("n", [1, 7, 8, 26, 27, 28, 63, 64, 65, 999, 1000, 124_999, 125_000])
def test_the_cube_root_is_exact(n):
    root = lifelong._cube_root(n)
    assert root**3 <= n < (root + 1) ** 3


def test_numbers_are_averaged_and_names_copied():
    labels = np.array([0, 1, 0, 1, 1], np.int32)
    assert average(np.array([1.0, 0, 3, 0, 3]), labels, 2).tolist() == [2.0, 1.0]
    assert average(np.arange(10).reshape(5, 2), labels, 2).tolist() == [[2.0, 3.0], [16 / 3, 19 / 3]]
    assert average(np.empty((0, 2)), labels[:0], 0).shape == (0, 2)
    for n, message in (
        (1, "2 of 2 clusters have items, and 1 are needed"),
        (3, "2 of 3 clusters have items, and 3 are needed"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            average(np.zeros(5), labels, n)


@pytest.mark.parametrize(
    ("x_ND", "leaf_items", "message"),
    [
        (np.zeros(3, np.float32), 7, "vectors are float32 [3], and finite numbers (N, D) are needed"),
        (np.array([[np.nan]], np.float32), 7, "vectors are float32 [1, 1], and finite numbers (N, D) are needed"),
        (np.zeros((3, 1), np.float32), 0, "leaf_items is 0, and 1 or more is needed"),
    ],
)
def test_what_cannot_be_clustered_is_refused(x_ND, leaf_items, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compress(x_ND, leaf_items=leaf_items, seed=0, key="u")
