"""Scores of items inside the choice of codes: what they add up to, whom they bound, and what a model without them is."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from small_onerec import EXPERTS, SMALL, asked, batcher_of, catalogue, histories_of, model_of

from kvtools.onerec.model import item_scores
from kvtools.onerec.model.beam import n_users_at_once, rank_all, search
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.run import objectives
from kvtools.onerec.run.objectives import NextItemTask, ValidationSet

N_ITEMS, SIZES, LENGTHS = 30, (4, 3, 5), [5, 1, 14, 9]


def model_with(n_scored, seed=0, **changed):
    codes_NS = catalogue(N_ITEMS, SIZES, seed)
    model = model_of(replace(SMALL, item_scores=n_scored, **changed), codes_NS, SIZES, seed)
    if n_scored:
        model.item_scores.score_popular(np.random.default_rng(seed).permutation(N_ITEMS))
    return model, batcher_of(histories_of(LENGTHS, N_ITEMS, seed), model.config, N_ITEMS, seed)


def trained(n_scored, popularity_I, codes_NS, targets, n_steps=150):
    """Losses in nats a target, before and after some steps that teach the same targets for the same histories."""
    torch.manual_seed(0)
    model = model_of(replace(SMALL, item_scores=n_scored), codes_NS, SIZES)
    model.item_scores.score_popular(popularity_I)
    histories = histories_of([2] * len(targets), N_ITEMS)
    histories.items[1::2] = targets
    batcher = batcher_of(histories, model.config, N_ITEMS)
    batch = batcher.batch(batcher.training_rows(np.ones(len(histories.items), bool)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(n_steps):
        total, _ = model.loss(batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item() / len(targets))
    return losses[0], losses[-1]


@torch.no_grad()
def test_without_logits_of_codes_the_levels_multiply_to_the_softmax_over_items():
    model, batcher = model_with(N_ITEMS)
    for norm in model.head_norms:
        norm.weight.zero_()
    context = model.context(asked(batcher, N_ITEMS, [0, 1, 2, 3]))
    first_BD = model.decode(model.begin_token(context), context.attentions())[0][:, 0]
    part, trie = model.item_scores, Trie(model.codes_IS.numpy())
    scores_BN = part.norm(first_BD) @ model.item_vectors(part.scored).T + part.bias
    p_BI = torch.zeros(4, N_ITEMS).index_copy_(1, part.scored, scores_BN.softmax(1))
    expected_BU = torch.zeros(4, trie.n_ids).index_add_(1, torch.from_numpy(trie.id_of_item), p_BI)
    found_BU = rank_all(model, context, trie).exp()
    # a level has a hundred thousandth for what no item has, and nothing is far below that here
    torch.testing.assert_close(found_BU, expected_BU, rtol=1e-2, atol=2e-5)


@pytest.mark.parametrize("block", [1, 7, 1024])
@pytest.mark.parametrize("n_scored", [1, 9, N_ITEMS])
@torch.no_grad()
def test_training_knows_the_shares_that_search_does_however_blocks_are_cut(n_scored, block, monkeypatch):
    monkeypatch.setattr(item_scores, "_BLOCK", block)
    model, batcher = model_with(n_scored)
    batch = batcher.batch(batcher.training_rows(np.ones(sum(LENGTHS), bool)))
    is_target, codes_MS = batch.targets.flatten() >= 0, model.codes_IS[batch.targets.flatten().clamp(min=0)]
    context = model.context(batch)
    first_MD = model.decode(model.begin_token(context), context.attentions())[0][:, 0]
    catalogue = model.item_scores.catalogue(model.codes_IS)
    vectors_ND = model.item_vectors(catalogue.items_N)
    shares = model.item_scores.shares(catalogue, first_MD, vectors_ND)
    found = model.item_scores.of_targets(catalogue, first_MD[is_target], vectors_ND, codes_MS[is_target])
    for level in range(len(SIZES)):
        torch.testing.assert_close(found[level], shares.logits(level)[is_target], rtol=0, atol=1e-5)
        shares = shares.follow(level, codes_MS[:, level])


@torch.no_grad()
def test_codes_that_no_item_has_keep_a_small_share_and_lead_nowhere():
    model, batcher = model_with(N_ITEMS)
    context = model.context(asked(batcher, N_ITEMS, [0]))
    first_BD = model.decode(model.begin_token(context), context.attentions())[0][:, 0]
    shares = model.evidence(context, first_BD).shares
    known = {tuple(codes) for codes in model.codes_IS.tolist()}
    prefixes = {codes[:2] for codes in known}
    a, b = next((a, b) for a in range(SIZES[0]) for b in range(SIZES[1]) if (a, b) not in prefixes)
    floor = torch.full((), 1e-6).log()
    assert shares.logits(0).exp().sum() == pytest.approx(1, abs=1e-4)
    assert shares.follow(0, torch.tensor([a])).logits(1)[0, b] == floor
    nowhere = shares.follow(0, torch.tensor([a])).follow(1, torch.tensor([b]))
    assert (nowhere.logits(2) == floor).all()
    assert (nowhere.prefix_M == -1).all()


def test_the_most_popular_items_are_scored_and_the_first_of_equal_ones():
    model, _ = model_with(3)
    model.item_scores.score_popular(np.array([5, 9, 5, 7, 5] + [0] * (N_ITEMS - 5)))
    assert model.item_scores.scored.tolist() == [0, 1, 3]
    with torch.no_grad():
        assert model.item_scores.catalogue(model.codes_IS).items_N.sort().values.tolist() == [0, 1, 3]


def test_a_bound_on_the_scored_items_costs_little_where_they_are_those_that_come():
    """What the bound costs: a tenth of the items scored learn nearly as well as all where they are the popular ones, and items
    beyond them are still learnt, by their codes."""
    codes_NS, rng = catalogue(N_ITEMS, SIZES), np.random.default_rng(0)
    targets = np.where(rng.random(80) < 0.8, rng.integers(0, 6, 80), rng.integers(6, N_ITEMS, 80)).astype(np.int32)
    popularity_I = np.bincount(targets, minlength=N_ITEMS)
    (_, everything), (begin, bounded) = (trained(n, popularity_I, codes_NS, targets) for n in (N_ITEMS, 6))
    assert bounded < 0.6 * begin
    assert bounded < everything + 0.35


def test_validation_keeps_the_gain_with_which_it_finds_most():
    model, batcher = model_with(N_ITEMS)
    users = np.arange(4)
    rows, trie = batcher.next_rows(users), Trie(model.codes_IS.numpy())
    held = ValidationSet(batcher, rows, np.array([3, 8, 20, 11], np.int32), trie)
    task = NextItemTask(model, batcher, rows, validation=held, n_targets=8, smoothing=0.0, device="cpu")
    tried = {}
    for gain in (0.8, 1.0, 1.25):
        model.item_scores.gain.fill_(gain)
        tried[gain] = task._figures(held)["score"]
    model.item_scores.gain.fill_(1.0)
    figures = task.validate()
    assert figures["gain"] == pytest.approx(float(model.item_scores.gain))
    assert figures["score"] == max(tried.values()) == tried[round(figures["gain"], 6)]


def test_a_large_catalogue_is_searched_for_few_users_at_a_time(monkeypatch):
    model, batcher = model_with(N_ITEMS)
    rows, trie, asked = batcher.next_rows(np.arange(4)), Trie(model.codes_IS.numpy()), []
    targets = np.array([batcher.histories.items[0], 8, 20, 11], np.int32)
    held = ValidationSet(batcher, rows, targets, trie)
    task = NextItemTask(model, batcher, rows, validation=held, n_targets=8, smoothing=0.0, device="cpu")

    def watched(model, context, *rest, **named):
        asked.append(len(context.mask_BTC))
        return search(model, context, *rest, **named)

    monkeypatch.setattr(objectives, "search", watched)
    together = task._figures(held)
    monkeypatch.setattr(objectives, "n_users_at_once", partial(n_users_at_once, n_scores=max(20 * max(SIZES), trie.n_ids)))
    assert task._figures(held) == together
    assert asked == [4, 1, 1, 1, 1]
    assert n_users_at_once(trie, 1, 1, n_scores=3 * trie.n_ids) == 3


def test_validation_counts_the_targets_that_users_have_had():
    batcher = model_with(N_ITEMS)[1]
    users = [batcher.histories.items[begin:end].tolist() for begin, end in pairwise(batcher.histories.offsets.tolist())]
    new = [next(item for item in range(N_ITEMS) if item not in items) for items in users]
    for targets, n in ((new, 0), ([users[0][0], *new[1:]], 1), ([items[-1] for items in users], 4)):
        held = ValidationSet(batcher, batcher.next_rows(np.arange(4)), np.array(targets, np.int32), None)
        assert held.n_repeats == n


def test_a_model_of_before_has_no_scores_and_says_what_it_said():
    old = {name: value for name, value in replace(SMALL, **EXPERTS).to_json().items() if name != "item_scores"}
    config = type(SMALL)(**old)
    model = model_of(config, catalogue(N_ITEMS, SIZES), SIZES)
    assert config.item_scores == 0
    assert not any(name.startswith("item_scores") for name in model.state_dict())
