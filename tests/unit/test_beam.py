"""Beam search against a ranking of everything, and against one user and one ID at a time in float64."""

import copy
import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_onerec import (
    ALL_SCORED,
    EXPERTS,
    NEAR,
    SMALL,
    asked,
    batcher_of,
    catalogue,
    float64,
    histories_of,
    in_double,
    model_of,
)

from kvtools.onerec.model.beam import rank_all, search, search_freely
from kvtools.onerec.model.trie import Trie

N_ITEMS = 30
LENGTHS = [5, 1, 14, 9]  # contexts of every length in one batch, one of them with a lifelong part
USERS = range(len(LENGTHS))
SIZES = {2: (6, 5), 3: (4, 3, 5), 4: (3, 4, 2, 3)}
# float32 sums of some dozen products of size about 1, in another order
CLOSE = {"rtol": 0, "atol": 1e-5}

every_kind = pytest.mark.parametrize(
    ("decoder", "attention", "is_sparse", "near", "n_levels"),
    [*itertools.product(["cross", "lazy"], ["causal", "full"], [False, True], NEAR, [2, 3, 4])],
)
model_kinds = pytest.mark.parametrize(
    ("decoder", "attention", "is_sparse", "near", "n_levels"),
    [
        ("cross", "causal", True, "tokens", 3),
        ("cross", "full", False, "evidence", 4),
        ("lazy", "causal", False, "tokens", 2),
        ("lazy", "full", True, "", 3),
        ("cross", "causal", True, "scores", 3),
        ("cross", "full", False, "some scores", 4),
        ("lazy", "causal", True, "some scores", 2),
    ],
)


class Case:
    """A generator, its catalogue, and users who ask."""

    def __init__(self, decoder, attention, is_sparse, near, n_levels, seed=0):
        changed = (NEAR | ALL_SCORED)[near] | (EXPERTS if is_sparse else {})
        changed |= {"near_share": 0.3} if near == "evidence" else {}
        self.config = replace(SMALL, decoder=decoder, attention=attention, **changed)
        codes_NS = catalogue(N_ITEMS, SIZES[n_levels], seed)
        self.trie = Trie(codes_NS)
        self.model = model_of(self.config, codes_NS, SIZES[n_levels], seed)
        if self.config.item_scores:
            self.model.item_scores.score_popular(np.random.default_rng(seed).random(N_ITEMS))
            self.model.item_scores.gain.fill_(0.8)
        self.batcher = batcher_of(histories_of(LENGTHS, N_ITEMS, seed), self.config, N_ITEMS, seed)

    def batch(self, users=USERS):
        return asked(self.batcher, N_ITEMS, list(users))

    def context(self, users=USERS):
        return self.model.context(self.batch(users))

    def ranked(self):
        """Every ID of each user, best first, and the scores, by the oracle."""
        scores_BU = rank_all(self.model, self.context(), self.trie)
        order_BU = scores_BU.argsort(dim=1, descending=True)
        return order_BU, scores_BU.gather(1, order_BU)


def copied_logits(model, level, codes, normed_D, items, similarities):
    """What neighbours add to the logit of every code of a level, by hand: copy_logits.py's formula, one neighbour at a time."""
    part = model.neighbours
    query_X = part.queries[level](normed_D)
    trust = np.log1p(np.exp(float(part.trust[level](normed_D))))
    sums = np.zeros(model.vocabulary.codes[level])
    for item, similarity in zip(items, similarities, strict=True):
        own = model.codes_IS[item].tolist()
        if item >= 0 and own[:level] == codes[:level]:
            key_X = part.items.weight[item] + sum(table.weight[code] for table, code in zip(part.codes, own, strict=True))
            fit = float(query_X @ key_X) / np.sqrt(len(key_X))
            sums[own[level]] += similarity ** float(part.power[level]) * np.exp(fit)
    return trust * np.log1p(np.exp(float(part.log_scale[level])) * sums)


def recent_by_hand(model, batch):
    """What the latest items of the only user say of the next one, one item at a time: recent.py's definition."""
    part, total_D = model.recent, 0
    for item, position in zip(batch.short.items[0], batch.short.positions[0], strict=True):
        if item >= 0:
            distance = int(batch.target_positions[0, 0] - position) - 1
            total_D = total_D + part.log_weights[min(distance, len(part.log_weights) - 1)].exp() * model.item_vectors(item)
    return part.norm(part.turn(total_D))


