"""Embeddings that a training begins with: they tell what the counts tell, and codes carry what their items have in common."""

import numpy as np
import pytest
import torch
from small_onerec import SMALL, catalogue, model_of

from kvtools.onerec.recommend.cooccurrence import Settings, fit, popularity
from kvtools.onerec.recommend.item_counts import ItemCounts
from kvtools.onerec.run import warm_start
from kvtools.world import World

N_ITEMS, SIZES = 30, (4, 3, 5)


def counts_of(n_items=N_ITEMS, n_groups=3, n_unknown=2):
    """Users who stay within one of a few groups of items; the last items have no user."""
    rng = np.random.default_rng(0)
    n_known = n_items - n_unknown
    histories = [rng.choice(np.arange(group, n_known, n_groups), 5) for group in rng.integers(0, n_groups, 40)]
    offsets, items = np.arange(0, 201, 5), np.concatenate(histories).astype(np.int32)
    return ItemCounts(popularity(items, n_items), np.zeros(n_items), fit(offsets, items, n_items, Settings()))


@pytest.mark.parametrize(("dense", "most"), [(0, 1 << 16), (512, 1 << 16), (512, 20)])
def test_items_that_people_take_together_are_near(dense, most, monkeypatch):
    monkeypatch.setattr(warm_start, "_DENSE", dense)
    monkeypatch.setattr(warm_start, "_MOST", most)
    vectors_ID = warm_start.item_vectors(counts_of(), 8, seed=0)
    unit_ID = vectors_ID[:28] / np.linalg.norm(vectors_ID[:28], axis=1, keepdims=True)
    cosine_II = unit_ID @ unit_ID.T
    together_II = np.equal.outer(np.arange(28) % 3, np.arange(28) % 3)
    assert cosine_II[together_II].mean() > cosine_II[~together_II].mean() + 0.3
    assert not vectors_ID[28:].any()
    assert np.square(vectors_ID[:28]).sum(1).mean() == pytest.approx(1.5**2)
    # of another seed turned, and no more than that
    other_ID = warm_start.item_vectors(counts_of(), 8, seed=1)
    np.testing.assert_allclose(other_ID @ other_ID.T, vectors_ID @ vectors_ID.T, atol=1e-4)
    assert np.abs(other_ID - vectors_ID).max() > 0.1


def test_codes_and_table_add_up_to_the_vectors_and_unknown_items_are_as_their_codes():
    codes_NS = catalogue(N_ITEMS, SIZES)
    model = model_of(SMALL, codes_NS, SIZES)
    warm_start.begin_with_counts(model, counts_of(), World(), seed=3)
    vectors_ID = warm_start.item_vectors(counts_of(), SMALL.width, seed=3)
    with torch.no_grad():
        found_ID = model.item_vectors(torch.arange(N_ITEMS)).numpy()
    np.testing.assert_allclose(found_ID[:28], vectors_ID[:28], atol=1e-5)
    first = codes_NS[:28, 0]
    for code in np.unique(first):
        np.testing.assert_allclose(model.codes[0].weight[code].detach(), vectors_ID[:28][first == code].mean(0), atol=1e-5)


def test_scores_begin_with_popularity_and_without_counts_nothing_changes():
    config = SMALL.__class__(**{**SMALL.to_json(), "item_scores": 11})
    model, counts = model_of(config, catalogue(N_ITEMS, SIZES), SIZES), counts_of()
    model.item_scores.score_popular(counts.popularity)
    warm_start.begin_with_counts(model, counts, World(), seed=0)
    scored = model.item_scores.scored.numpy()
    least = counts.popularity[scored].argmin()
    assert (model.item_scores.bias >= model.item_scores.bias[least]).all()
    assert model.item_scores.rest.item() < model.item_scores.bias[least].item()
    empty = ItemCounts(
        np.zeros(N_ITEMS, np.int64), np.zeros(N_ITEMS), fit(np.zeros(1, np.int64), np.zeros(0, np.int32), N_ITEMS, Settings())
    )
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    warm_start.begin_with_counts(model, empty, World(), seed=0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_fewer_items_than_dimensions_have_vectors_too():
    assert warm_start.item_vectors(counts_of(7), 16, seed=0).shape == (7, 16)
