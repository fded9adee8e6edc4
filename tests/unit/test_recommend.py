"""From histories to items: shares of an ID, seen items, blends and ranking, each against a slow version in dictionaries."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_onerec import SMALL, batcher_of, catalogue, histories_of, scatter

from kvtools.onerec.interactions import users
from kvtools.onerec.interactions.features import FeatureEncoder
from kvtools.onerec.model.beam import rank_all
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.recommend import recommend
from kvtools.onerec.recommend.item_counts import ItemCounts
from kvtools.onerec.recommend.query import Query, Recommendations
from kvtools.onerec.recommend.recommend import ItemGivenId, Recommender, SearchOptions, blend, top_k
from kvtools.onerec.run.checkpoint import Checkpoint, new_model
from kvtools.onerec.semantic_ids.ids import SemanticIds

N_ITEMS, N_CODES, N_LEVELS = 40, 3, 3  # 27 IDs at most: most are shared
LENGTHS = [6, 0, 15, 3, 1, 30]
WITHIN = ["popular", "recent", "random"]


class Shop:
    """A generator of random weights, its catalogue full of collisions, and users, one of them without a history."""

    def __init__(self, seed=0, **changed):
        rng = np.random.default_rng(seed)
        codes_NS = catalogue(N_ITEMS, (N_CODES,) * N_LEVELS, seed)
        keys = np.array([f"i{n}" for n in range(N_ITEMS)], np.dtypes.StringDType())
        self.ids = SemanticIds(keys, codes_NS, rng.normal(size=(N_LEVELS, N_CODES, 4)).astype(np.float32))
        encoder = FeatureEncoder(words={"author": tuple("abcd")}, has_time=True)
        static = (users.Vocabulary("age", ("old", "young")), users.Vocabulary("job", ("cook", "poet", "smith")))
        self.config = replace(SMALL, positive=8, **changed)
        self.histories = histories_of(LENGTHS, N_ITEMS, seed)
        everyone = np.ones(len(self.histories.items), bool)
        self.counts = ItemCounts.fit(self.histories, everyone, N_ITEMS)
        model = scatter(new_model(self.config, self.ids, encoder, static), seed)
        self.checkpoint = Checkpoint(model, self.ids, encoder, static, self.counts)
        self.batcher = batcher_of(self.histories, self.config, N_ITEMS, seed)
        self.trie = Trie(codes_NS)

    def recommend(self, ask=None, **choice):
        recommender = Recommender(self.checkpoint, self.batcher, SearchOptions(**choice), "cpu", torch.float32)
        return recommender.recommend(self.everyone if ask is None else ask)

    @property
    def everyone(self):
        return Query(np.arange(len(LENGTHS)), np.array(LENGTHS))

    def seen(self, user, length=None):
        base = self.histories.offsets[user]
        return set(self.histories.items[base : base + (LENGTHS[user] if length is None else length)].tolist())


def counts_of(seed, n_items=N_ITEMS):
    """Popularity and last times with ties, and items that nobody took up."""
    rng = np.random.default_rng(seed)
    popularity = rng.integers(0, 4, n_items)
    latest = np.where(popularity > 0, rng.integers(0, 5, n_items).astype(float), -np.inf)
    return ItemCounts(popularity, latest, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_is_given_stays_as_it_is(dtype):
    shop = Shop()
    before = {name: x.clone() for name, x in shop.checkpoint.model.state_dict().items()}
    Recommender(shop.checkpoint, shop.batcher, SearchOptions(), "cpu", dtype).recommend(shop.everyone)
    after = shop.checkpoint.model.state_dict()
    assert all(after[name].dtype == x.dtype and torch.equal(after[name], x) for name, x in before.items())


# ── items of an ID ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("within", WITHIN)
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_shares_of_an_id_are_as_stated_and_add_to_one(within, seed):
    trie, counted = Trie(catalogue(N_ITEMS, (3, 3), seed)), counts_of(seed)
    given_id = ItemGivenId(trie, counted, within, seed)
    for number in range(trie.n_ids):
        mine = np.flatnonzero(trie.id_of_item == number).tolist()
        in_order = given_id.items[trie.bucket[number] : trie.bucket[number + 1]].tolist()
        if within == "popular":
            assert in_order == sorted(mine, key=lambda item: (-counted.popularity[item], item))
            expected = {item: counted.popularity[item] + 1 for item in mine}
        elif within == "recent":
            assert in_order == sorted(mine, key=lambda item: (-counted.latest[item], item))
            expected = {item: 1 / rank for rank, item in enumerate(in_order, start=1)}
        else:
            assert sorted(in_order) == mine
            expected = dict.fromkeys(mine, 1)
        blended = np.exp(given_id.log_p[in_order])
        assert blended.sum() == pytest.approx(1)
        np.testing.assert_allclose(blended, [expected[item] / sum(expected.values()) for item in in_order])
        assert (np.diff(blended) <= 1e-12).all(), "the largest share first"


def test_the_order_within_an_id_is_the_seeds():
    trie = Trie(catalogue(N_ITEMS, (3, 2)))
    one, two, three = (ItemGivenId(trie, counts_of(0), "random", seed).items.tolist() for seed in (1, 1, 2))
    assert one == two != three


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(WITHIN), st.integers(1, 12), st.integers(0, 10**6), st.data())
def test_spread_gives_the_first_items_of_each_id_and_their_scores(within, k, seed, data):
    trie = Trie(catalogue(N_ITEMS, (3, 2), seed))
    given_id = ItemGivenId(trie, counts_of(seed), within, seed)
    wanted = st.lists(st.integers(-1, trie.n_ids - 1), min_size=3, max_size=3)
    ids_BW = np.array(data.draw(st.lists(wanted, min_size=1, max_size=3)))
    scores_BW = np.where(ids_BW >= 0, -np.random.default_rng(seed).exponential(size=ids_BW.shape), -np.inf)
    items_BX, scores_BX = given_id.candidates(ids_BW, scores_BW, k)
    for row, (ids, scores) in enumerate(zip(ids_BW, scores_BW, strict=True)):
        expected = [
            (item, score + given_id.log_p[item])
            for one, score in zip(ids, scores, strict=True)
            if one >= 0
            for item in given_id.items[trie.bucket[one] : trie.bucket[one + 1]][:k].tolist()
        ]
        found = [*zip(items_BX[row].tolist(), scores_BX[row].tolist(), strict=True)]
        assert [pair for pair in found if pair[0] >= 0] == expected
        assert {pair for pair in found if pair[0] < 0} <= {(-1, -math.inf)}


# ── the best candidates ──────────────────────────────────────────────────────────────────────────────────────────────────
def candidates(seed, n_rows=3, n_items=15, n_candidates=10):
    """Distinct items and scores of few values, so that many are equal; some are not there."""
    rng = np.random.default_rng(seed)
    items_BX = np.stack([rng.permutation(n_items)[:n_candidates] for _ in range(n_rows)])
    is_there = rng.random(items_BX.shape) < 0.8
    return np.where(is_there, items_BX, -1), np.where(is_there, -rng.integers(0, 4, items_BX.shape).astype(float), -np.inf)


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**6), st.integers(1, 20), st.sets(st.tuples(st.integers(0, 2), st.integers(0, 14)), max_size=20))
def test_the_best_come_first_ties_to_the_lower_item_and_seen_ones_never(seed, k, is_seen):
    items_BX, scores_BX = candidates(seed)
    seen = np.array([row * 15 + item for row, item in sorted(is_seen)], np.int64) if is_seen else None
    items_Bk, scores_Bk = top_k(items_BX, scores_BX, seen, 15, k)
    assert (items_Bk.shape, items_Bk.dtype, scores_Bk.dtype) == ((3, k), np.int32, np.float32)
    for row in range(3):
        left = [
            (-score, item)
            for item, score in zip(items_BX[row].tolist(), scores_BX[row].tolist(), strict=True)
            if item >= 0 and (row, item) not in is_seen
        ]
        expected = sorted(left)[:k]
        n_gone = k - len(expected)
        assert items_Bk[row].tolist() == [item for _, item in expected] + [-1] * n_gone
        assert scores_Bk[row].tolist() == [-score for score, _ in expected] + [-math.inf] * n_gone


# ── blends ───────────────────────────────────────────────────────────────────────────────────────────────────────────────
def proposals(seed, n_rows=3):
    """What a generator and co-occurrence propose: lists that overlap, end early, and hold equal scores."""
    rng = np.random.default_rng(seed)
    items, scores = candidates(seed, n_rows)
    found = Recommendations(items.astype(np.int32), scores.astype(np.float32), np.zeros_like(items), np.zeros(n_rows, bool))
    near = np.stack([rng.permutation(15)[:8] for _ in range(n_rows)]).astype(np.int32)
    n_near = rng.integers(0, 9, n_rows)
    near[np.arange(8) >= n_near[:, None]] = -1
    return found, (near, np.where(near >= 0, rng.integers(1, 4, near.shape) / 2, 0).astype(np.float32))


def slow_blend(found, near, weight, row):
    """{item: log of its chance} of one user."""
    by_generator = {
        i: math.exp(s) for i, s in zip(found.items[row].tolist(), found.scores[row].tolist(), strict=True) if i >= 0
    }
    by_counts = {i: s for i, s in zip(near[0][row].tolist(), near[1][row].tolist(), strict=True) if i >= 0}
    blended = {}
    for weight_of_source, proposed in ((1 - weight, by_generator), (weight, by_counts)):
        for item, probability in proposed.items():
            blended[item] = blended.get(item, 0) + weight_of_source * probability / sum(proposed.values())
    return {item: math.log(probability) for item, probability in blended.items() if probability > 0}


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.95, 1.0]), st.integers(1, 25))
def test_a_blend_adds_what_both_say_each_normed_over_its_candidates(seed, weight, k):
    found, near = proposals(seed)
    id_of_item = np.arange(15) // 2
    blended = blend(found, near, weight, k, id_of_item)
    for row in range(3):
        expected = slow_blend(found, near, weight, row)
        n = min(k, len(expected))
        items, scores = blended.items[row].tolist(), blended.scores[row].tolist()
        assert scores[:n] == pytest.approx(sorted(expected.values(), reverse=True)[:n], rel=1e-6, abs=1e-6)
        assert [expected[item] for item in items[:n]] == pytest.approx(scores[:n], rel=1e-6, abs=1e-6)
        assert len(set(items[:n])) == n
        assert items[n:] == [-1] * (k - n)
        assert blended.ids[row].tolist() == [item // 2 if item >= 0 else -1 for item in items]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_a_blend_of_weight_0_is_the_generators_order_and_of_1_that_of_counts(seed):
    found, near = proposals(seed)
    by_generator = top_k(found.items, found.scores, None, 0, 10)[0]
    by_counts = top_k(near[0], np.where(near[0] >= 0, near[1], -np.inf), None, 0, 10)[0]
    assert blend(found, near, 0.0, 10, np.arange(15)).items.tolist() == by_generator.tolist()
    assert blend(found, near, 1.0, 10, np.arange(15)).items.tolist() == by_counts.tolist()


def test_a_blend_of_nothing_and_counts_is_what_counts_say():
    found, near = proposals(1)
    nothing = Recommendations(
        np.full((3, 4), -1, np.int32), np.full((3, 4), -np.inf, np.float32), np.full((3, 4), -1), np.zeros(3, bool)
    )
    with np.errstate(all="raise", divide="ignore", under="ignore"):
        blended = blend(nothing, near, 0.5, 10, np.arange(15))
    assert blended.items.tolist() == blend(found, near, 1.0, 10, np.arange(15)).items.tolist()


# ── who asks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.data())
def test_the_past_of_an_ask_is_the_first_interactions_of_each_user(lengths, data):
    histories = histories_of(lengths, N_ITEMS)
    wanted = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=8))
    counts = [data.draw(st.integers(0, lengths[user])) for user in wanted]
    offsets, items = Query(np.array(wanted, np.int64), np.array(counts, np.int64)).past(histories)
    parts = [items[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    bases = histories.offsets[wanted].tolist() if wanted else []
    assert parts == [histories.items[base : base + n].tolist() for base, n in zip(bases, counts, strict=True)]


def test_chunks_are_the_whole_in_order():
    ask = Query(np.arange(700), np.arange(700) % 5)
    chunks = list(ask.chunks())
    assert [len(chunk) for chunk in chunks] == [256, 256, 188]
    assert np.concatenate([chunk.users for chunk in chunks]).tolist() == ask.users.tolist()
    assert np.concatenate([chunk.lengths for chunk in chunks]).tolist() == ask.lengths.tolist()


def test_counts_are_those_of_the_training_part():
    histories = histories_of([5, 9, 4], 6)
    is_train = np.random.default_rng(0).random(18) < 0.6
    counted = ItemCounts.fit(histories, is_train, 6)
    taken = [(item, time) for item, time, mine in zip(histories.items, histories.times, is_train, strict=True) if mine]
    assert counted.popularity.tolist() == [sum(item == n for item, _ in taken) for n in range(6)]
    assert counted.latest.tolist() == [max((t for item, t in taken if item == n), default=-math.inf) for n in range(6)]


# ── recommending ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("changed", [{}, {"near": 4}, {"decoder": "lazy"}], ids=["plain", "near", "lazy"])
def test_beams_wide_enough_give_the_exact_ranking(within, exclude_seen, changed):
    shop = Shop(**changed)
    options = {"within": within, "exclude_seen": exclude_seen, "k": 15}
    by_beam, exactly = (shop.recommend(beam=27, is_exact=is_exact, **options) for is_exact in (False, True))
    assert by_beam.items.tolist() == exactly.items.tolist()
    assert by_beam.ids.tolist() == exactly.ids.tolist()
    np.testing.assert_allclose(by_beam.scores, exactly.scores, rtol=0, atol=1e-5)
    assert by_beam.n_beams == by_beam.n_legal


@pytest.mark.parametrize("beam", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(
    "options", [{}, {"exclude_seen": False}, {"within": "recent"}, {"within": "random"}, {"k": N_ITEMS}], ids=str
)
@pytest.mark.parametrize(
    "changed", [{"item_scores": 15}, {"near": 4}, {"decoder": "lazy"}], ids=["item scores", "near", "lazy"]
)
def test_narrow_beams_that_widen_where_they_are_not_proven_give_the_exact_best(beam, options, changed):
    shop = Shop(**changed)
    options = {"k": 3, **options}
    options["certify"] = options["k"]
    widened, exactly = shop.recommend(beam=beam, widen=True, **options), shop.recommend(is_exact=True, **options)
    assert widened.items.tolist() == exactly.items.tolist()
    assert widened.ids.tolist() == exactly.ids.tolist()
    np.testing.assert_allclose(widened.scores, exactly.scores, rtol=0, atol=1e-5)
    assert widened.is_proven.sum() == exactly.is_proven.sum() == len(LENGTHS)


@pytest.mark.parametrize(("beam", "expected"), [(1, 1), (2, 2), (4, 4), (8, 6), (16, 6), (27, len(LENGTHS))])
def test_whose_best_are_proven_has_them(beam, expected):
    shop = Shop()
    n_proven = 0
    for user, length in enumerate(LENGTHS):
        ask = Query(np.array([user]), np.array([length]))
        found, exactly = (shop.recommend(ask, k=10, beam=beam, certify=2, is_exact=is_exact) for is_exact in (False, True))
        assert not found.is_proven.sum() or found.items[0, :2].tolist() == exactly.items[0, :2].tolist()
        n_proven += found.is_proven.sum()
    assert n_proven == shop.recommend(k=10, beam=beam, certify=2).is_proven.sum()
    assert n_proven == expected


def test_search_does_not_widen_beyond_what_is_held_for_one_user(monkeypatch):
    monkeypatch.setattr(recommend, "_N_SCORES", 5 * N_CODES)
    found = Shop().recommend(k=N_ITEMS, certify=N_ITEMS, beam=2, widen=True)
    assert found.is_proven.sum() == 1, "nobody but who has no history"
    assert found.n_beams == (2 + 4 + 5) * (len(LENGTHS) - 1)


def test_search_does_not_widen_beyond_the_widest_that_is_asked_for():
    found = Shop().recommend(k=N_ITEMS, certify=N_ITEMS, beam=2, widen=True, widest=4)
    assert found.n_beams == (2 + 4) * (len(LENGTHS) - 1)


def test_items_of_one_id_that_share_evenly_come_in_an_order_that_the_seed_shuffles():
    def pairs(is_exact, seed):
        found = Shop().recommend(k=N_ITEMS, beam=27, within="random", exclude_seen=False, is_exact=is_exact, seed=seed)
        return [(a, b) for (a, x), (b, y) in pairwise(zip(found.items[0], found.ids[0], strict=True)) if x == y]

    assert pairs(False, 0) == pairs(True, 0)
    assert len({tuple(pairs(True, seed)) for seed in range(5)}) > 1
    assert any(a > b for seed in range(5) for a, b in pairs(True, seed))


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_beams_wide_enough_give_the_exact_best_where_ids_have_more_items_than_are_asked_for(exclude_seen):
    shop = Shop()
    assert np.diff(shop.trie.bucket).max() > 2
    by_beam, exactly = (
        shop.recommend(k=2, beam=27, is_exact=is_exact, exclude_seen=exclude_seen) for is_exact in (False, True)
    )
    assert by_beam.items.tolist() == exactly.items.tolist()


@pytest.mark.parametrize("is_exact", [False, True])
def test_scores_are_log_probabilities_of_items(is_exact):
    shop = Shop()
    ask = Query(np.array([2, 5]), np.array([9, 30]))
    found = shop.recommend(ask, k=N_ITEMS, beam=27, is_exact=is_exact, exclude_seen=False)
    context = shop.checkpoint.model.context(shop.batcher.batch(shop.batcher.next_rows(ask.users, ask.lengths)))
    log_p_BU = rank_all(shop.checkpoint.model, context, shop.trie).double().numpy()
    for row in range(2):
        probabilities = {}
        for item in range(N_ITEMS):
            number = shop.trie.id_of_item[item]
            together = shop.counts.popularity[shop.trie.id_of_item == number] + 1
            probabilities[item] = math.exp(log_p_BU[row, number]) * (shop.counts.popularity[item] + 1) / together.sum()
        assert sorted(found.items[row].tolist()) == list(range(N_ITEMS))
        for item, score in zip(found.items[row].tolist(), found.scores[row].tolist(), strict=True):
            assert score == pytest.approx(math.log(probabilities[item]), abs=1e-4)


@pytest.mark.parametrize(
    "choice",
    [{}, {"beam": 3}, {"is_exact": True}, {"use_trie": False}, {"blend": 0.4}, {"blend": 1.0}, {"within": "random"}],
    ids=str,
)
@pytest.mark.parametrize("near", [0, 4])
def test_seen_items_are_never_recommended(choice, near):
    shop = Shop(near=near)
    found = shop.recommend(k=20, **choice)
    for user in range(len(LENGTHS)):
        mine = [item for item in found.items[user].tolist() if item >= 0]
        assert mine
        assert not shop.seen(user) & set(mine)
        assert len(set(mine)) == len(mine)
        assert [shop.trie.id_of_item[item] for item in mine] == found.ids[user][: len(mine)].tolist()
        assert (np.diff(found.scores[user][: len(mine)]) <= 0).all()


def test_only_what_counts_is_seen():
    shop = Shop()
    found = shop.recommend(Query(np.array([5]), np.array([2])), k=N_ITEMS)
    assert set(found.items[0].tolist()) - {-1} == set(range(N_ITEMS)) - shop.seen(5, 2)


@pytest.mark.parametrize("choice", [{}, {"is_exact": True}, {"blend": 0.5}], ids=str)
def test_users_without_history_get_what_is_popular(choice):
    shop = Shop()
    popularity = shop.counts.popularity
    found = shop.recommend(k=12, **choice)
    order = sorted(range(N_ITEMS), key=lambda item: (-popularity[item], item))[:12]
    assert found.items[1].tolist() == order
    probabilities = [(popularity[item] + 1) / (popularity.sum() + N_ITEMS) for item in order]
    np.testing.assert_allclose(found.scores[1], np.log(probabilities), rtol=1e-6)
    alone = shop.recommend(Query(np.array([1]), np.array([0])), k=12, **choice)
    assert alone.items.tolist() == [order]


@pytest.mark.parametrize("choice", [{}, {"is_exact": True}, {"use_trie": False}, {"blend": 0.3}], ids=str)
def test_users_together_get_what_they_get_alone(choice, monkeypatch):
    shop = Shop(near=4)
    together = shop.recommend(k=10, **choice)
    for user, length in enumerate(LENGTHS):
        alone = shop.recommend(Query(np.array([user]), np.array([length])), k=10, **choice)
        assert alone.items.tolist() == [together.items[user].tolist()]
    monkeypatch.setattr(recommend, "_N_SCORES", 1)  # one user a pass
    in_passes = shop.recommend(k=10, **choice)
    assert in_passes.items.tolist() == together.items.tolist()
    assert (in_passes.n_legal, in_passes.n_beams) == (together.n_legal, together.n_beams)


def test_nobody_asks_and_nothing_comes():
    found = Shop().recommend(Query(np.zeros(0, np.int64), np.zeros(0, np.int64)), k=5)
    assert found.items.shape == found.scores.shape == found.ids.shape == (0, 5)


def test_without_the_trie_what_no_item_has_is_dropped_and_counted():
    shop = Shop()
    n_all = N_CODES**N_LEVELS
    free, bound = shop.recommend(k=N_ITEMS, beam=n_all, use_trie=False), shop.recommend(k=N_ITEMS, beam=n_all)
    assert free.items.tolist() == bound.items.tolist()
    n_users = sum(n > 0 for n in LENGTHS)
    assert (free.n_beams, free.n_legal) == (n_users * n_all, n_users * shop.trie.n_ids)


def test_blends_end_in_what_each_says_alone():
    shop = Shop(near=4)
    ask = Query(np.array([0, 2, 3, 4, 5]), np.array([6, 15, 3, 1, 30]))
    recommender = Recommender(shop.checkpoint, shop.batcher, SearchOptions(k=10, beam=27), "cpu", torch.float32)
    first, last = recommender.blends(ask, [0.0, 1.0])
    assert first.items.tolist() == recommender.recommend(ask).items.tolist()
    counts = shop.counts.recommend("co-occurrence", ask, shop.histories, 10, exclude_seen=True)[0]
    assert last.items.tolist() == counts.tolist()


@pytest.mark.parametrize("name", ["popular", "co-occurrence"])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_baselines_leave_out_what_counts_as_seen(name, exclude_seen):
    shop = Shop()
    ask = Query(np.array([5, 2]), np.array([30, 4]))
    items, _ = shop.counts.recommend(name, ask, shop.histories, N_ITEMS, exclude_seen=exclude_seen)
    for row, (user, length) in enumerate([(5, 30), (2, 4)]):
        assert bool(shop.seen(user, length) & set(items[row].tolist())) is not exclude_seen
