"""Co-occurrence: the items that were close to a user's latest ones in other users' histories.

The baseline to beat (spec section 7.2, last row): on Amazon Beauty it is ahead of most published models. It also proposes
neighbours, which `leave_own_out` gives for every interaction of the training data as if that user had not been counted.

Legend: U users, I items, n interactions, B histories, D pairs of a user and an item of theirs. Histories are ragged:
offsets int64 (B+1,) into items int32 (n,), each in time order. A position is an index into items. The invariant to keep: a
user taken out of the counts leaves what counting without them gives, bit for bit. So weights are multiples of 2^-30, whose
sums in float64 are exact in any order as long as they stay below 2^23.

An item that follows itself counts as any other. An item of score 0 is no candidate: where there are too few candidates,
lists end early. Memory, beside the counts, is that of a block. Not here: which interactions are for training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import sparse

_BLOCK = 1 << 22  # scores held at a time; each costs some 60 bytes on the way
_GRID = 2.0**30


@dataclass(frozen=True)
class Settings:
    """What is counted, and how it is summed; the defaults are the spec's. They were chosen on the test part of Beauty, so that
    results there flatter a little."""

    window: int = 3  # two items of a user count up to this many positions apart, with weight 1 / positions
    reverse: float = 0.5  # factor where the candidate came before the item of the history, not after
    decay: float = 0.7  # factor for each step back in the history
    n_last: int = 10  # how many of the latest items of a history count
    smoothing: float = 10.0  # scores are divided by sqrt(popularity + smoothing)


def popularity(items: np.ndarray, n_items: int) -> np.ndarray:
    """int64 (I,): how many interactions each item has. items: int (n,)."""
    return np.bincount(items, minlength=n_items).astype(np.int64)


def counts(offsets: np.ndarray, items: np.ndarray, n_items: int, settings: Settings) -> sparse.csr_array:
    """float64 (I, I): the summed weight of item j (column) after item i (row), over all users."""
    source, target, weight = _pairs(offsets, settings)
    return _summed(items[source], items[target], weight, (n_items, n_items))


@dataclass(frozen=True)
class Cooccurrence:
    """Counts ready for queries. `fit` makes one."""

    damped_II: sparse.csr_array  # float64 (I, I): counts over sqrt(popularity of the column + smoothing)
    settings: Settings

    def nearest(self, offsets: np.ndarray, items: np.ndarray, n: int, *, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        """int32 (B, n): the items of the highest scores, best first, -1 where there are no more; and float32 (B, n): the
        scores, 0 there. Ties in float32 go to the lower item.

        exclude_seen: leave out all items of the history. 22,363 histories of Beauty took 1 s on one core.
        """
        best, best_scores = np.full((len(offsets) - 1, n), -1, np.int32), np.zeros((len(offsets) - 1, n), np.float32)
        ends, lengths = offsets[1:], np.diff(offsets)
        per_item = np.diff(self.damped_II.indptr)
        for rows in _blocks(np.arange(len(ends)), ends, lengths, items, per_item, self.settings):
            scores_BI = self._scores(ends[rows], lengths[rows], items)
            if exclude_seen:
                _zero_seen(scores_BI, ends[rows], lengths[rows], items)
            best[rows], best_scores[rows] = _best(scores_BI, n)
        return best, best_scores

    def _scores(self, ends: np.ndarray, lengths: np.ndarray, items: np.ndarray) -> sparse.csr_array:
        row, position, weight = _latest(ends, lengths, self.settings)
        weights_BI = _summed(row, items[position], weight, (len(ends), self.damped_II.shape[0]))
        return (weights_BI @ self.damped_II).astype(np.float32)


def fit(offsets: np.ndarray, items: np.ndarray, n_items: int, settings: Settings) -> Cooccurrence:
    """The counts of these users, divided by the popularity that the items have with them.

    offsets: int64 (U+1,) into items, int32 (n,), user after user.
    """
    counts_II = counts(offsets, items, n_items, settings)
    return Cooccurrence(_damped(counts_II, popularity(items, n_items)[counts_II.indices], settings), settings)


def leave_own_out(
    offsets: np.ndarray,
    items: np.ndarray,
    n_items: int,
    n: int,
    settings: Settings,
    *,
    exclude_seen: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """For each interaction the neighbours of the user's history up to there, as `nearest` gives them when all of this user's
    interactions are left out of counts and popularity: int32 (n_interactions, n), float32 (n_interactions, n).

    A user's first interaction has none. exclude_seen: leave out the user's earlier items, but not the later ones. n = 20 took
    4 s on one core for 149,961 interactions of Beauty, 7 s for 98,114 of ML-100k.
    """
    users, positions = _users_and_positions(offsets)
    owned, own_D, had_D = np.unique(users * n_items + items, return_inverse=True, return_counts=True)
    counts_II = counts(offsets, items, n_items, settings)
    popularity_I = popularity(items, n_items)
    source, target, weight = _pairs(offsets, settings)
    mine_DI = _summed(own_D[source], items[target], weight, (len(owned), n_items))

    best, best_scores = np.full((len(items), n), -1, np.int32), np.zeros((len(items), n), np.float32)
    later = np.flatnonzero(positions > 0)
    for ends in _blocks(later, later, positions[later], items, np.diff(counts_II.indptr), settings):
        row, position, weight = _latest(ends, positions[ends], settings)
        used, column = np.unique(own_D[position], return_inverse=True)
        user, item = np.divmod(owned[used], n_items)
        others_DI = sparse.csr_array(counts_II[item] - mine_DI[used])
        # how often the user of a row had the item of a column: owned is sorted, and one search finds it
        wanted = np.repeat(user, np.diff(others_DI.indptr)) * n_items + others_DI.indices
        begin, end = np.searchsorted(owned, [user[0] * n_items, (user[-1] + 1) * n_items]) if len(user) else (0, 0)
        at = begin + np.searchsorted(owned[begin : end - 1], wanted)
        own = np.where(owned[at] == wanted, had_D[at], 0)
        damped_DI = _damped(others_DI, popularity_I[others_DI.indices] - own, settings)
        scores_BI = (_summed(row, column, weight, (len(ends), len(used))) @ damped_DI).astype(np.float32)
        if exclude_seen:
            _zero_seen(scores_BI, ends, positions[ends], items)
        best[ends], best_scores[ends] = _best(scores_BI, n)
    return best, best_scores


def top_popular(
    popularity_I: np.ndarray, offsets: np.ndarray, items: np.ndarray, n: int, *, exclude_seen: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The n most popular items for each history, as `Cooccurrence.nearest` gives them; without the items of the history where
    exclude_seen. popularity_I: int64. Ties go to the lower item; items of popularity 0 are no candidates."""
    order = np.argsort(-popularity_I, kind="stable")[: np.count_nonzero(popularity_I)]
    rank_I = np.full(len(popularity_I), len(order))
    rank_I[order] = np.arange(len(order))
    n_rows, span = len(offsets) - 1, len(popularity_I) + n + 1
    row, position = _whole(offsets[1:], np.diff(offsets)) if exclude_seen else (np.empty(0, np.int64), np.empty(0, np.int64))
    row, rank = np.divmod(np.unique(row * span + rank_I[items[position]]), span)
    begins = np.searchsorted(row, np.arange(n_rows))
    # of the ranks a user has not seen, the j-th is j and one more for each seen rank that has at most j unseen ones before it
    unseen_before = rank - (np.arange(len(row)) - begins[row])
    wanted = np.arange(n_rows)[:, None] * span + np.arange(n)
    rank_BN = np.arange(n) + np.searchsorted(row * span + unseen_before, wanted, side="right") - begins[:, None]
    is_there = rank_BN < len(order)
    ids = np.full((n_rows, n), -1, np.int32)
    ids[is_there] = order[rank_BN[is_there]]
    return ids, np.where(is_there, popularity_I[ids], 0).astype(np.float32)


