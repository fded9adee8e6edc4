"""The cheapest assignment of items to bins of bounded size, exactly: a transportation problem with few bins.

Prices on the bins bring most of it about at once: with a price on each bin every item takes the cheapest, and the prices of
bins that are too full rise. What is still too full or too empty is mended along shortest paths from bin to bin, each step of
which moves the item that costs least; with K bins a path costs O(K^2), where flow networks of items, as k-means-constrained
builds them, cost thousands of times that. Prices are kept from one call to the next, where costs change little.

Legend: N items, K bins. Source: successive shortest paths (Ahuja, Magnanti and Orlin 1993, chapter 9); that bins rather than
items can be the nodes follows from all items of a bin having one supply. Memory: the costs, N x K.
"""

from itertools import pairwise

import numpy as np

_ROUNDS = 60  # of prices; what they leave is mended exactly, so more only trade one cost for another


def assign(cost_NK: np.ndarray, low: int, high: int, prices_K: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each item, int32 (N,), with sizes from low to high and the least sum of costs; and prices for the next call.

    cost_NK: float32 or float64, finite. Raises ValueError where K bins of these sizes cannot hold N items.
    """
    n_items, n_bins = cost_NK.shape
    if not low * n_bins <= n_items <= high * n_bins:
        raise ValueError(f"{n_bins} bins of {low} to {high} found, which cannot hold {n_items}")
    prices_K = np.zeros(n_bins, cost_NK.dtype) if prices_K is None else prices_K.astype(cost_NK.dtype)
    prices_K = _prices(cost_NK, low, high, prices_K)
    bin_N = (cost_NK + prices_K).argmin(axis=1).astype(np.int32)
    _mend(cost_NK.astype(np.float64), bin_N, low, high)
    return bin_N, prices_K


def _prices(cost_NK: np.ndarray, low: int, high: int, prices_K: np.ndarray) -> np.ndarray:
    """Prices at which sizes are nearly within bounds: each round moves them by what is over or under, in shares of a bin."""
    n_items, n_bins = cost_NK.shape
    if n_bins == 1:
        return prices_K
    two = np.partition(cost_NK[:: max(1, n_items // 4096)], 1, axis=1)
    step = float(np.mean(two[:, 1] - two[:, 0])) or 1.0
    best, least = prices_K, np.inf
    for number in range(_ROUNDS):
        sizes = np.bincount((cost_NK + prices_K).argmin(axis=1), minlength=n_bins)
        off = np.where(sizes > high, sizes - high, np.where(sizes < low, sizes - low, 0))
        # a bin with room has no business to be dear, nor a bin that could give to be cheap
        loose = np.where(
            (prices_K > 0) & (sizes < high), sizes - high, np.where((prices_K < 0) & (sizes > low), sizes - low, 0)
        )
        wrong = int(np.abs(off).sum())
        if wrong < least:
            best, least = prices_K, wrong
        if wrong == 0 and not loose.any():
            break
        pull = np.where(off != 0, off, loose) * (n_bins / n_items)
        moved = prices_K + (step * 2 / (1 + number / 8) * np.clip(pull, -2, 2)).astype(prices_K.dtype)
        # what only gives back a price stops at none
        prices_K = np.where((off == 0) & (np.sign(moved) != np.sign(prices_K)), 0, moved).astype(prices_K.dtype)
    return best


def _mend(cost_NK: np.ndarray, bin_N: np.ndarray, low: int, high: int) -> None:
    """Bring sizes within bounds, and then costs down as far as they go, moving items along paths from bin to bin, in place."""
    n_bins = cost_NK.shape[1]
    sizes = np.bincount(bin_N, minlength=n_bins)
    move_KK, item_KK = np.empty((n_bins, n_bins)), np.empty((n_bins, n_bins), np.int64)
    for k in range(n_bins):
        _look(k, cost_NK, bin_N, move_KK, item_KK)
    for _ in range(4 * len(bin_N)):
        is_over, is_under = sizes > high, sizes < low
        if is_over.any() or is_under.any():
            sources = is_over if is_over.any() else sizes > low
            targets = is_under if is_under.any() else sizes < high
            limit = np.inf
        else:
            sources, targets, limit = sizes > low, sizes < high, -1e-9
        path = _path(move_KK, sources, targets, limit)
        if path is None:
            return
        for a, b in pairwise(path):
            bin_N[item_KK[a, b]] = b
        sizes[path[0]] -= 1
        sizes[path[-1]] += 1
        for k in path:
            _look(k, cost_NK, bin_N, move_KK, item_KK)


def _look(k: int, cost_NK: np.ndarray, bin_N: np.ndarray, move_KK: np.ndarray, item_KK: np.ndarray) -> None:
    """What it costs to move an item from bin k to each other, at least, and which item that is; ties to the lower number."""
    mine = np.flatnonzero(bin_N == k)
    move_KK[k] = np.inf
    if len(mine):
        more = cost_NK[mine] - cost_NK[mine, k][:, None]
        least = more.argmin(axis=0)
        move_KK[k], item_KK[k] = more[least, np.arange(more.shape[1])], mine[least]
    move_KK[k, k] = np.inf


def _path(move_KK: np.ndarray, sources: np.ndarray, targets: np.ndarray, limit: float) -> list[int] | None:
    """The cheapest path from a source to a target that costs less than the limit, as bins; by Bellman and Ford."""
    n_bins = len(move_KK)
    reach = np.where(sources, 0.0, np.inf)
    before = np.full(n_bins, -1)
    for _ in range(n_bins):
        through = reach[:, None] + move_KK
        best = through.argmin(axis=0)
        shorter = through[best, np.arange(n_bins)]
        is_better = shorter < reach - 1e-12
        if not is_better.any():
            break
        reach[is_better], before[is_better] = shorter[is_better], best[is_better]
    reach = np.where(targets & (before >= 0), reach, np.inf)
    end = int(reach.argmin())
    if not reach[end] < limit or not np.isfinite(reach[end]):
        return None
    path = [end]
    while before[path[-1]] >= 0 and len(path) <= n_bins:
        path.append(int(before[path[-1]]))
    return path[::-1]
