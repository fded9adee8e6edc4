"""Swing similarity and the pairs taken from it, against loops that anyone can follow."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.onerec.items import swing

logs = st.lists(st.lists(st.integers(0, 7), max_size=12), min_size=1, max_size=9)


def flat(log):
    users = np.repeat(np.arange(len(log)), [len(clicks) for clicks in log])
    items = np.array([item for clicks in log for item in clicks], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(clicks) for clicks in log])])
    return users, items, offsets


def slow_swing(log, n_items, alpha, is_weighted):
    similar = np.zeros((n_items, n_items))
    sets = [set(clicks) for clicks in log]
    for a, b in combinations(sets, 2):
        weight = 1 / np.sqrt(len(a)) / np.sqrt(len(b)) if is_weighted and a and b else 1
        for i in a & b:
            for j in a & b:
                if i != j:
                    similar[i, j] += weight / (alpha + len(a & b))
    return similar


@settings(deadline=None, max_examples=80)
@given(logs, st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_swing_is_what_two_loops_over_users_give(log, alpha, is_weighted):
    users, items, _ = flat(log)
    found = swing.swing(swing.clicks(users, items, len(log), 8), alpha=alpha, is_weighted=is_weighted).toarray()
    # the same sums in another order: float64 rounding alone
    np.testing.assert_allclose(found, slow_swing(log, 8, alpha, is_weighted), rtol=1e-12, atol=0)


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    log = [rng.integers(0, 30, rng.integers(0, 15)).tolist() for _ in range(60)]
    users, items, _ = flat(log)
    whole = swing.swing(swing.clicks(users, items, 60, 30), alpha=1.0).toarray()
    monkeypatch.setattr(swing, "_BLOCK", 7)
    np.testing.assert_allclose(swing.swing(swing.clicks(users, items, 60, 30), alpha=1.0).toarray(), whole, rtol=1e-12)
    np.testing.assert_allclose(whole, slow_swing(log, 30, 1.0, is_weighted=False), rtol=1e-12)


@settings(deadline=None, max_examples=60)
@given(logs, st.integers(1, 4))
def test_nearest_are_the_best_with_ties_to_the_lower_number(log, top):
    users, items, _ = flat(log)
    similar = swing.swing(swing.clicks(users, items, len(log), 8), alpha=1.0)
    pairs, scores = swing.neighbours(similar, top)
    dense = similar.toarray().astype(np.float32)
    expected = []
    for i in range(8):
        best = sorted((j for j in range(8) if dense[i, j] > 0), key=lambda j: (-dense[i, j], j))[:top]
        expected += [(i, j) for j in best]
    assert list(map(tuple, pairs.tolist())) == expected
    assert scores.tolist() == [float(dense[i, j]) for i, j in expected]


@settings(deadline=None, max_examples=80)
@given(logs, st.integers(1, 5))
def test_a_target_goes_with_the_most_similar_of_the_latest_before_it(log, latest):
    users, items, offsets = flat(log)
    similar = swing.swing(swing.clicks(users, items, len(log), 8), alpha=1.0)
    pairs, scores = swing.targets(offsets, items, similar, latest)
    dense = similar.toarray().astype(np.float32)
    expected = {}
    for clicks in log:
        for position, target in enumerate(clicks):
            before = clicks[max(0, position - latest) : position][::-1]
            source = max(before, key=lambda item: dense[target, item], default=target)
            if dense[target, source] > 0:
                expected[target, source] = float(dense[target, source])
    assert {tuple(pair): score for pair, score in zip(pairs.tolist(), scores.tolist(), strict=True)} == expected
    assert len(pairs) == len(expected)


def test_caps_keep_the_latest_clicks_and_a_sample_that_other_items_do_not_change():
    log = [[0, n % 3 + 1, 4, 5, n % 2 + 6] for n in range(40)]
    users, items, _ = flat(log)
    keys = [f"item {n}" for n in range(8)]
    keep, busy, crowded = swing.cap(users, items, keys, max_users=10, max_items=4, seed=0)
    assert busy.tolist() == list(range(40))
    assert not keep[items == 0].any()  # each user's first of five
    assert np.bincount(items[keep], minlength=8).max() == 10
    assert crowded.tolist() == [1, 2, 3, 4, 5, 6, 7]
    others = items != 5
    again, *_ = swing.cap(users[others], items[others], keys, max_users=10, max_items=3, seed=0)
    np.testing.assert_array_equal(again[items[others] == 4], keep[items == 4])
    unlike, *_ = swing.cap(users, items, keys, max_users=10, max_items=4, seed=1)
    assert (unlike != keep).any()
    assert swing.cap(users, items, keys, max_users=40, max_items=5, seed=0)[0].all()


def test_union_holds_each_pair_once():
    one = (np.array([[2, 1], [0, 1]]), np.array([0.5, 1.0], np.float32))
    two = (np.array([[0, 1], [0, 3]]), np.array([1.0, 2.0], np.float32))
    pairs, scores = swing.union([one, two])
    assert pairs.tolist() == [[0, 3], [0, 1], [2, 1]]
    assert scores.tolist() == [2.0, 1.0, 0.5]


def test_a_real_log_agrees_with_the_slow_version(data):
    from kvtools.onerec.interactions.log import TRAIN, parts_of, read_interactions

    with open(data / "rec" / "amazon_beauty_2014" / "sequential_data.txt", "rb", buffering=1 << 20) as file:
        log, _ = read_interactions(file, "beauty")
    log = log.keep(parts_of(log) == TRAIN)
    similar = swing.swing(swing.clicks(log.users(), log.items, len(log.user_keys), len(log.item_keys)), alpha=1.0)
    sets = [set(log.items[a:b].tolist()) for a, b in zip(log.offsets[:-1], log.offsets[1:], strict=True)]
    clicked_by = {}
    for user, items in enumerate(sets):
        for item in items:
            clicked_by.setdefault(item, []).append(user)
    rng = np.random.default_rng(1)
    for i in rng.choice(similar.shape[0], 60, replace=False).tolist():
        expected = np.zeros(similar.shape[0])
        for u, v in combinations(clicked_by.get(i, []), 2):
            both = sets[u] & sets[v]
            for j in both - {i}:
                expected[j] += 1 / (1 + len(both))
        np.testing.assert_allclose(similar[[i]].toarray()[0], expected, rtol=1e-12)
    assert similar.nnz == pytest.approx(170_154)
