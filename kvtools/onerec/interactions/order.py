"""Rows by user and time, without equal rows.

Legend: n rows. Whole numbers are sorted with their position in the low bits, which is stable and, on a processor with wide
vectors, ten times as fast as numpy's stable argsort. Not here: what columns mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Order(NamedTuple):
    """rows: int64 (m,), the rows to keep, in order; users (m,) and times (m,): theirs. late: rows that stand after one of the
    same user with a later time. equal: rows that repeat another in every column, and are not kept. Both in file order."""

    rows: np.ndarray
    users: np.ndarray
    times: np.ndarray
    late: np.ndarray
    equal: np.ndarray


def stable_order(values: np.ndarray) -> np.ndarray:
    """int64 (n,): the positions of the values (n,) in ascending order, those of equal ones in theirs."""
    return sort_stably(values)[0]


def sort_stably(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the values (n,) in ascending order, int64, equal ones in theirs; and the values in that order."""
    if not len(values):
        return np.empty(0, np.int64), values
    n_bits = max(1, (len(values) - 1).bit_length())
    low, high = values.min(), values.max()
    is_whole = values.dtype.kind in "iu" or (max(abs(low), abs(high)) < 1 << 53 and bool((values == np.floor(values)).all()))
    if not is_whole or int(high) - int(low) >= 1 << (63 - n_bits):
        rows = np.argsort(values, kind="stable")
        return rows, values[rows]
    packed = values.astype(np.int64)
    packed -= int(low)
    packed <<= n_bits
    packed |= np.arange(len(packed))
    packed.sort()
    ordered = packed >> n_bits
    ordered += int(low)
    packed &= (1 << n_bits) - 1
    return packed, ordered.astype(values.dtype, copy=False)


def by_user_and_time(users: np.ndarray, times: np.ndarray, others: Sequence[np.ndarray]) -> Order:
    """Rows by user, then time, then as they stand. users int32 (n,), times (n,), others: further columns, each (n,)."""
    if (times[1:] < times[:-1]).any():
        rows = stable_order(times)
        after, users_n = sort_stably(users[rows])
        rows = rows[after]
        del after
    else:
        rows, users_n = sort_stably(users)
    times_n = times[rows]
    same_user = users_n[1:] == users_n[:-1]
    late = np.sort(rows[:-1][same_user & (rows[:-1] > rows[1:])])
    same_user &= times_n[1:] == times_n[:-1]
    # equal rows share user and time, and few rows do: only they are sorted by all columns
    shared = rows[np.concatenate([same_user, [False]]) | np.concatenate([[False], same_user])]
    columns = [column[shared] for column in (*others, times, users)]
    shared = shared[np.lexsort((shared, *columns))]
    is_equal = np.ones(max(len(shared) - 1, 0), bool)
    for column in (*others, times, users):
        is_equal &= _same(column, shared)
    equal = np.sort(shared[1:][is_equal])
    if len(equal):
        is_kept = np.ones(len(users), bool)
        is_kept[equal] = False
        is_kept = is_kept[rows]
        rows, users_n, times_n = rows[is_kept], users_n[is_kept], times_n[is_kept]
    return Order(rows, users_n, times_n, late, equal)


def _same(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Bool (m-1,): whether a row has what the row before it has; two unknown numbers are the same."""
    after, before = column[rows[1:]], column[rows[:-1]]
    same = after == before
    return np.asarray(same | (np.isnan(after) & np.isnan(before)) if column.dtype.kind == "f" else same)
