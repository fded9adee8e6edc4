"""Figures of ranked lists, against loops that anyone can follow."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from kvtools.onerec.recommend import metrics

cutoffs = st.integers(1, 7)
ranks = st.lists(st.integers(-1, 9), min_size=1, max_size=20)
# lists of one length with repetitions and padding, and for each user the true items
lists = st.integers(1, 6).flatmap(
    lambda width: st.lists(
        st.tuples(st.lists(st.integers(-1, 6), min_size=width, max_size=width), st.lists(st.integers(-1, 8), max_size=5)),
        min_size=1,
        max_size=8,
    )
)


def ragged(users):
    items_UK = np.array([items for items, _ in users], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(truth) for _, truth in users])])
    return items_UK, offsets, np.array([item for _, truth in users for item in truth], np.int32)


def slow_distinct(items):
    return list(dict.fromkeys(item for item in items if item != -1))


def over_users(users, figure):
    """The mean of figure(first k distinct items, truth) over users with truth; None where there is none."""
    found = [figure(slow_distinct(items), truth) for items, truth in users if truth]
    return sum(found) / len(found) if found else None


def agrees(function, users, k, figure):
    expected = over_users(users, figure)
    if expected is None:
        with pytest.raises(ValueError, match="^there is no user to average over$"):
            function(*ragged(users), k)
    else:
        assert function(*ragged(users), k) == pytest.approx(expected, rel=1e-12)  # the same sum in another order


@settings(deadline=None)
@given(ranks, cutoffs)
def test_hit_rate_and_ndcg_are_those_of_a_loop(ranks, k):
    hits = [rank for rank in ranks if 0 <= rank < k]
    assert metrics.hit_rate(np.array(ranks), k) == pytest.approx(len(hits) / len(ranks), rel=1e-12)
    gain = sum(1 / math.log2(rank + 2) for rank in hits)
    assert metrics.ndcg(np.array(ranks), k) == pytest.approx(gain / len(ranks), rel=1e-12)


def test_the_first_place_is_worth_one_and_the_third_half():
    assert metrics.ndcg(np.array([0]), 5) == 1
    assert metrics.ndcg(np.array([2]), 5) == 0.5
    assert metrics.ndcg(np.array([2]), 2) == 0


def test_a_summary_has_the_names_of_the_report():
    found = metrics.summary(np.array([0, 7, -1, 15]))
    assert list(found) == ["hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20"]
    assert [found[f"hr@{k}"] for k in (5, 10, 20)] == [0.25, 0.5, 0.75]
    assert found["ndcg@20"] == pytest.approx((1 + 1 / math.log2(9) + 1 / math.log2(17)) / 4)
    assert list(metrics.summary(np.array([0]), (1,))) == ["hr@1", "ndcg@1"]


@settings(deadline=None)
@given(lists, st.lists(st.integers(-1, 8), min_size=8, max_size=8))
def test_a_rank_is_the_first_place_and_padding_is_no_item(users, targets):
    items_UK, targets_U = ragged(users)[0], np.array(targets[: len(users)])
    found = metrics.rank_of(items_UK, targets_U)
    assert found.dtype == np.int64
    expected = [
        items.index(target) if target != -1 and target in items else -1
        for items, target in zip(items_UK.tolist(), targets_U.tolist(), strict=True)
    ]
    assert found.tolist() == expected


def test_lists_without_places_hold_nothing():
    assert metrics.rank_of(np.empty((3, 0), np.int32), np.arange(3)).tolist() == [-1] * 3


@settings(deadline=None)
@given(lists)
def test_distinct_lists_keep_order_and_close_up(users):
    items_UK = ragged(users)[0]
    found = metrics.distinct(items_UK)
    assert found.dtype == items_UK.dtype
    for before, after in zip(items_UK.tolist(), found.tolist(), strict=True):
        expected = slow_distinct(before)
        assert after == expected + [-1] * (len(before) - len(expected))


@settings(deadline=None)
@given(lists, cutoffs)
def test_pass_is_any_true_item_among_the_first(users, k):
    agrees(metrics.pass_at_k, users, k, lambda items, truth: bool(set(items[:k]) & set(truth)))


@settings(deadline=None)
@given(lists, cutoffs)
def test_position1_pass_asks_for_the_first_true_item(users, k):
    agrees(metrics.position1_pass_at_k, users, k, lambda items, truth: truth[0] in items[:k])


@settings(deadline=None)
@given(lists, cutoffs)
def test_recall_divides_by_all_that_is_true(users, k):
    agrees(metrics.recall_at_k, users, k, lambda items, truth: len(set(items[:k]) & set(truth)) / len(set(truth)))


@settings(deadline=None)
@given(lists, cutoffs)
def test_with_one_true_item_all_four_are_the_hit_rate(users, k):
    items_UK, offsets, truths = ragged([(items, truth[:1] or [0]) for items, truth in users])
    expected = metrics.hit_rate(metrics.rank_of(metrics.distinct(items_UK), truths), k)
    for function in (metrics.pass_at_k, metrics.position1_pass_at_k, metrics.recall_at_k):
        assert function(items_UK, offsets, truths, k) == pytest.approx(expected, rel=1e-12)


def test_a_mean_over_nobody_is_refused():
    with pytest.raises(ValueError, match="^there is no user to average over$"):
        metrics.summary(np.empty(0, np.int64))


def test_seeds_have_a_mean_and_a_deviation_of_n_minus_one():
    expected = (0.3, math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert metrics.mean_and_deviation([0.1, 0.2, 0.6]) == pytest.approx(expected)
    assert math.isnan(metrics.mean_and_deviation([0.5])[1])


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (7, 7), (3, 40), (1778, 22363)])
def test_the_interval_is_that_of_scipy(hits, n):
    found = metrics.interval95(np.array([0] * hits + [-1] * (n - hits)), 10)
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert found == pytest.approx((expected.low, expected.high), abs=1e-7)
