"""Ranks notice that another died: by its word, or by the silence of its closed connection."""

import queue
import time

import pytest

from kvtools.liveness import KILLED, Liveness


def no_end(dead, code):
    """In the place of the end of this process, which a test survives."""


@pytest.fixture
def ranks():
    """Rank 0 to 2 of one job, all in this process."""
    board = queue.Queue()

    def publish(value):
        board.put(value)
        return value

    root = Liveness(0, 3, publish, no_end)
    meeting = board.get()
    everyone = [root, *(Liveness(rank, 3, lambda _: meeting, no_end) for rank in (1, 2))]
    wait_until(lambda: len(root._peers) == 2)
    return everyone


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def kill(rank):
    """Close its connections without a word, as the system does for a process that was killed."""
    for peer in rank._peers.values():
        peer.shutdown(2)


def test_a_rank_that_ends_in_silence_is_news_on_all_others(ranks):
    kill(ranks[2])
    wait_until(lambda: all(rank.news == (2, KILLED) for rank in ranks[:2]))


def test_the_death_of_rank_0_is_news_on_all_others(ranks):
    kill(ranks[0])
    wait_until(lambda: all(rank.news is not None and rank.news[1] == KILLED for rank in ranks[1:]))


def test_a_rank_says_its_exit_code(ranks):
    ranks[1].end(65)
    wait_until(lambda: all(ranks[i].news == (1, 65) for i in (0, 2)))


def test_ranks_that_leave_as_they_should_are_no_news(ranks):
    ranks[1].end()
    wait_until(lambda: set(ranks[0]._peers) == {2})
    kill(ranks[1])
    ranks[2].end()
    wait_until(lambda: not ranks[0]._peers)
    assert ranks[0].news is None


def test_a_stranger_who_knows_no_token_is_no_rank(ranks):
    board = queue.Queue()

    def publish(value):
        board.put(value)
        return value

    other = Liveness(0, 2, publish, no_end)
    stranger = Liveness(1, 2, lambda _: {**board.get(), "token": "0" * 16}, no_end)
    assert not stranger._peers
    assert not other._peers