def shares_by_hand(model, level, codes, first_D, recent_D):
    """What the scores of items add to the logit of every code of a level, one item at a time: item_scores.py's definition."""
    part = model.item_scores
    query_D, score_of = part.norm(first_D) + recent_D, dict.fromkeys(range(len(model.codes_IS)), float(part.rest))
    for item, bias in zip(part.scored.tolist(), part.bias, strict=True):
        score_of[item] = float(query_D @ model.item_vectors(torch.tensor(item)) + bias)
    sums = np.zeros(model.vocabulary.codes[level])
    for item, own in enumerate(model.codes_IS.tolist()):
        if own[:level] == codes[:level]:
            sums[own[level]] += np.exp(score_of[item])
    with np.errstate(divide="ignore"):
        return np.where(sums > 0, float(part.gain) * np.log(sums / max(sums.sum(), 1e-30) + 1e-6), np.log(1e-6))


def near_by_hand(model, codes, items, similarities):
    """The probability of an ID, or of a prefix, by the similarity of the neighbours alone, one neighbour at a time."""
    near = [(model.codes_IS[item].tolist(), s) for item, s in zip(items, similarities, strict=True) if item >= 0]
    return sum(s for own, s in near if own[: len(codes)] == codes) / sum(s for _, s in near)


def slow_scores(case, user, ids_US):
    """log P of each ID for one user: every ID a full pass of its own, in float64."""
    totals = []
    with float64(), torch.no_grad():
        model, batch = copy.deepcopy(case.model).double(), in_double(case.batch([user]))
        context = model.context(batch)
        for codes in ids_US.tolist():
            tokens = [model.begin_token(context)]
            tokens += [model.code_token(level, torch.tensor([code])) for level, code in enumerate(codes[:-1])]
            h_1SD, _ = model.decode(torch.cat(tokens, dim=1), context.attentions())
            total = 0.0
            for level, code in enumerate(codes):
                normed_D = model.head_norms[level](h_1SD[0, level])
                logits = np.array([float(normed_D @ vector) for vector in model.codes[level].weight])
                if batch.neighbours:
                    items, similarities = (x.flatten().tolist() for x in batch.neighbours)
                    logits += copied_logits(model, level, codes, normed_D, items, similarities)
                if model.config.item_scores:
                    recent_D = recent_by_hand(model, batch) if model.config.recent else 0
                    logits += shares_by_hand(model, level, codes, h_1SD[0, 0], recent_D)
                total += logits[code] - np.log(np.exp(logits).sum())
            if (share := model.config.near_share) and max(items) >= 0:
                total = np.log((1 - share) * np.exp(total) + share * near_by_hand(model, codes, items, similarities))
            totals.append(total)
    return np.array(totals)


@every_kind
def test_as_many_beams_as_prefixes_give_the_exact_ranking(decoder, attention, is_sparse, near, n_levels):
    case = Case(decoder, attention, is_sparse, near, n_levels)
    order_BU, scores_BU = case.ranked()
    beams = search(case.model, case.context(), case.trie, case.trie.n_ids)
    torch.testing.assert_close(beams.scores, scores_BU, **CLOSE)
    assert torch.equal(beams.ids, order_BU)
    assert torch.equal(beams.codes, case.trie.ids_US[order_BU])


@every_kind
def test_beams_enough_for_the_prefixes_are_enough_for_the_best_ids(decoder, attention, is_sparse, near, n_levels):
    case = Case(decoder, attention, is_sparse, near, n_levels, seed=1)
    n_beams = len(case.trie.codes[-2])
    assert n_beams < case.trie.n_ids
    beams = search(case.model, case.context(), case.trie, n_beams)
    assert torch.equal(beams.ids, case.ranked()[0][:, :n_beams])


@model_kinds
def test_scores_are_those_of_one_id_at_a_time_in_float64(decoder, attention, is_sparse, near, n_levels):
    case = Case(decoder, attention, is_sparse, near, n_levels, seed=2)
    beams = search(case.model, case.context(), case.trie, 12)
    for user in USERS:
        expected = slow_scores(case, user, beams.codes[user])
        np.testing.assert_allclose(beams.scores[user].numpy(), expected, **CLOSE)


@model_kinds
def test_the_oracle_is_right_in_float64(decoder, attention, is_sparse, near, n_levels):
    case = Case(decoder, attention, is_sparse, near, n_levels, seed=3)
    found = rank_all(case.model, case.context(), case.trie)[2].numpy()
    np.testing.assert_allclose(found, slow_scores(case, 2, case.trie.ids_US), **CLOSE)


