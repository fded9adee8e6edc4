"""Ranking metrics of recommendations: hit rate and NDCG of one held-out item, Pass@k and Recall@k of several.

The protocol of spec sections 5 and 9: all items are ranked, never a sample of negatives, and every user counts once. Ranks
are from 0; -1 is an item that is not in the list. Lists are padded with -1, and the padding is never a hit.

Legend: U users, K items of a list. Several true items of a user are ragged: offsets int64 (U+1,) into truths int (n,). They
are a set: an item that occurs twice is true once, and -1 is an item that no list can hold. Not here: who is evaluated, and
which items may be listed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def distinct(items_UK: np.ndarray) -> np.ndarray:
    """The lists int (U, K) without repetitions and without padding between, in order, -1 at the end. Several semantic IDs of a
    beam may lead to one item, which must count once."""
    n_users, n_items = items_UK.shape
    by_item = np.argsort(items_UK, axis=1, kind="stable")  # so that the first of equals stays first
    ordered = np.take_along_axis(items_UK, by_item, axis=1)
    is_new = np.ones((n_users, n_items), bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    keep = np.empty((n_users, n_items), bool)
    np.put_along_axis(keep, by_item, is_new & (ordered != -1), axis=1)
    closed_up = np.full_like(items_UK, -1)
    user, column = np.nonzero(keep)
    closed_up[user, np.cumsum(keep, axis=1)[user, column] - 1] = items_UK[user, column]
    return closed_up


def rank_of(items_UK: np.ndarray, targets_U: np.ndarray) -> np.ndarray:
    """int64 (U,): the first rank of each user's target, int (U,), in their list, int (U, K), or -1. A target
    of -1 is always missing."""
    is_target = (items_UK == targets_U[:, None]) & (items_UK != -1)
    rank = np.where(is_target, np.arange(items_UK.shape[1]), items_UK.shape[1]).min(axis=1, initial=items_UK.shape[1])
    return np.where(rank < items_UK.shape[1], rank, -1).astype(np.int64)


def hit_rate(ranks_U: np.ndarray, k: int) -> float:
    """HR@k of ranks int (U,): the fraction of users whose item is among the first k; Recall@k, where one item is true.

    Raises ValueError where there is no user, as all means here do.
    """
    return _mean((ranks_U >= 0) & (ranks_U < k))


def ndcg(ranks_U: np.ndarray, k: int) -> float:
    """NDCG@k of ranks int (U,): the mean over users of 1 / log2(rank + 2) where the item is among the first k, else 0. The best
    list gives 1, so that nothing is to be normalised."""
    is_hit = (ranks_U >= 0) & (ranks_U < k)
    return _mean(np.where(is_hit, 1 / np.log2(np.where(is_hit, ranks_U, 0) + 2.0), 0.0))


def summary(ranks_U: np.ndarray, cutoffs: Sequence[int] = (5, 10, 20)) -> dict[str, float]:
    """{"hr@5": …, "ndcg@5": …}, all hit rates first. ranks_U: int (U,). A list shorter than a cutoff gives the hits it has:
    search at least as wide as the largest cutoff."""
    rates = {f"hr@{k}": hit_rate(ranks_U, k) for k in cutoffs}
    return rates | {f"ndcg@{k}": ndcg(ranks_U, k) for k in cutoffs}


def pass_at_k(items_UK: np.ndarray, offsets: np.ndarray, truths: np.ndarray, k: int) -> float:
    """The fraction of users with any of their true items among the first k distinct ones. Users without a true item are left
    out, here and below. Source: OpenOneRec, recommendation/utils.py, as the spec has it."""
    return _mean(_hits(items_UK, offsets, truths)[_has_truth(offsets), :k].any(axis=1))


def position1_pass_at_k(items_UK: np.ndarray, offsets: np.ndarray, truths: np.ndarray, k: int) -> float:
    """The fraction of users whose first true item, in the order given, is among the first k distinct ones."""
    has_truth = _has_truth(offsets)
    return hit_rate(rank_of(distinct(items_UK[has_truth]), truths[offsets[:-1][has_truth]]), k)


def recall_at_k(items_UK: np.ndarray, offsets: np.ndarray, truths: np.ndarray, k: int) -> float:
    """The mean fraction of a user's true items that are among the first k distinct ones. The denominator is all of them, also
    where they are more than k: OpenOneRec's choice; others divide by min(k, how many)."""
    has_truth = _has_truth(offsets)
    user = np.repeat(np.arange(len(has_truth)), np.diff(offsets))
    n_true = np.bincount(np.unique(np.stack([user, truths]), axis=1)[0], minlength=len(has_truth))
    return _mean(_hits(items_UK, offsets, truths)[has_truth, :k].sum(axis=1) / n_true[has_truth])


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, divided by n - 1, of one figure over runs; nan where there is one run."""
    return _mean(np.asarray(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def interval95(ranks_U: np.ndarray, k: int) -> tuple[float, float]:
    """The 95 % confidence interval of HR@k over draws of users, as (low, high): Wilson's, which holds for rare hits too. It
    says nothing about other seeds. Source: Wilson 1927, "Probable inference"."""
    rate, n, z = hit_rate(ranks_U, k), len(ranks_U), 1.959964
    centre = rate + z * z / (2 * n)
    reach = z * float(np.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2))
    return (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)


def _mean(values: Any) -> float:
    if not len(values):
        raise ValueError("there is no user to average over")
    return float(values.mean())


def _has_truth(offsets: np.ndarray) -> np.ndarray:
    return np.diff(offsets) > 0


def _hits(items_UK: np.ndarray, offsets: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Which of the distinct items of each list are true, bool (U, K)."""
    listed = distinct(items_UK).astype(np.int64)
    span = int(max(listed.max(initial=-1), truths.max(initial=-1))) + 2  # one more, for the padding
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys = np.arange(len(listed))[:, None] * span + listed + 1
    is_hit: np.ndarray = np.isin(keys, user * span + truths + 1) & (listed != -1)
    return is_hit