def _users_and_positions(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 (n,) each: the user of each interaction, and its number among theirs, from 0."""
    lengths = np.diff(offsets)
    return np.repeat(np.arange(len(lengths)), lengths), np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)


def _pairs(offsets: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the source and of the target of each pair that counts, and its weight."""
    positions = _users_and_positions(offsets)[1]
    source, target, weight = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    for gap in range(1, min(settings.window, int(positions.max(initial=0))) + 1):
        later = np.flatnonzero(positions >= gap)
        source += [later - gap, later]
        target += [later, later - gap]
        weight += [np.full(len(later), np.round(_GRID * factor / gap) / _GRID) for factor in (1.0, settings.reverse)]
    return np.concatenate(source), np.concatenate(target), np.concatenate(weight)


def _latest(ends: np.ndarray, lengths: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each history that ends before position `ends` and goes back `lengths` items: its number, the positions of its last
    n_last, latest first, and their weights."""
    row, back = np.nonzero(np.arange(settings.n_last) < lengths[:, None])
    return row, ends[row] - 1 - back, settings.decay**back


def _whole(ends: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each history, its number and all its positions."""
    row = np.repeat(np.arange(len(ends)), lengths)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(lengths) - ends, lengths)


def _summed(row: np.ndarray, column: np.ndarray, weight: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """The matrix of these entries, columns in order, so that products sum in the same order whichever users are counted."""
    return sparse.coo_array((weight, (row, column)), shape=shape).tocsr()


def _damped(counts_DI: sparse.csr_array, popularity: np.ndarray, settings: Settings) -> sparse.csr_array:
    """popularity: of the column of each stored count."""
    damped = counts_DI.data / np.sqrt(popularity + settings.smoothing)
    return sparse.csr_array((damped, counts_DI.indices, counts_DI.indptr), shape=counts_DI.shape)


def _zero_seen(scores_BI: sparse.csr_array, ends: np.ndarray, lengths: np.ndarray, items: np.ndarray) -> None:
    """Set the scores of the histories' items to 0."""
    is_seen = np.zeros(scores_BI.shape, bool)
    row, position = _whole(ends, lengths)
    is_seen[row, items[position]] = True
    rows = np.repeat(np.arange(len(ends)), np.diff(scores_BI.indptr))
    scores_BI.data[is_seen[rows, scores_BI.indices]] = 0


def _best(scores_BI: sparse.csr_array, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n highest scores above 0 of each row, as `nearest` gives them. float32."""
    # the bits of a score of 0 or more order as an integer, and keys are distinct: no two machines disagree on ties
    keys = scores_BI.data.view(np.int32).astype(np.int64) << 32 | (0xFFFFFFFF - scores_BI.indices.astype(np.int64))
    keys[scores_BI.data <= 0] = 0
    lengths = np.diff(scores_BI.indptr)
    best_BN = np.zeros((len(lengths), n), np.int64)
    size = np.frexp(lengths)[1]  # rows less than twice as long as one another are padded to one length
    for rows in (np.flatnonzero(size == one) for one in np.unique(size[lengths > 0])):
        width = int(lengths[rows].max())
        padded = np.zeros((len(rows), width), np.int64)
        within = np.arange(width) < lengths[rows, None]
        padded[within] = keys[(scores_BI.indptr[rows, None] + np.arange(width))[within]]
        if width > n:
            padded = np.partition(padded, width - n, axis=1)[:, width - n :]
        padded.sort(axis=1)
        best_BN[rows, : padded.shape[1]] = padded[:, ::-1]
    ids = np.where(best_BN > 0, 0xFFFFFFFF - (best_BN & 0xFFFFFFFF), -1).astype(np.int32)
    return ids, (best_BN >> 32).astype(np.int32).view(np.float32)


def _blocks(
    rows: np.ndarray, ends: np.ndarray, lengths: np.ndarray, items: np.ndarray, per_item: np.ndarray, settings: Settings
) -> Iterator[np.ndarray]:
    """The rows, in order, in blocks whose scores fill about one block. per_item: how many items co-occur with each."""
    total = np.concatenate([[0], np.cumsum(per_item[items], dtype=np.int64)])
    n_scores = total[ends] - total[ends - np.minimum(lengths, settings.n_last)]
    # the mask of seen items takes a byte an item, 1/16 of what a score costs
    return _cut(rows, np.minimum(n_scores, len(per_item)) + len(per_item) // 16 + lengths)


def _cut(rows: np.ndarray, costs: np.ndarray) -> Iterator[np.ndarray]:
    blocks = np.cumsum(costs) // _BLOCK
    cuts = [*np.flatnonzero(np.diff(blocks, prepend=-1)).tolist(), len(rows)]
    return (rows[begin:end] for begin, end in pairwise(cuts))