@model_kinds
def test_the_oracle_in_many_small_passes_is_the_same(decoder, attention, is_sparse, near, n_levels):
    case = Case(decoder, attention, is_sparse, near, n_levels)
    one, many = (rank_all(case.model, case.context(), case.trie, n_rows=n) for n in (1 << 14, 1))
    torch.testing.assert_close(one, many, **CLOSE)


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("decoder", ["cross", "lazy"])
@pytest.mark.parametrize("near", NEAR)
@torch.no_grad()
def test_cached_decoding_is_the_full_pass(decoder, is_sparse, near):
    case = Case(decoder, "causal", is_sparse, near, 4)
    context = case.context()
    attends = context.attentions()
    n_beams = 3
    rng = torch.Generator().manual_seed(0)
    codes_MS = torch.stack([torch.randint(n, (len(USERS) * n_beams,), generator=rng) for n in SIZES[4]], dim=1)
    tokens = [case.model.begin_token(context).repeat_interleave(n_beams, 0)]
    tokens += [case.model.code_token(level, codes_MS[:, level]) for level in range(3)]
    full_MSD, _ = case.model.decode(torch.cat(tokens, dim=1), attends)
    past = None
    for level, token in enumerate(tokens):
        h_M1D, past = case.model.decode(token, attends, past)
        torch.testing.assert_close(h_M1D[:, 0], full_MSD[:, level], **CLOSE)


@model_kinds
def test_what_a_user_gets_does_not_depend_on_the_others(decoder, attention, is_sparse, near, n_levels):
    case = Case(decoder, attention, is_sparse, near, n_levels)
    together = search(case.model, case.context(), case.trie, 8)
    for users in ([0], [1], [2], [3, 1]):
        apart = search(case.model, case.context(users), case.trie, 8)
        assert torch.equal(apart.ids, together.ids[users])
        torch.testing.assert_close(apart.scores, together.scores[users], **CLOSE)


@st.composite
def searched(draw):
    """A case, what beams of some width find, and the score of every ID."""
    decoder, near = draw(st.sampled_from([("cross", "tokens"), ("lazy", "evidence"), ("cross", "some scores")]))
    case = Case(decoder, "causal", True, near, 3, draw(st.integers(0, 5)))
    n_beams = draw(st.integers(1, 60))
    beams = search(case.model, case.context(), case.trie, n_beams)
    return case, n_beams, beams, rank_all(case.model, case.context(), case.trie)


def prefixes(case, n):
    """The distinct prefixes of n codes."""
    return sorted({tuple(codes[:n]) for codes in case.trie.ids_US.tolist()})


@functools.cache
def prefix_scores(decoder, near, seed, user):
    """{prefix: log P} of every prefix of the catalogue for a user of a case of `searched`, each by a full pass in float64."""
    case, scores = Case(decoder, "causal", True, near, 3, seed), {}
    for n in (1, 2, 3):
        here = prefixes(case, n)
        scores |= dict(zip(here, slow_scores(case, user, torch.tensor(here)), strict=True))
    return scores


def slow_search(case, scores, n_beams):
    """The IDs that a beam search finds, best first, and the best score of all prefixes that it dropped."""
    beams, missed = [()], -np.inf
    for n in (1, 2, 3):
        children = sorted((one for one in prefixes(case, n) if one[:-1] in beams), key=lambda one: -scores[one])
        beams, dropped = children[:n_beams], children[n_beams:]
        missed = max([missed, *(scores[one] for one in dropped)])
    return beams, missed


@pytest.mark.parametrize("n_beams", [1, 2, 3, 4, 6, 9, 20, 60])
@pytest.mark.parametrize(("decoder", "near"), [("cross", "tokens"), ("lazy", "evidence"), ("cross", "scores")])
@pytest.mark.parametrize("seed", [0, 1])
def test_beams_of_any_width_are_those_of_a_slow_search(decoder, near, seed, n_beams):
    case = Case(decoder, "causal", True, near, 3, seed)
    beams = search(case.model, case.context(), case.trie, n_beams)
    for user in (0, 2):
        expected, missed = slow_search(case, prefix_scores(decoder, near, seed, user), n_beams)
        is_found = beams.ids[user] >= 0
        assert [tuple(codes) for codes in beams.codes[user][is_found].tolist()] == expected
        assert float(beams.missed_B[user]) == pytest.approx(missed, abs=CLOSE["atol"])


