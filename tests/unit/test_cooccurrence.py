"""Co-occurrence candidates, against loops that anyone can follow and against counting again without the user."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.onerec.interactions.log import TEST, TRAIN, leave_last_out, read_interactions
from kvtools.onerec.recommend import cooccurrence, metrics
from kvtools.onerec.recommend.cooccurrence import Settings

logs = st.lists(st.lists(st.integers(0, 7), max_size=9), min_size=1, max_size=7)
choices = st.builds(
    Settings,
    window=st.integers(0, 4),
    reverse=st.sampled_from([0.0, 0.3, 1.0]),
    decay=st.sampled_from([0.7, 1.0]),
    n_last=st.integers(1, 5),
    smoothing=st.sampled_from([0.5, 10.0]),
)
blocks = st.sampled_from([1, 20, 1 << 22])


def flat(log):
    offsets = np.concatenate([[0], np.cumsum([len(mine) for mine in log], dtype=np.int64)])
    return offsets, np.array([item for mine in log for item in mine], np.int32)


def scores_of(fitted, offsets, items):
    """The score of every item after each history."""
    return fitted._scores(offsets[1:], np.diff(offsets), items)


def slow_counts(log, n_items, chosen):
    found = np.zeros((n_items, n_items))
    for mine in log:
        for a in range(len(mine)):
            for b in range(a + 1, min(a + chosen.window, len(mine) - 1) + 1):
                found[mine[a], mine[b]] += 1 / (b - a)
                found[mine[b], mine[a]] += chosen.reverse / (b - a)
    return found


def slow_scores(log, histories, n_items, chosen):
    together = slow_counts(log, n_items, chosen)
    popularity = np.array([sum(mine.count(item) for mine in log) for item in range(n_items)])
    found = np.zeros((len(histories), n_items))
    for row, history in enumerate(histories):
        for back, item in enumerate(history[::-1][: chosen.n_last]):
            found[row] += chosen.decay**back * together[item]
    return found / np.sqrt(popularity + chosen.smoothing)


def slow_best(scores, histories, n, exclude_seen):
    ids, best = np.full((len(scores), n), -1), np.zeros((len(scores), n), np.float32)
    for row, history in enumerate(histories):
        wanted = [j for j in np.flatnonzero(scores[row] > 0).tolist() if not (exclude_seen and j in history)]
        chosen = sorted(wanted, key=lambda j: (-scores[row, j], j))[:n]
        ids[row, : len(chosen)], best[row, : len(chosen)] = chosen, scores[row, chosen]
    return ids, best


@settings(deadline=None, max_examples=80)
@given(logs, choices)
def test_counts_are_those_of_three_loops(log, chosen):
    found = cooccurrence.counts(*flat(log), 8, chosen).toarray()
    # weights are rounded to 2^-30, which is 2e-8 of the least of them, 0.3 / 4
    np.testing.assert_allclose(found, slow_counts(log, 8, chosen), rtol=2e-8, atol=0)


@settings(deadline=None, max_examples=80)
@given(logs, logs, choices)
def test_scores_are_those_of_three_loops(log, histories, chosen):
    found = scores_of(cooccurrence.fit(*flat(log), 8, chosen), *flat(histories))
    assert found.dtype == np.float32
    # float32: 6e-8 of rounding, and that of the weights
    np.testing.assert_allclose(found.toarray(), slow_scores(log, histories, 8, chosen), rtol=1e-7, atol=0)


@settings(deadline=None, max_examples=120)
@given(logs, logs, choices, st.integers(1, 10), st.booleans(), blocks)
def test_nearest_are_the_best_with_ties_to_the_lower_item(log, histories, chosen, n, exclude_seen, block):
    fitted = cooccurrence.fit(*flat(log), 8, chosen)
    expected = slow_best(scores_of(fitted, *flat(histories)).toarray(), histories, n, exclude_seen)
    with mock.patch.object(cooccurrence, "_BLOCK", block):
        ids, scores = fitted.nearest(*flat(histories), n, exclude_seen=exclude_seen)
    assert (ids.dtype, scores.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


def same_as_counting_again(log, n_items, n, chosen, exclude_seen=False):
    offsets, items = flat(log)
    ids, scores = cooccurrence.leave_own_out(offsets, items, n_items, n, chosen, exclude_seen=exclude_seen)
    assert (ids.dtype, scores.dtype) == (np.int32, np.float32)
    for user, mine in enumerate(log):
        without = cooccurrence.fit(*flat([*log[:user], [], *log[user + 1 :]]), n_items, chosen)
        befores = [mine[:position] for position in range(len(mine))]
        expected = without.nearest(*flat(befores), n, exclude_seen=exclude_seen)
        here = slice(offsets[user], offsets[user + 1])
        np.testing.assert_array_equal(ids[here], expected[0])
        np.testing.assert_array_equal(scores[here], expected[1])


@settings(deadline=None, max_examples=120)
@given(logs, choices, st.integers(1, 10), st.booleans(), blocks)
def test_leaving_a_user_out_is_counting_again_without_them(log, chosen, n, exclude_seen, block):
    with mock.patch.object(cooccurrence, "_BLOCK", block):
        same_as_counting_again(log, 8, n, chosen, exclude_seen)


def test_no_rounding_is_left_where_a_user_was_taken_out():
    # the first user alone has item 1, often near 0, which all have: in plain float64 thirds and tenths added in another
    # order leave 1e-17 in place of 0, and item 1 would be a candidate
    rng = np.random.default_rng(2)
    others = [np.stack([np.zeros(9, int), rng.integers(2, 40, 9)], axis=1).ravel().tolist() for _ in range(12)]
    same_as_counting_again([rng.integers(0, 2, 40).tolist(), *others], 40, 40, Settings(window=4, reverse=0.1))


def test_a_user_alone_finds_nothing_in_their_own_history():
    offsets, items = flat([[0, 1, 2, 0, 1, 2, 0]])
    ids, scores = cooccurrence.leave_own_out(offsets, items, 3, 4, Settings())
    assert (ids == -1).all()
    assert not scores.any()
    assert (cooccurrence.fit(offsets, items, 3, Settings()).nearest(offsets, items, 1, exclude_seen=False)[0] >= 0).all()


def test_users_with_one_item_add_popularity_and_no_counts():
    offsets, items = flat([[0, 1], [1], [1]])
    fitted = cooccurrence.fit(offsets, items, 3, Settings())
    assert fitted.damped_II.nnz == 2
    ids, scores = fitted.nearest(*flat([[0], [], [2]]), 2, exclude_seen=False)
    assert ids.tolist() == [[1, -1], [-1, -1], [-1, -1]]
    assert scores[0, 0] == np.float32(1 / np.sqrt(3 + 10))


def test_later_items_of_the_user_are_not_left_out_as_seen():
    offsets, items = flat([[0, 1, 2], [0, 2], [2, 0]])
    ids, _ = cooccurrence.leave_own_out(offsets, items, 3, 2, Settings(), exclude_seen=True)
    assert ids[:3].tolist() == [[-1, -1], [2, -1], [2, -1]]


def test_no_history_and_no_log_give_empty_answers():
    none = np.zeros(1, np.int64), np.empty(0, np.int32)
    fitted = cooccurrence.fit(*none, 5, Settings())
    assert scores_of(fitted, *none).shape == (0, 5)
    assert fitted.nearest(*none, 3, exclude_seen=True)[0].shape == (0, 3)
    assert fitted.nearest(*flat([[4, 1], []]), 3, exclude_seen=True)[0].tolist() == [[-1] * 3] * 2
    assert cooccurrence.leave_own_out(*none, 5, 3, Settings())[0].shape == (0, 3)
    assert cooccurrence.popularity(none[1], 5).tolist() == [0] * 5


@settings(deadline=None, max_examples=120)
@given(logs, logs, st.integers(1, 10), st.booleans())
def test_the_most_popular_are_those_of_a_sort(log, histories, n, exclude_seen):
    popularity = cooccurrence.popularity(flat(log)[1], 8)
    ids, scores = cooccurrence.top_popular(popularity, *flat(histories), n, exclude_seen=exclude_seen)
    expected = slow_best(np.tile(popularity, (len(histories), 1)), histories, n, exclude_seen)
    assert (popularity.dtype, ids.dtype, scores.dtype) == (np.int64, np.int32, np.float32)
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


@pytest.fixture(scope="module")
def beauty(data):
    with open(data / "rec" / "amazon_beauty_2014" / "sequential_data.txt", "rb", buffering=1 << 20) as file:
        log, _ = read_interactions(file, "beauty")
    return log, leave_last_out(log.offsets)


def test_beauty_gives_the_figures_of_the_spec(beauty):
    """Counts and popularity from train parts alone; history train and valid; what it holds is not ranked."""
    log, parts = beauty
    train, before, test = log.keep(parts == TRAIN), log.keep(parts != TEST), log.keep(parts == TEST)
    assert len(test.items) == len(log.user_keys)  # five items a user at least: each has a test item
    fitted = cooccurrence.fit(train.offsets, train.items, len(log.item_keys), Settings())
    ids, _ = fitted.nearest(before.offsets, before.items, 20, exclude_seen=True)
    found = metrics.summary(metrics.rank_of(ids, test.items))
    # 3e-4: the spec's figures are of the file of S3-Rec, with 2 % more interactions
    assert found["hr@10"] == pytest.approx(0.0795, abs=3e-4)
    assert found["ndcg@10"] == pytest.approx(0.0495, abs=3e-4)
    popularity = cooccurrence.popularity(train.items, len(log.item_keys))
    ids, _ = cooccurrence.top_popular(popularity, before.offsets, before.items, 20, exclude_seen=True)
    found = metrics.summary(metrics.rank_of(ids, test.items))
    assert found["hr@10"] == pytest.approx(0.0115, abs=3e-4)
    assert found["ndcg@10"] == pytest.approx(0.0055, abs=3e-4)


def test_a_real_user_left_out_is_counting_again_without_them(beauty):
    log, parts = beauty
    train, n_items = log.keep(parts == TRAIN), len(log.item_keys)
    train = train.keep(train.users() < 4000)
    ids, scores = cooccurrence.leave_own_out(train.offsets, train.items, n_items, 20, Settings(), exclude_seen=True)
    for user in np.random.default_rng(3).choice(4000, 20, replace=False).tolist():
        others = train.keep(train.users() != user)
        without = cooccurrence.fit(others.offsets, others.items, n_items, Settings())
        mine = train.items[train.offsets[user] : train.offsets[user + 1]].tolist()
        expected = without.nearest(*flat([mine[:position] for position in range(len(mine))]), 20, exclude_seen=True)
        here = slice(train.offsets[user], train.offsets[user + 1])
        np.testing.assert_array_equal(ids[here], expected[0])
        np.testing.assert_array_equal(scores[here], expected[1])
