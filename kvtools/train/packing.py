"""Sequences of different lengths packed into rows of one length, and rows of different costs balanced over equal workers.

`balance` is the report's rule (arXiv 2507.01949, section 5): costs in falling order, each to the worker with least so far.
Graham 1969: at most 4/3 - 1/(3 n) of the best possible. Not here: what a row costs (keye/model/flops.py).
"""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")


def pack(lengths: Sequence[int] | np.ndarray, capacity: int, *, window: int | None = None) -> list[list[int]]:
    """Rows of indices into `lengths`, at most `capacity` long each: first-fit decreasing within each `window` of lengths.

    lengths: int (N,). Of equal lengths the earlier comes first; rows keep the order of their longest, and the indices of a row
    rise. Rows never mix windows, so that a stream can be packed as it comes. Time O(N * rows of a window). Raises ValueError
    for a length below 1 or above the capacity.
    """
    sizes = np.asarray(lengths, np.int64)
    if len(sizes) and not (sizes.min() >= 1 and sizes.max() <= capacity):
        index = int(np.flatnonzero((sizes < 1) | (sizes > capacity))[0])
        raise ValueError(f"length {index} is {sizes[index]}, and 1 to {capacity} is needed")
    rows: list[list[int]] = []
    step = window or max(1, len(sizes))
    for begin in range(0, len(sizes), step):
        rows += _pack(sizes[begin : begin + step], capacity, begin)
    return rows


def _pack(sizes: np.ndarray, capacity: int, first: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room = np.full(len(sizes), capacity, np.int64)  # as many rows as sequences, in case no two fit together
    for index in np.argsort(-sizes, kind="stable").tolist():
        row = int(np.argmax(room >= sizes[index]))
        if row == len(rows):
            rows.append([])
        room[row] -= sizes[index]
        rows[row].append(first + index)
    return [sorted(row) for row in rows]


def balance(costs: Sequence[float] | np.ndarray, n: int) -> list[list[int]]:
    """Indices into `costs`, in n parts of nearly equal sums: the largest first, each to the part with least so far.

    costs: float (N,). Ties go to the earlier cost and the earlier part, so that ranks agree without talking. Parts may be
    empty.
    """
    loads = np.zeros(n)
    parts: list[list[int]] = [[] for _ in range(n)]
    for index in np.argsort(-np.asarray(costs, np.float64), kind="stable").tolist():
        part = int(loads.argmin())
        loads[part] += costs[index]
        parts[part].append(index)
    return parts


def round_robin(n_items: int, n: int) -> list[list[int]]:
    """Indices dealt to n parts in turn: the baseline that `balance` is compared with."""
    return [list(range(part, n_items, n)) for part in range(n)]


def max_over_mean(costs: Sequence[float] | np.ndarray, parts: Sequence[Sequence[int]]) -> float:
    """The largest sum of costs (n,) over a part, divided by the mean of all parts: 1 where no worker waits for another."""
    sums = [float(sum(costs[index] for index in part)) for part in parts]
    mean = sum(sums) / len(sums)
    return max(sums) / mean if mean else 1.0


def pack_stream(things: Iterable[_T], size: Callable[[_T], int], capacity: int, *, n_open: int = 64) -> Iterator[list[_T]]:
    """Rows of at most `capacity`, as things come: each goes into the fullest open row in which it fits (best fit).

    At most n_open rows are open; where none fits, the fullest is closed, so that memory stays flat. Raises ValueError for a
    size below 1 or above the capacity. Source: Johnson 1974; the bound on open rows is our choice.
    """
    rows: list[tuple[int, list[_T]]] = []  # room left, things; the fullest first
    for thing in things:
        n = size(thing)
        if not 0 < n <= capacity:
            raise ValueError(f"a length is {n}, and 1 to {capacity} is needed")
        index = next((i for i, (room, _) in enumerate(rows) if room >= n), None)
        if index is None and len(rows) == n_open:
            yield rows.pop(0)[1]
        room, row = (capacity, []) if index is None else rows.pop(index)
        insort(rows, (room - n, [*row, thing]), key=lambda pair: pair[0])
    yield from (row for _, row in rows)
