"""The passes of nearest.py over one block of rows, compiled: the extra `fast` brings numba, and without it torch makes them.

A block is passed twice, once to write the rows of the product and once to settle its scores, where torch takes about twenty
passes. What is decided here is proved as there; who is too close for float64 is left to the caller. So codes are the same with
this module and without. Threads share the rows, since compiled code does not hold Python's lock.

Legend: N rows, B rows of a block, by number, K codes, D width, E width with the bounds' columns.
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
_SIGNS = {2: np.int64(-0x7FFF7FFF7FFF8000), 4: np.int64(-0x7FFFFFFF80000000)}  # of a word's scores, by bytes of each
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

    def write_codes(
        self, codes_KD: np.ndarray, centre_D: np.ndarray, bits_KE: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes less a centre, float32 (K, D), and the squared norms, float64 (K,), of these and of what rounding takes away.

        bits_KE: uint16, the bits of bfloat16 of them, in the first D columns; written.
        """
        n_codes = len(codes_KD)
        written = np.empty_like(codes_KD), np.empty(n_codes), np.empty(n_codes)
        centred_KD, square_K, lost_K = written
        write = self._compiled.write_codes
        _share(
            lambda part: write(codes_KD[part], centre_D, centred_KD[part], bits_KE[part], square_K[part], lost_K[part]), n_codes
        )
        return written

    def write_rows(
        self, x_ND: np.ndarray, rows_B: np.ndarray, guess_N: np.ndarray, centre_D: np.ndarray,
        codes: tuple[np.ndarray, np.ndarray, np.ndarray], errors: tuple[float, float], bits_BE: np.ndarray,
    ) -> None:  # fmt: skip
        """bits_BE: uint16, the bits of bfloat16 of the rows rows_B of float32 x_ND less a centre, with the columns of bounds.

        guess_N: int32, each row's code. codes: centred float32 (K, D), their bias float32 (K,) and norms float64 (K,). errors:
        of sums and of two parts, relative.
        """
        write = self._compiled.write_rows
        _share(lambda part: write(x_ND, rows_B[part], guess_N, centre_D, *codes, *errors, bits_BE[part]), len(rows_B))

    def settle(
        self, scores_BK: np.ndarray, x_ND: np.ndarray, rows_B: np.ndarray, codes_KD: np.ndarray, nearest_N: np.ndarray
    ) -> tuple[int, np.ndarray]:  # fmt: skip
        """Replace guesses, int32 (N,), of the rows rows_B by the nearest codes where that is certain; returns the number of
        candidates and bool (B,), which rows are left.

        scores_BK: unsigned integers with the bits of the scores, whole words of eight bytes a row.
        """
        is_left_B = np.zeros(len(rows_B), bool)
        words_BW, signs = scores_BK.view(np.int64), _SIGNS[scores_BK.itemsize]

        def part_of(part: slice) -> int:
            rows = x_ND, rows_B[part], codes_KD, nearest_N, is_left_B[part]
            return int(self._compiled.settle(words_BW[part], signs, scores_BK[part], *rows))

        return sum(_share(part_of, len(rows_B))), is_left_B


def _share(work: Callable[[slice], _T], n_rows: int) -> list[_T]:
    """The results of work on the rows, in parts of a thread each, the last of them this one."""
    n_parts = max(1, min(torch.get_num_threads(), n_rows // _ROWS_A_THREAD))
    ends = [n_rows * part // n_parts for part in range(n_parts + 1)]
    *others, last = (slice(begin, end) for begin, end in pairwise(ends))
    running = [_pool(torch.get_num_threads()).submit(work, part) for part in others]
    return [work(last), *(each.result() for each in running)]


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads)
