"""Items that go together: Swing similarity from clicks, and pairs of items chosen by it.

Swing (Yang et al. 2020, "Large Scale Product Graph Construction for Recommendation in E-commerce", arXiv 2010.05525): two
items are similar where many pairs of users clicked both, and the more so the fewer other items these two users share.

Legend: U users, I items, P pairs of users, n clicks. Costs as many steps as there are pairs of users for each item, and for
each pair of users that shares c items c^2 more; so a few items that everybody clicked decide it (`cap`). 98,114 clicks of
ML-100k took 3 s and 0.7 GiB, 149,961 of Amazon Beauty 0.2 s, on one core. Not here: what is a click, and which are
for training.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import sparse

from kvtools.chance import rng_for

_BLOCK = 1 << 22  # entries of an intermediate sparse matrix; a block costs some 200 MiB


def clicks(users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> sparse.csr_array:
    """float64 (U, I): 1 where that user clicked that item, once or more often. users, items: int (n,)."""
    matrix = sparse.coo_array((np.ones(len(users)), (users, items)), shape=(n_users, n_items)).tocsr()
    matrix.data[:] = 1
    return matrix


def cap(
    users: np.ndarray, items: np.ndarray, keys: Sequence[str], *, max_users: int, max_items: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bool (n,): the clicks that are left when each user keeps the latest max_items, and then each item a sample of max_users;
    and the numbers of the users and of the items that lost some, int64.

    users, items: int (n,), the clicks of a user in time order. keys: I names; the sample depends on the name of the item
    and the seed alone, so that other items do not change it.
    """
    users_per = np.bincount(users)
    ends = np.cumsum(users_per)
    keep = ends[users] - np.arange(len(users)) <= max_items
    kept = np.flatnonzero(keep)
    per_item = np.bincount(items[kept], minlength=len(keys))
    crowded = np.flatnonzero(per_item > max_users)
    by_item = kept[np.argsort(items[kept], kind="stable")]
    begins = np.cumsum(per_item) - per_item
    for item in crowded.tolist():
        mine = by_item[begins[item] : begins[item] + per_item[item]]
        chosen = rng_for(seed, "users of", keys[item]).permutation(len(mine))[:max_users]
        keep[mine] = False
        keep[mine[chosen]] = True
    return keep, np.flatnonzero(users_per > max_items), crowded


def swing(clicks_UI: sparse.csr_array, *, alpha: float, is_weighted: bool = False) -> sparse.csr_array:
    """float64 (I, I), symmetric, diagonal 0: over all pairs of users who clicked both i and j, the sum of
    w_u w_v / (alpha + how many items both clicked).

    clicks_UI: 0 or 1. is_weighted: w_u = 1 / sqrt(how many items u clicked); else 1. Each pair of users counts once, where
    the paper counts (u, v) and (v, u): half its score. Added in an order that depends on the clicks alone. Memory O(pairs
    of items that two users share).
    """
    n_users, n_items = clicks_UI.shape
    clicks_IU = clicks_UI.T.tocsr()
    weight_U = 1 / np.sqrt(np.maximum(1, clicks_UI.sum(axis=1))) if is_weighted else np.ones(n_users)
    similar_II = sparse.csr_array((n_items, n_items))
    cost_U = clicks_UI @ clicks_IU.sum(axis=1)  # entries of a user's row of overlaps, at most
    for begin, end in _blocks(cost_U):
        shared_PU = (clicks_UI[begin:end] @ clicks_IU).tocoo()
        # one common item makes no pair of items
        is_pair = (shared_PU.col > shared_PU.row + begin) & (shared_PU.data >= 2)
        u, v, shared_P = shared_PU.row[is_pair] + begin, shared_PU.col[is_pair], shared_PU.data[is_pair]
        score_P = weight_U[u] * weight_U[v] / (alpha + shared_P)
        for first, last in _blocks(shared_P):
            both_PI = clicks_UI[u[first:last]].multiply(clicks_UI[v[first:last]]).tocsr()
            similar_II = similar_II + both_PI.T @ (sparse.diags_array(score_P[first:last]) @ both_PI)
    similar_II = sparse.csr_array(similar_II - sparse.diags_array(similar_II.diagonal()))
    similar_II.eliminate_zeros()
    similar_II.sort_indices()
    return similar_II


def neighbours(similar_II: sparse.csr_array, top: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 (n, 2): each item with the `top` items most similar to it, best first; and float32 (n,), the similarity. Ties go to
    the lower number, and are compared in float32, so that rounding in the sums does not order equals."""
    pairs = similar_II.tocoo()
    scores = pairs.data.astype(np.float32)
    order = np.lexsort((pairs.col, -scores, pairs.row))
    rows = pairs.row[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    order = order[rank < top]
    return np.stack([pairs.row[order], pairs.col[order]], axis=1).astype(np.int32), scores[order]


def targets(offsets: np.ndarray, items: np.ndarray, similar_II: sparse.csr_array, latest: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 (n, 2): each click's item with the most similar one among the `latest` clicks of the same user before it, each such
    pair once; and float32 (n,), the similarity. Clicks similar to none before them make no pair; ties go to the later click.

    offsets: int64 (U+1,) into items, int32 (clicks,), in time order. Costs `latest` look-ups a click.
    """
    position = np.arange(len(items)) - np.repeat(offsets[:-1], np.diff(offsets))
    best, source = np.zeros(len(items), np.float32), np.zeros(len(items), np.int32)
    for lag in range(1, min(latest, int(position.max(initial=0))) + 1):
        here = np.flatnonzero(position >= lag)
        before = items[here - lag]
        score = np.asarray(similar_II[items[here], before], np.float32)
        better = score > best[here]
        best[here[better]], source[here[better]] = score[better], before[better]
    is_pair = best > 0
    pairs, first = np.unique(np.stack([items[is_pair], source[is_pair]], axis=1), axis=0, return_index=True)
    return pairs.astype(np.int32), best[is_pair][first]


def union(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """int32 (n, 2) and float32 (n,): pairs and scores of several methods, each pair once, by first item, then best first."""
    pairs, first = np.unique(np.concatenate([pairs for pairs, _ in parts]), axis=0, return_index=True)
    scores = np.concatenate([scores for _, scores in parts])[first]
    order = np.lexsort((pairs[:, 1], -scores, pairs[:, 0]))
    return pairs[order], scores[order]


def _blocks(costs: np.ndarray) -> list[tuple[int, int]]:
    """Consecutive ranges, none empty, whose costs add up to about one block."""
    block = np.cumsum(costs) // _BLOCK
    cuts = [*np.flatnonzero(np.diff(block, prepend=-1)).tolist(), len(costs)]
    return list(pairwise(cuts))
