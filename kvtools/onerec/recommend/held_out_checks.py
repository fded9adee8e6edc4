"""What makes held-out interactions easier or harder than they look: leaks, repetitions, and ties in time.

Legend: B held-out interactions, n interactions. Not here: how recommendations are scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.recommend.query import Query


@dataclass(frozen=True)
class HeldOutChecks:
    """Counts among the held-out interactions."""

    n: int
    seen_in_training: int | None  # the model was trained on them; None where it does not tell what it was trained on
    repeats: int  # of an item that the user has had before
    ties: int  # they share their time with an interaction of another part, and the order of rows decides which is held out

    def to_json(self) -> dict[str, Any]:
        """The counts, as an evaluation prints them."""
        return {"seen_in_training": self.seen_in_training, "repeats": self.repeats, "ties": self.ties}

    def warnings(self, name: str) -> Iterator[str]:
        """What makes the figures wrong."""
        if self.seen_in_training:
            yield (
                f"{name}: {self.seen_in_training:,} of {self.n:,} held-out interactions were in what the model was trained on, "
                "which its figures profit from. Train it without them."
            )

    def notes(self, name: str, *, exclude_seen: bool) -> Iterator[str]:
        """What to keep in mind in reading them."""
        if self.repeats and exclude_seen:
            yield (
                f"{name}: {self.repeats:,} of {self.n:,} held-out interactions repeat an earlier item of the user, and count "
                "as missed. Give --keep-seen to have such items recommended."
            )
        if self.ties:
            yield (
                f"{name}: {self.ties:,} of {self.n:,} held-out interactions have the time of one that is not held out with "
                "them; the order of rows decided which is."
            )


def check_held_out(
    histories: Histories, query: Query, hashes: np.ndarray, trained_on: np.ndarray | None, *, has_times: bool
) -> HeldOutChecks:
    """The counts of a query's held-out interactions. hashes: int64 (n,), as pair_hashes gives them. trained_on: int64, sorted,
    those of the training. has_times: whether times decided what is held out."""
    at_B = histories.offsets[query.users] + query.lengths
    users = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    pairs = users * (int(histories.items.max(initial=0)) + 1) + histories.items
    _, first, number = np.unique(pairs, return_index=True, return_inverse=True)
    is_repeat_B = first[number][at_B] < at_B
    n_seen = None if trained_on is None else int((np.isin(hashes[at_B], trained_on) & ~is_repeat_B).sum())
    n_ties = 0
    if has_times:
        is_tie = (histories.times[1:] == histories.times[:-1]) & (users[1:] == users[:-1])
        is_tie &= histories.parts[1:] != histories.parts[:-1]
        n_ties = int((np.append(False, is_tie) | np.append(is_tie, False))[at_B].sum())
    return HeldOutChecks(len(query), n_seen, int(is_repeat_B.sum()), n_ties)
