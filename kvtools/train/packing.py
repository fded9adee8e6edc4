"""Things of different lengths into rows of one length, and rows of different costs onto equal workers.

`balance` is the report's rule (arXiv 2507.01949, section 5): costs in falling order, each to whoever has least so far. Graham
1969: at most 4/3 - 1/(3 n) of the best possible. Numbers in, numbers out; not here: what a row costs (keye/flops.py).
"""

from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, capacity: int, *, window: int | None = None) -> list[list[int]]:
    """Places of the lengths, in rows of at most `capacity`: first-fit decreasing within each `window` of lengths in a row.

    Of equal lengths the earlier comes first; rows keep the order of their longest, and a row's places rise. Rows never mix
    windows, so that a stream can be packed as it comes. Raises ValueError for a length below 1 or above the capacity.
    """
    sizes = np.asarray(lengths, np.int64)
    if len(sizes) and not (sizes.min() >= 1 and sizes.max() <= capacity):
        place = int(np.flatnonzero((sizes < 1) | (sizes > capacity))[0])
        raise ValueError(f"length {sizes[place]} found at {place}, 1 to {capacity} expected")
    rows: list[list[int]] = []
    step = window or max(1, len(sizes))
    for begin in range(0, len(sizes), step):
        rows += _pack(sizes[begin : begin + step], capacity, begin)
    return rows


def _pack(sizes: np.ndarray, capacity: int, first: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room = np.full(len(sizes), capacity, np.int64)  # a row each, were nothing to fit beside anything
    for place in np.argsort(-sizes, kind="stable").tolist():
        row = int(np.argmax(room >= sizes[place]))
        if row >= len(rows):
            row = len(rows)
            rows.append([])
        room[row] -= sizes[place]
        rows[row].append(first + place)
    return [sorted(row) for row in rows]


def balance(costs: Sequence[float] | np.ndarray, n: int) -> list[list[int]]:
    """Places of the costs, in n parts of nearly equal sums: the largest first, each to the part with least so far.

    Ties go to the earlier cost and the earlier part, so that ranks agree without talking. Parts may be empty.
    """
    loads = np.zeros(n)
    parts: list[list[int]] = [[] for _ in range(n)]
    for place in np.argsort(-np.asarray(costs, np.float64), kind="stable").tolist():
        part = int(loads.argmin())
        loads[part] += costs[place]
        parts[part].append(place)
    return parts


def round_robin(n_things: int, n: int) -> list[list[int]]:
    """Places dealt out in turn: what `balance` is compared with."""
    return [list(range(part, n_things, n)) for part in range(n)]


def max_over_mean(costs: Sequence[float] | np.ndarray, parts: Sequence[Sequence[int]]) -> float:
    """The largest sum of a part over the mean of all: 1 where no worker waits for another."""
    sums = [float(sum(costs[place] for place in part)) for part in parts]
    mean = sum(sums) / len(sums)
    return max(sums) / mean if mean else 1.0


def filled(lengths: Sequence[int] | np.ndarray, rows: Sequence[Sequence[int]], capacity: int) -> float:
    """The share of the rows' room that is taken."""
    return float(sum(int(lengths[place]) for row in rows for place in row) / (capacity * len(rows))) if rows else 1.0
