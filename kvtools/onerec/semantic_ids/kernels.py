"""The passes of nearest.py over one block of rows, compiled: the extra `fast` brings numba, and without it torch makes them.

A block is passed twice, once to write the rows of the product and once to settle its scores, where torch takes about twenty
passes. What is decided here is proved as there; who is too close for float64 is left to the caller. So codes are the same with
this module and without. Threads share the rows, since compiled code does not hold Python's lock.

Legend: B rows of a block, K codes, D width, E width with the bounds' columns.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch

_T = TypeVar("_T")
_ROWS_A_THREAD = 128  # at least: handing them out takes as long as settling a few


def are_there() -> bool:
    """Whether numba is installed, and can be loaded."""
    try:
        Kernels()
    except ImportError:
        return False
    return True


class Kernels:
    """The compiled passes, on as many threads as torch has."""

    def __init__(self) -> None:
        """Raises ImportError where numba is not installed, or not for this numpy."""
        from kvtools.onerec.semantic_ids import compiled  # it takes half a second

        self._compiled: ModuleType = compiled

    def write_rows(
        self, x_BD: np.ndarray, guess_B: np.ndarray, centre_D: np.ndarray, codes: tuple[np.ndarray, np.ndarray, np.ndarray],
        errors: tuple[float, float], rows_BE: np.ndarray,
    ) -> None:  # fmt: skip
        """Rows uint16 (B, E), the bits of bfloat16, of float32 x_BD less a centre, with the columns of bounds.

        guess_B: int32, each row's code. codes: centred float32 (K, D), their bias float32 (K,) and norms float64 (K,). errors:
        of sums and of two parts, relative.
        """
        _share(
            lambda part: self._compiled.write_rows(x_BD[part], guess_B[part], centre_D, *codes, *errors, rows_BE[part]),
            len(x_BD),
        )

    def settle(
        self, scores_BK: np.ndarray, x_BD: np.ndarray, codes_KD: np.ndarray, nearest_B: np.ndarray
    ) -> tuple[int, np.ndarray]:  # fmt: skip
        """Replace guesses, int32 (B,), by the nearest codes where that is certain; returns the number of candidates and bool
        (B,), which rows are left. scores_BK: integers with the sign bits of the scores, whole words of eight bytes a row."""
        is_left_B = np.zeros(len(x_BD), bool)
        words_BW = scores_BK.view(np.int64)
        signs = np.array([np.iinfo(scores_BK.dtype).min] * (8 // scores_BK.itemsize), scores_BK.dtype).view(np.int64)[0]

        def part_of(part: slice) -> int:
            rows = scores_BK[part], x_BD[part], codes_KD, nearest_B[part], is_left_B[part]
            return int(self._compiled.settle(words_BW[part], signs, *rows))

        counts = _share(part_of, len(x_BD))
        return sum(counts), is_left_B


def _share(work: Callable[[slice], _T], n_rows: int) -> list[_T]:
    """The results of work on the rows, in parts of a thread each."""
    n_parts = max(1, min(torch.get_num_threads(), n_rows // _ROWS_A_THREAD))
    ends = [n_rows * part // n_parts for part in range(n_parts + 1)]
    parts = [slice(begin, end) for begin, end in pairwise(ends)]
    return [work(parts[0])] if n_parts == 1 else list(_pool(torch.get_num_threads()).map(work, parts))


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads)
