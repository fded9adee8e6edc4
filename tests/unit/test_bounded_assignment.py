"""The cheapest assignment, against scipy's for single items."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from kvtools.etree.tree.balanced import k_means
from kvtools.etree.tree.bounded_assignment import assign


def exact(cost, low, high):
    """Places instead of bins: `low` that must be taken, being cheap, and `high - low` that may be."""
    n, k = cost.shape
    cheap = 10 * n * np.abs(cost).max()
    must = [np.repeat(cost[:, [b]] - cheap, low, axis=1) for b in range(k)]
    may = [np.repeat(cost[:, [b]], high - low, axis=1) for b in range(k)]
    rows, columns = linear_sum_assignment(np.concatenate(must + may, axis=1))
    bins = np.concatenate([np.repeat(np.arange(k), low), np.repeat(np.arange(k), high - low)])
    return cost[rows, bins[columns]].sum()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("n", "k", "low", "high"), [(40, 4, 10, 10), (60, 5, 8, 15), (90, 7, 1, 14), (30, 1, 0, 30)])
def test_no_assignment_within_the_bounds_is_cheaper(n, k, low, high, seed):
    cost = np.random.default_rng(seed).random((n, k)) ** 2
    found, _ = assign(cost, low, high)
    sizes = np.bincount(found, minlength=k)
    assert low <= sizes.min()
    assert sizes.max() <= high
    assert cost[np.arange(n), found].sum() == pytest.approx(exact(cost, low, high))


def test_bounds_that_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="cannot hold 10"):
        assign(np.zeros((10, 2)), 0, 4)


def test_equal_costs_still_keep_to_the_bounds():
    found, _ = assign(np.zeros((100, 7)), 12, 16)
    assert np.bincount(found, minlength=7).max() <= 16


def test_constrained_k_means_keeps_its_bounds_and_finds_the_lumps():
    rng = np.random.default_rng(0)
    lumps = rng.normal(size=(8, 3)) * 20
    x = lumps[np.repeat(np.arange(8), 50)] + rng.normal(size=(400, 3))
    group, means = k_means(x, 8, 45, 55, seed=0)
    sizes = np.bincount(group, minlength=8)
    assert sizes.min() >= 45
    assert sizes.max() <= 55
    assert means == pytest.approx(np.stack([x[group == k].mean(axis=0) for k in range(8)]))
