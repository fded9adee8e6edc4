"""Packing and balancing, against what they promise and against slow versions of themselves."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.train.packing import balance, max_over_mean, pack, round_robin


def slow_first_fit_decreasing(lengths, capacity):
    rows = []
    for place in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        for row in rows:
            if sum(lengths[p] for p in row) + lengths[place] <= capacity:
                row.append(place)
                break
        else:
            rows.append([place])
    return [sorted(row) for row in rows]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 80))
@settings(max_examples=200, deadline=None)
def test_packing_is_first_fit_decreasing(lengths, capacity):
    rows = pack(lengths, capacity)
    assert rows == slow_first_fit_decreasing(lengths, capacity)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert all(sum(lengths[p] for p in row) <= capacity for row in rows)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 10))
@settings(max_examples=100, deadline=None)
def test_windows_do_not_mix(lengths, window):
    rows = pack(lengths, 10, window=window)
    assert all(len({p // window for p in row}) == 1 for row in rows)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))


@pytest.mark.parametrize("lengths", [[3, 11], [0, 3], [-1]])
def test_what_fits_no_row_is_refused_by_its_index(lengths):
    index = next(i for i, x in enumerate(lengths) if not 0 < x <= 10)
    with pytest.raises(ValueError, match=f"^length {index} is {lengths[index]}, and 1 to 10 is needed$"):
        pack(lengths, 10)


@given(st.lists(st.floats(0, 1e6), max_size=30), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_balancing_deals_everything_once_and_the_last_to_where_least_is(costs, n):
    parts = balance(costs, n)
    assert len(parts) == n
    assert sorted(itertools.chain(*parts)) == list(range(len(costs)))
    for part in filter(None, parts):
        last = min(costs[p] for p in part)  # before it came, its part had no more than an even share of the others
        assert sum(costs[p] for p in part) <= (sum(costs) - last) / n + last + 1e-6


@given(st.lists(st.integers(0, 300), min_size=1, max_size=7), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_balancing_keeps_grahams_bound(costs, n):
    deals = itertools.product(range(n), repeat=len(costs))
    best = min(max(np.bincount(deal, weights=costs, minlength=n)) for deal in deals)
    assert max(sum(costs[p] for p in part) for part in balance(costs, n)) <= (4 / 3 - 1 / (3 * n)) * best + 1e-6


def test_balancing_beats_dealing_in_turn_on_lengths_as_they_are():
    costs = np.random.default_rng(0).lognormal(6, 1, 64)
    even, turn = max_over_mean(costs, balance(costs, 8)), max_over_mean(costs, round_robin(64, 8))
    assert even < 1.02 < 1.3 < turn


def test_ties_go_to_the_earlier():
    assert balance([1, 1, 1, 1], 2) == [[0, 2], [1, 3]]
    assert balance([], 3) == [[], [], []]
    assert pack([], 5) == []
    assert max_over_mean([0, 0], [[0], [1]]) == 1.0
