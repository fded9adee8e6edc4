"""Whom the policy is asked for in each step: a user of the training part, and how much of the history is shown.

What comes after the cut is the user's future; all of it is of the training part. Prompts depend on the seed and the step alone.

Legend: B prompts, H items of a future, U distinct IDs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kvtools.chance import rng_for
from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.model.batching import Batcher, HistoryRows
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.recommend import query


@dataclass(frozen=True)
class Prompts:
    """The prompts of a step, or some of them."""

    step: int
    users: np.ndarray  # int64 (B,)
    cuts: np.ndarray  # int64 (B,): how many interactions are shown, 1 at least

    def __len__(self) -> int:
        return len(self.users)

    @property
    def rows(self) -> HistoryRows:
        """A row a prompt, whose one target is the item after the cut."""
        return HistoryRows(self.users, self.cuts, self.cuts + 1)

    def take(self, index: np.ndarray) -> "Prompts":
        """The prompts of these numbers, int (B',)."""
        return Prompts(self.step, self.users[index], self.cuts[index])


@dataclass(frozen=True)
class Futures:
    """What users took after their cuts."""

    ids_BH: np.ndarray  # int64: numbers of the trie's IDs, -1 where there is no more
    index_BH: np.ndarray  # int64: into the interactions, 0 there


@dataclass(frozen=True)
class PromptSet:
    """All prompts of a training part. batcher: of the training part alone. n: prompts a step."""

    batcher: Batcher
    n: int
    seed: int

    @property
    def users(self) -> np.ndarray:
        """Users with something before and after a cut, int64 (U',)."""
        return np.flatnonzero(np.diff(self.batcher.histories.offsets) >= 2)

    @property
    def n_steps(self) -> int:
        """Steps that take every user once."""
        return max(1, -(-len(self.users) // self.n))

    def from_step(self, step: int) -> Iterator[Prompts]:
        """The prompts of this step, of the next, and so on, without end."""
        while True:
            number, begin = divmod(step, self.n_steps)
            users, cuts = self._pass(number)
            for first in range(begin * self.n, len(users), self.n):
                yield Prompts(step, users[first : first + self.n], cuts[first : first + self.n])
                step += 1

    def _pass(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Every user once, in an order and with a cut of this pass."""
        rng, users = rng_for(self.seed, "prompts", number), self.users
        users = users[rng.permutation(len(users))]
        lengths = np.diff(self.batcher.histories.offsets)[users]
        return users, 1 + np.floor(rng.random(len(users)) * (lengths - 1)).astype(np.int64)


def futures(histories: Histories, prompts: Prompts, trie: Trie, horizon: int) -> Futures:
    """The first `horizon` interactions after each cut."""
    position_BH = prompts.cuts[:, None] + np.arange(horizon)
    is_there = position_BH < np.diff(histories.offsets)[prompts.users][:, None]
    index_BH = np.where(is_there, histories.offsets[prompts.users][:, None] + position_BH, 0)
    return Futures(np.where(is_there, trie.id_of_item[histories.items[index_BH]], -1), index_BH)


def seen_ids(histories: Histories, prompts: Prompts, trie: Trie) -> np.ndarray:
    """IDs all of whose items are in the shown part of a history, bool (B, U)."""
    rows = np.repeat(np.arange(len(prompts)), prompts.cuts)
    starts = np.repeat(histories.offsets[prompts.users] - np.cumsum(prompts.cuts) + prompts.cuts, prompts.cuts)
    items = histories.items[starts + np.arange(len(rows))]
    return query.seen_ids(rows, items, len(prompts), trie)
