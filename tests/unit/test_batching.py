"""Rows and batches: every interaction is a target once, and sees what it should, by brute force over small histories."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_onerec import FEATURES, SMALL, batcher_of, histories_of, near_of

from kvtools.onerec.interactions.histories import Histories, log2_buckets
from kvtools.onerec.model.batching import Batcher, HistoryRows
from kvtools.onerec.model.lifelong import average, compress

N_ITEMS = 12
POSITIVE = 4  # few, so that histories have more
CONFIG = replace(SMALL, positive=POSITIVE)

lengths = st.lists(st.integers(1, 25), min_size=1, max_size=6)
attentions = st.sampled_from(["causal", "full"])
shorts = st.integers(1, 7)


def everything(histories):
    return np.ones(len(histories.items), bool)


def batcher(histories, **changed):
    return batcher_of(histories, replace(CONFIG, **changed), N_ITEMS)


def seen(tokens, row, place):
    """What the target at a place sees of a pathway: (place, item, slot, features), in order of the places."""
    parts = (tokens.positions[row], tokens.items[row], tokens.slots[row], map(tuple, tokens.features[row].tolist()))
    told = zip(*(x if isinstance(x, map) else x.tolist() for x in parts), strict=True)
    return sorted(token for token in told if token[1] >= 0 and token[0] < place)


def targets(rows, batch):
    """(row, number of the target within it, user, place) of every target."""
    for row, number in (batch.target_positions >= 0).nonzero().tolist():
        yield row, number, int(rows.users[row]), int(batch.target_positions[row, number])


# ── which targets there are ──────────────────────────────────────────────────────────────────────────────────────────────
@settings(deadline=None, max_examples=60)
@given(lengths, attentions, shorts, st.integers(1, 60), st.integers(0, 10**6), st.floats(0.2, 1))
def test_every_chosen_interaction_but_a_users_first_is_a_target_once_an_epoch(lengths, attention, short, size, seed, share):
    histories = histories_of(lengths, N_ITEMS, seed)
    is_target = np.random.default_rng(seed).random(len(histories.items)) < share
    made = batcher(histories, attention=attention, short=short, lifelong=0)
    found = Counter()
    for rows in made.epoch(made.training_rows(is_target), size, "epoch", 0):
        batch = made.batch(rows)
        for row, number, user, place in targets(rows, batch):
            found[user, place] += 1
            assert batch.targets[row, number] == histories.items[histories.offsets[user] + place]
        assert (batch.targets < 0).equal(batch.target_positions < 0)
    expected = [
        (user, place) for user, n in enumerate(lengths) for place in range(1, n) if is_target[histories.offsets[user] + place]
    ]
    assert found == Counter(expected)


@settings(deadline=None, max_examples=30)
@given(lengths, attentions, shorts, st.integers(1, 60))
def test_batches_hold_no_more_targets_than_asked_for_and_four_items_each(lengths, attention, short, size):
    made = batcher(histories_of(lengths, N_ITEMS), attention=attention, short=short, lifelong=0)
    for rows in made.epoch(made.training_rows(everything(made.histories)), size):
        batch = made.batch(rows)
        assert len(rows) == 1 or (batch.targets.numel() <= size and batch.short.items.numel() <= 4 * size)


def test_epochs_differ_and_come_again_by_the_seed():
    histories = histories_of([20, 7, 13, 25, 4, 9] * 5, N_ITEMS)

    def order(seed, *purpose):
        made = Batcher(histories, replace(CONFIG, lifelong=0), seed=seed)
        epoch = made.epoch(made.training_rows(everything(histories)), 40, *purpose)
        return [list(zip(rows.users.tolist(), rows.begins.tolist(), strict=True)) for rows in epoch]

    assert order(0, "epoch", 1) == order(0, "epoch", 1)
    assert order(0, "epoch", 1) != order(0, "epoch", 2)
    assert order(0, "epoch", 1) != order(1, "epoch", 1)
    assert sorted(sum(order(0, "epoch", 1), [])) == sorted(sum(order(1, "epoch", 2), []))


def test_an_epoch_of_nothing_is_no_batch():
    made = batcher(histories_of([1, 1], N_ITEMS))
    assert list(made.epoch(made.training_rows(everything(made.histories)), 40)) == []


@settings(deadline=None, max_examples=30)
@given(lengths, st.integers(1, 9))
def test_in_order_gives_every_row_once(lengths, n_rows):
    made = batcher(histories_of(lengths, N_ITEMS))
    blocks = list(made.by_length(made.next_rows(np.arange(len(lengths))), n_rows))
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(lengths)))
    assert all(0 < len(block) <= n_rows for block in blocks)


# ── what each target sees ────────────────────────────────────────────────────────────────────────────────────────────────
@settings(deadline=None, max_examples=60)
@given(lengths, attentions, shorts, st.integers(0, 10**6))
def test_a_target_sees_the_latest_before_it(lengths, attention, short, seed):
    histories = histories_of(lengths, N_ITEMS, seed)
    made = batcher(histories, attention=attention, short=short, lifelong=0)
    rows = made.training_rows(everything(histories))
    batch = made.batch(rows)
    for row, _, user, place in targets(rows, batch):
        tokens, base = seen(batch.short, row, place), histories.offsets[user]
        n = len(tokens)
        assert n == min(place, short) if attention == "full" else min(place, short) <= n < 2 * short
        assert [token[0] for token in tokens] == list(range(place - n, place))
        for at, item, slot, features in tokens:
            assert item == histories.items[base + at]
            assert features == tuple(histories.features[base + at].tolist())
            assert slot == (place - 1 - at if attention == "full" else at - tokens[0][0])


@settings(deadline=None, max_examples=60)
@given(lengths, attentions, shorts, st.integers(0, 10**6))
def test_a_target_sees_the_latest_positive_ones_before_it(lengths, attention, short, seed):
    histories = histories_of(lengths, N_ITEMS, seed)
    made = batcher(histories, attention=attention, short=short, lifelong=0)
    rows = made.training_rows(everything(histories))
    batch = made.batch(rows)
    for row, _, user, place in targets(rows, batch):
        tokens, base = seen(batch.positive, row, place), histories.offsets[user]
        before = [at for at in range(place) if histories.is_positive[base + at]]
        n = len(tokens)
        assert n == min(len(before), POSITIVE) if attention == "full" else min(len(before), POSITIVE) <= n < POSITIVE + short
        assert [token[0] for token in tokens] == before[len(before) - n :]
        for number, (at, item, slot, features) in enumerate(tokens):
            assert item == histories.items[base + at]
            assert features == tuple(histories.features[base + at].tolist())
            assert slot == (n - 1 - number if attention == "full" else number)


@settings(deadline=None, max_examples=30)
@given(lengths, attentions, shorts, st.integers(0, 10**6))
def test_lifelong_items_stand_for_what_lies_before_the_rows_first_target(lengths, attention, short, seed):
    histories = histories_of(lengths, N_ITEMS, seed)
    made = batcher(histories, attention=attention, short=short, lifelong=6)
    rows = made.training_rows(everything(histories))
    batch = made.batch(rows)
    for row, (user, begin) in enumerate(zip(rows.users, rows.begins, strict=True)):
        # a whole number of shorts, so that the same clusters serve a whole row, and the next epoch
        cut = begin // short * short
        items = [] if batch.lifelong is None else [item for item in batch.lifelong.items[row].tolist() if item >= 0]
        first_shown = begin - short if attention == "full" else cut - short
        if first_shown <= 0:
            assert items == []
            continue
        past = slice(histories.offsets[user], histories.offsets[user] + cut)
        clusters = compress(made._vectors[histories.items[past]], seed=0, key=histories.user_keys[user])
        standing = clusters.representatives[clusters.labels[-6:]]
        assert items == histories.items[past][standing].tolist()
        told = histories.features[past][standing]
        gaps = average(histories.gaps[past], clusters.labels, len(clusters))[clusters.labels[-6:]]
        told[:, list(FEATURES).index("time")] = log2_buckets(gaps)
        assert batch.lifelong.features[row, : len(items)].tolist() == told.tolist()


@pytest.mark.parametrize("attention", ["causal", "full"])
@pytest.mark.parametrize("short", [2, 3, 5])
def test_what_is_not_shown_itself_is_in_the_lifelong_part(attention, short):
    histories = histories_of([25, 7, 1, 12], N_ITEMS)
    made = batcher(histories, attention=attention, short=short, lifelong=100)
    rows = made.training_rows(everything(histories))
    batch = made.batch(rows)
    for row, begin in enumerate(rows.begins):
        first_shown = min(token[0] for token in seen(batch.short, row, begin))
        assert int((batch.lifelong.items[row] >= 0).sum()) >= first_shown


@settings(deadline=None, max_examples=30)
@given(lengths, attentions, st.integers(0, 10**6))
def test_neighbours_of_an_interaction_go_with_its_target(lengths, attention, seed):
    histories = histories_of(lengths, N_ITEMS, seed)
    made = batcher(histories, attention=attention, near=4, lifelong=0)
    rows = made.training_rows(everything(histories))
    batch = made.batch(rows)
    items, similarity = batch.neighbours
    for row, number, user, place in targets(rows, batch):
        at = histories.offsets[user] + place
        assert items[row, number].tolist() == made.neighbours[0][at].tolist()
        assert similarity[row, number].tolist() == made.neighbours[1][at].tolist()
    assert (items[batch.targets < 0] == -1).all()
    assert (similarity[batch.targets < 0] == 0).all()


@settings(deadline=None, max_examples=30)
@given(lengths, attentions, st.integers(0, 10**6))
def test_padding_is_minus_one_everywhere(lengths, attention, seed):
    made = batcher(histories_of(lengths, N_ITEMS, seed), attention=attention)
    batch = made.batch(made.training_rows(everything(made.histories)))
    for tokens in filter(None, (batch.short, batch.positive)):
        is_padding = tokens.items < 0
        assert (tokens.items[is_padding] == -1).all()
        assert (tokens.positions[is_padding] == -1).all()
        assert (tokens.slots[is_padding] == -1).all()
        assert (tokens.features[is_padding] == 0).all()
        assert (tokens.positions[~is_padding] >= 0).all()
        assert (tokens.slots[~is_padding] >= 0).all()


# ── inference ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def cut_short(histories, user, n):
    """The histories of one user who has had n interactions so far."""
    past = slice(histories.offsets[user], histories.offsets[user] + n)
    return Histories(
        histories.user_keys[user : user + 1], np.array([0, n]), histories.items[past], histories.parts[past],
        histories.features[past], histories.gaps[past], histories.is_positive[past], histories.times[past],
    )  # fmt: skip


def shown(batch, row, number):
    """All that a target of a batch is shown."""
    place = int(batch.target_positions[row, number])
    lifelong = None
    if batch.lifelong is not None:
        is_there = batch.lifelong.items[row] >= 0
        lifelong = batch.lifelong.items[row][is_there].tolist(), batch.lifelong.features[row][is_there].tolist()
    return {
        "place": place,
        "slot": int(batch.target_slots[row, number]),
        "short": seen(batch.short, row, place),
        "positive": seen(batch.positive, row, place),
        "lifelong": lifelong if lifelong != ([], []) else None,
    }


def ask_as_trained(histories, attention, short, positive):
    """Ask for every interaction as recgen would, and compare what the model is shown with what training showed."""
    made = batcher(histories, attention=attention, short=short, positive=positive)
    rows = made.training_rows(everything(histories))
    batch = made.batch(rows)
    for row, number, user, place in targets(rows, batch):
        # by the length that counts, and by a history that ends there
        by_length = made.batch(made.next_rows(np.array([user]), np.array([place])))
        other = batcher(cut_short(histories, user, place), attention=attention, short=short, positive=positive)
        by_end = other.batch(other.next_rows(np.array([0])))
        assert shown(by_length, 0, 0) == shown(batch, row, number)
        assert shown(by_end, 0, 0) == shown(batch, row, number)


@settings(deadline=None, max_examples=25)
@given(lengths, attentions, shorts, st.integers(0, 10**6))
def test_what_comes_next_is_asked_as_training_asked(lengths, attention, short, seed):
    ask_as_trained(histories_of(lengths, N_ITEMS, seed), attention, short, positive=100)


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_what_comes_next_is_asked_as_training_asked_of_users_with_more_positive_than_are_taken(attention):
    ask_as_trained(histories_of([30], N_ITEMS), attention, 3, POSITIVE)


def test_at_inference_there_is_no_target_to_learn():
    made = batcher(histories_of([5, 3], N_ITEMS), near=2)
    near = near_of((2, 5), N_ITEMS)
    batch = made.batch(made.next_rows(np.arange(2)), near)
    assert batch.targets.tolist() == [[-1], [-1]]
    assert batch.target_positions.tolist() == [[5], [3]]
    # as many neighbours as the architecture takes
    assert batch.neighbours[0].tolist() == near[0][:, None, :2].tolist()
    assert batch.neighbours[1].tolist() == near[1][:, None, :2].tolist()


def test_rows_before_the_end_do_not_see_what_lies_after():
    made = batcher(histories_of([9], N_ITEMS))
    batch = made.batch(HistoryRows(np.array([0]), np.array([4]), np.array([5])))
    assert int(batch.short.positions.max()) == 3
    assert int(batch.positive.positions.max()) <= 3


def test_users_keep_what_is_known_of_them():
    made = batcher(histories_of([5, 3, 8], N_ITEMS))
    batch = made.batch(made.next_rows(np.array([2, 0])))
    assert batch.static.tolist() == made.static[[2, 0]].tolist()