@settings(deadline=None, max_examples=25)
@given(searched())
def test_whatever_the_width_beams_are_legal_distinct_and_best_first(found):
    case, n_beams, beams, exact_BU = found
    assert beams.ids.shape == beams.scores.shape == beams.codes.shape[:2]
    for ids, scores, codes, exact in zip(beams.ids, beams.scores, beams.codes, exact_BU, strict=True):
        is_found = ids >= 0
        assert int(is_found.sum()) <= min(n_beams, case.trie.n_ids)
        assert torch.equal(is_found, scores > -torch.inf)
        assert case.trie.find(codes[is_found].numpy()).tolist() == ids[is_found].tolist()
        assert len(set(ids[is_found].tolist())) == int(is_found.sum())
        assert (scores[1:] <= scores[:-1]).all()
        torch.testing.assert_close(scores[is_found], exact[ids[is_found]], **CLOSE)


@settings(deadline=None, max_examples=25)
@given(searched())
def test_nothing_that_is_missed_has_more_than_it_is_said_to(found):
    case, _, beams, exact_BU = found
    for ids, missed, exact in zip(beams.ids, beams.missed_B, exact_BU, strict=True):
        is_missed = torch.ones_like(exact, dtype=torch.bool).index_fill(0, ids[ids >= 0], value=False)
        assert (exact[is_missed] <= missed + CLOSE["atol"]).all()
        assert bool(missed == -torch.inf) == (int(is_missed.sum()) == 0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_barred_ids_never_come_and_the_others_keep_their_order(seed, fraction):
    case = Case("cross", "causal", False, "evidence", 3)
    is_barred_BU = torch.from_numpy(np.random.default_rng(seed).random((len(USERS), case.trie.n_ids)) < fraction)
    beams = search(case.model, case.context(), case.trie, case.trie.n_ids, barred_BU=is_barred_BU)
    for user, order in enumerate(case.ranked()[0]):
        left = order[~is_barred_BU[user][order]].tolist()
        n_gone = case.trie.n_ids - len(left)
        assert beams.ids[user].tolist() == left + [-1] * n_gone
        assert beams.scores[user].isinf().tolist() == [False] * len(left) + [True] * n_gone


def test_more_beams_than_legal_ids_end_in_minus_one():
    case = Case("cross", "causal", False, "", 2)
    beams = search(case.model, case.context(), case.trie, 500)
    assert beams.ids.shape[1] > case.trie.n_ids, "the lists are as long as what was looked at"
    assert (beams.ids[:, case.trie.n_ids :] == -1).all()
    assert (beams.scores[:, case.trie.n_ids :] == -torch.inf).all()
    assert (beams.ids[:, : case.trie.n_ids].sort(dim=1).values == torch.arange(case.trie.n_ids)).all()


@model_kinds
def test_without_the_trie_the_best_of_all_combinations_come(decoder, attention, is_sparse, near, n_levels):
    case = Case(decoder, attention, is_sparse, near, n_levels)
    everything = Trie(np.array(list(itertools.product(*map(range, SIZES[n_levels])))))
    scores_BU = rank_all(case.model, case.context(), everything)
    beams = search_freely(case.model, case.context(), everything.n_ids)
    torch.testing.assert_close(beams.scores, scores_BU.sort(dim=1, descending=True).values, **CLOSE)
    found = everything.find(beams.codes.flatten(0, 1).numpy()).reshape(len(USERS), -1)
    assert (np.sort(found, axis=1) == np.arange(everything.n_ids)).all()
    assert (beams.ids == -1).all()
    # all that can be said adds up to 1
    np.testing.assert_allclose(beams.scores.exp().sum(1).numpy(), 1, rtol=1e-5)


def test_ids_of_one_code_are_searched_and_ranked_too():
    codes_NS = catalogue(N_ITEMS, (50,))
    model = model_of(SMALL, codes_NS, (50,))
    batcher = batcher_of(histories_of(LENGTHS, N_ITEMS), SMALL, N_ITEMS)
    trie, context = Trie(codes_NS), model.context(asked(batcher, N_ITEMS, list(USERS)))
    beams = search(model, context, trie, 10)
    torch.testing.assert_close(beams.scores, rank_all(model, context, trie).sort(descending=True).values[:, :10], **CLOSE)
