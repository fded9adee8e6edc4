"""Messages that come twice, late or out of order: each sender counts once, and what counts does not depend on the network."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.etree.train.inbox import Inbox, arrivals

SOME = st.lists(st.integers(0, 19), unique=True).map(lambda some: np.array(sorted(some), np.int64))


@settings(max_examples=200, deadline=None)
@given(SOME, SOME, SOME, st.booleans(), st.integers(1, 9), st.integers(0, 3))
def test_each_sender_counts_once_whatever_the_network_does(senders, repeated, stale, is_shuffled, step, seed):
    sender_m, step_m = arrivals(senders, repeated, stale, is_shuffled=is_shuffled, step=step, level=1, seed=seed)
    again = np.intersect1d(senders, repeated)
    assert len(sender_m) == len(senders) + len(again) + len(stale)
    inbox = Inbox(step, 20)
    assert np.array_equal(inbox.take(sender_m, step_m), senders)
    assert (inbox.n_repeated, inbox.n_stale) == (len(again), len(stale))
    # what arrives once more, in whatever pieces, counts no more
    for piece in np.array_split(np.arange(len(sender_m)), 3):
        assert len(inbox.take(sender_m[piece], step_m[piece])) == 0


def test_the_same_seed_shuffles_alike_and_steps_differ():
    everyone, none = np.arange(50), np.empty(0, np.int64)
    told = [
        arrivals(everyone, none, none, is_shuffled=True, step=step, level=1, seed=seed)[0]
        for step, seed in ((4, 0), (4, 0), (5, 0))
    ]
    assert np.array_equal(told[0], told[1])
    assert not np.array_equal(told[0], told[2])
    assert not np.array_equal(told[0], everyone)
