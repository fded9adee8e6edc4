"""Who is to be recommended something, and the recommendations, as arrays.

Legend: B queries of a chunk, n interactions, k recommendations, U distinct IDs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.model.trie import Trie

CHUNK = 256  # users in one pass: the unit that ranks share, so that results do not depend on how many there are


@dataclass(frozen=True)
class Query:
    """Users of the histories, int64 (B,), and how many of their interactions count, int64 (B,)."""

    users: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def chunks(self) -> Iterator["Query"]:
        """The queries in order, CHUNK at a time."""
        return (self.take(slice(begin, begin + CHUNK)) for begin in range(0, len(self), CHUNK))

    def take(self, index: slice | np.ndarray) -> "Query":
        """Some of the queries: a slice, numbers, or bool (B,)."""
        return Query(self.users[index], self.lengths[index])

    def past(self, histories: Histories) -> tuple[np.ndarray, np.ndarray]:
        """The interactions that count: offsets int64 (B+1,) and items int32."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        index = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - histories.offsets[self.users], self.lengths)
        return offsets, histories.items[index]


def held_out(histories: Histories, part: int) -> tuple[Query, np.ndarray]:
    """A query for every interaction of a part that has one before it, and the held-out items, int32 (B,)."""
    users = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    positions = np.arange(len(users)) - histories.offsets[users]
    wanted = np.flatnonzero((histories.parts == part) & (positions > 0))
    return Query(users[wanted], positions[wanted]), histories.items[wanted]


def seen_ids(row: np.ndarray, item: np.ndarray, n_rows: int, trie: Trie) -> np.ndarray:
    """The IDs all of whose items a user has seen, bool (B, U). row, item: int64 (n,), which user saw what, in any order."""
    row, item = np.divmod(np.unique(row * len(trie.id_of_item) + item), len(trie.id_of_item))
    ids, n_seen = np.unique(row * trie.n_ids + trie.id_of_item[item], return_counts=True)
    is_seen = np.zeros(n_rows * trie.n_ids, bool)
    is_seen[ids[n_seen >= np.diff(trie.bucket)[ids % trie.n_ids]]] = True
    return is_seen.reshape(n_rows, -1)


@dataclass(frozen=True)
class Recommendations:
    """The items of each query, best first."""

    items: np.ndarray  # int32 (B, k), -1 where there are no more
    scores: np.ndarray  # float32 (B, k): log-probabilities, or scores of co-occurrence
    ids: np.ndarray  # int64 (B, k): the items' semantic IDs, by the trie's numbers
    is_proven: np.ndarray  # bool (B,): whether the first items are certain to be the best
    n_legal: int = 0  # beams that are IDs of the catalogue
    n_beams: int = 0

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays, (B, ...) each."""
        return self.items, self.scores, self.ids, self.is_proven

    @classmethod
    def concat(cls, parts: Sequence["Recommendations"]) -> "Recommendations":
        """Those of several queries, one after the other."""
        items, scores, ids, is_proven = map(np.concatenate, zip(*(part.arrays for part in parts), strict=True))
        n_legal, n_beams = (sum(getattr(part, name) for part in parts) for name in ("n_legal", "n_beams"))
        return cls(items, scores, ids, is_proven, n_legal, n_beams)

    def replaced(self, rows: np.ndarray, others: "Recommendations") -> "Recommendations":
        """The same with others in place of some rows, int64 (m,); beams of both are counted."""
        items, scores, ids, is_proven = arrays = [array.copy() for array in self.arrays]
        for array, other in zip(arrays, others.arrays, strict=True):
            array[rows] = other
        n_legal, n_beams = self.n_legal + others.n_legal, self.n_beams + others.n_beams
        return Recommendations(items, scores, ids, is_proven, n_legal, n_beams)
