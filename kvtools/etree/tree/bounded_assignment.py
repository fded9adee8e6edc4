"""The cheapest assignment of items to bins of bounded size, exactly: a transportation problem with few bins.

Prices on the bins come first: every item takes the bin that is cheapest with its price, and the prices of overfull bins rise.
Bins that are still too full or too empty are repaired along shortest paths from bin to bin, each step of which moves the item
that costs least. With K bins a path costs O(K^2); flow networks of items, as k-means-constrained builds them, cost thousands of
times that. Prices are kept from one call to the next, since costs change little.

Legend: N items, K bins. Source: successive shortest paths (Ahuja, Magnanti and Orlin 1993, chapter 9); that bins rather than
items can be the nodes follows from all items of a bin having one supply. Memory: the costs, N x K.
"""

from itertools import pairwise

import numpy as np

_N_ROUNDS = 60  # of prices; the rest is repaired exactly, so more rounds only trade one cost for another


def assign(cost_NK: np.ndarray, low: int, high: int, prices_K: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each item, int32 (N,), with the least sum of costs; and prices (K,) for the next call.

    cost_NK: float32 or float64 (N, K), finite. Every bin gets from low to high items. Raises ValueError where K bins of these
    sizes cannot hold N items.
    """
    n_items, n_bins = cost_NK.shape
    if not low * n_bins <= n_items <= high * n_bins:
        raise ValueError(f"{n_bins} bins of {low} to {high} items cannot hold {n_items} items")
    prices_K = np.zeros(n_bins, cost_NK.dtype) if prices_K is None else prices_K.astype(cost_NK.dtype)
    prices_K = _prices(cost_NK, low, high, prices_K)
    bin_N = (cost_NK + prices_K).argmin(axis=1).astype(np.int32)
    _repair(cost_NK.astype(np.float64), bin_N, low, high)
    return bin_N, prices_K


def _prices(cost_NK: np.ndarray, low: int, high: int, prices_K: np.ndarray) -> np.ndarray:
    """Prices at which sizes are nearly within bounds. Each round moves a price by its bin's excess, in units of a mean bin."""
    n_items, n_bins = cost_NK.shape
    if n_bins == 1:
        return prices_K
    two = np.partition(cost_NK[:: max(1, n_items // 4096)], 1, axis=1)
    step = float(np.mean(two[:, 1] - two[:, 0])) or 1.0
    best, least = prices_K, np.inf
    for number in range(_N_ROUNDS):
        sizes = np.bincount((cost_NK + prices_K).argmin(axis=1), minlength=n_bins)
        excess = np.where(sizes > high, sizes - high, np.where(sizes < low, sizes - low, 0))
        # complementary slackness: a positive price only at the upper bound, a negative one only at the lower
        loose = np.where(
            (prices_K > 0) & (sizes < high), sizes - high, np.where((prices_K < 0) & (sizes > low), sizes - low, 0)
        )
        n_wrong = int(np.abs(excess).sum())
        if n_wrong < least:
            best, least = prices_K, n_wrong
        if n_wrong == 0 and not loose.any():
            break
        pull = np.where(excess != 0, excess, loose) * (n_bins / n_items)
        moved = prices_K + (step * 2 / (1 + number / 8) * np.clip(pull, -2, 2)).astype(prices_K.dtype)
        # a price that only goes back stops at 0
        prices_K = np.where((excess == 0) & (np.sign(moved) != np.sign(prices_K)), 0, moved).astype(prices_K.dtype)
    return best


def _repair(cost_NK: np.ndarray, bin_N: np.ndarray, low: int, high: int) -> None:
    """Bring sizes within bounds, and then costs to their minimum, by moving items along paths from bin to bin, in place."""
    n_bins = cost_NK.shape[1]
    sizes = np.bincount(bin_N, minlength=n_bins)
    move_KK, item_KK = np.empty((n_bins, n_bins)), np.empty((n_bins, n_bins), np.int64)
    for k in range(n_bins):
        _cheapest_moves(k, cost_NK, bin_N, move_KK, item_KK)
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
            _cheapest_moves(k, cost_NK, bin_N, move_KK, item_KK)


def _cheapest_moves(k: int, cost_NK: np.ndarray, bin_N: np.ndarray, move_KK: np.ndarray, item_KK: np.ndarray) -> None:
    """Set row k: the least cost of moving an item from bin k to each other bin, and that item; ties to the lower number."""
    items = np.flatnonzero(bin_N == k)
    move_KK[k] = np.inf
    if len(items):
        change = cost_NK[items] - cost_NK[items, k][:, None]
        least = change.argmin(axis=0)
        move_KK[k], item_KK[k] = change[least, np.arange(change.shape[1])], items[least]
    move_KK[k, k] = np.inf


def _path(move_KK: np.ndarray, sources: np.ndarray, targets: np.ndarray, limit: float) -> list[int] | None:
    """The bins of the cheapest path from a source to a target (Bellman-Ford); None where none costs less than the limit."""
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
