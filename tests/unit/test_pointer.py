"""The share of the probability that goes straight to neighbours: how it is chosen. What it does to scores: test_beam.py."""

from dataclasses import replace

import numpy as np
import pytest
from small_onerec import NEAR, SMALL, asked, batcher_of, catalogue, histories_of, model_of

from kvtools.onerec.model.beam import search
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.run.objectives import NextItemTask, ValidationSet

N_ITEMS = 24
SIZES = (4, 3, 5)
USERS = np.arange(4)


@pytest.fixture
def task_with():
    """A function from targets to a task whose validation has them, of a model of random weights; and its neighbours."""
    codes_NS = catalogue(N_ITEMS, SIZES)
    config = replace(SMALL, **NEAR["evidence"])
    model, batcher = model_of(config, codes_NS, SIZES), batcher_of(histories_of([5, 3, 8, 6], N_ITEMS), config, N_ITEMS)
    rows, rng = batcher.next_rows(USERS), np.random.default_rng(0)
    near = np.stack([rng.permutation(N_ITEMS)[: config.near] for _ in USERS]).astype(np.int32)
    neighbours = near, np.tile(np.array([8, 1, 0.5, 0.25], np.float32), (len(USERS), 1))

    def task(targets):
        held = ValidationSet(batcher, rows, np.asarray(targets, np.int32), Trie(codes_NS), neighbours, beam=10)
        return NextItemTask(model, batcher, rows, validation=held, n_targets=8, smoothing=0.0, device="cpu")

    return task, near


def test_targets_that_are_the_nearest_give_neighbours_a_share(task_with):
    task, near = task_with
    assert task(near[:, 0]).choose_near_share() > 0
    assert task(near[:, 0]).model.config.near_share == 0, "choosing changes nothing"


def test_targets_that_are_no_neighbours_give_them_none(task_with):
    task, near = task_with
    others = [next(item for item in range(N_ITEMS) if item not in row) for row in near]
    assert task(others).choose_near_share() == 0


def test_without_a_validation_set_neighbours_have_no_share(task_with):
    model = task_with[0](USERS).model
    batcher = task_with[0](USERS)._batcher
    task = NextItemTask(model, batcher, batcher.next_rows(USERS), validation=None, n_targets=8, smoothing=0.0, device="cpu")
    assert task.choose_near_share() == 0


def test_a_user_without_neighbours_gets_what_the_decoder_says():
    config = replace(SMALL, **NEAR["evidence"])
    codes_NS = catalogue(N_ITEMS, SIZES)
    model, batcher = model_of(config, codes_NS, SIZES), batcher_of(histories_of([5, 3], N_ITEMS), config, N_ITEMS)
    batch = asked(batcher, N_ITEMS, [0, 1])
    empty = replace(batch, neighbours=(batch.neighbours[0] * 0 - 1, batch.neighbours[1] * 0))
    scores = []
    for share in (0.0, 0.6):
        model.config = replace(config, near_share=share)
        scores.append(search(model, model.context(empty), Trie(codes_NS), 12).scores.numpy())
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
