"""The passes of nearest.py and exact_sums.py over a block of rows, compiled: the extra `fast` brings numba, and without it
torch makes them.

A block is passed twice, once to write the rows of the product and once to settle its scores, where torch takes about twenty
passes. What is decided here is proved as there; who is too close for float64 is left to the caller. So codes are the same with
this module and without. Compiled code and products do not hold Python's lock: each thread takes a block through all passes, in
its own cache, and none waits for another.

Legend: N rows, B rows of a block, by number, K codes, C codes of a chunk, D width, E width with the bounds' columns, P parts of
sums.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch

_P = TypeVar("_P")
_T = TypeVar("_T")
_SIGNS = {2: np.int64(-0x7FFF7FFF7FFF8000), 4: np.int64(-0x7FFFFFFF80000000)}  # of a word's scores, by bytes of each
_CODES_A_THREAD = 128  # at least: handing them out takes as long as writing a few
_COLUMNS_A_THREAD = 16  # at least: those of a cache line


def are_there() -> bool:
    """Whether numba is installed, and can be loaded."""
    try:
        Kernels()
    except ImportError:
        return False
    return True


class Kernels:
    """The compiled passes. Of a block each runs in the thread that calls it, of codes and of sums in as many as torch has."""

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
            lambda part: write(codes_KD[part], centre_D, centred_KD[part], bits_KE[part], square_K[part], lost_K[part]),
            n_codes,
            _CODES_A_THREAD,
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
        self._compiled.write_rows(x_ND, rows_B, guess_N, centre_D, *codes, *errors, bits_BE)

    def settle(
        self, scores_BC: np.ndarray, first: int, x_ND: np.ndarray, rows_B: np.ndarray, codes_KD: np.ndarray,
        nearest_N: np.ndarray, is_left_B: np.ndarray,
    ) -> int:  # fmt: skip
        """Replace guesses, int32 (N,), of the rows rows_B by codes of a chunk that are nearer, where that is certain; the rows
        where it is not are marked. Returns the number of candidates.

        scores_BC: unsigned integers with the bits of the scores of the codes from the number first on, whole words of eight
        bytes a row.
        """
        words_BW, signs = scores_BC.view(np.int64), _SIGNS[scores_BC.itemsize]
        return int(self._compiled.settle(words_BW, signs, scores_BC, first, x_ND, rows_B, codes_KD, nearest_N, is_left_B))

    def largest(self, scores_BC: np.ndarray, first: int, largest_B: np.ndarray, where_B: np.ndarray) -> None:
        """Note the codes of a chunk, int64 (B,), whose scores are larger than the largest so far. scores_BC: int16, the bits of
        bfloat16, of the codes from the number first on. largest_B: the same bits, in an order of integers."""
        self._compiled.largest(scores_BC, first, largest_B, where_B)

    def move(self, x_BD: np.ndarray, old_B: np.ndarray, new_B: np.ndarray, magics_PD: np.ndarray, sums_PKD: np.ndarray) -> None:
        """Move rows, float32, from the sums of their old cells, -1 for none, to those of their new ones; cells: int32.

        magics_PD: of the parts that values are cut into (exact_sums.py). Threads share the columns.
        """
        arrays = x_BD, old_B, new_B, magics_PD, sums_PKD
        _share(lambda part: self._compiled.move(*arrays, part.start, part.stop), x_BD.shape[1], _COLUMNS_A_THREAD)


def in_threads(work: Callable[[_P], _T], parts: Iterable[_P]) -> list[_T]:
    """The results of work on each part, in their order, on as many threads as torch has; in each, torch uses no other."""
    n_threads = torch.get_num_threads()
    return list(map(work, parts) if n_threads == 1 else _pool(n_threads).map(work, parts))


def _share(work: Callable[[slice], _T], n_all: int, n_least: int) -> list[_T]:
    """The results of work on rows or columns, in parts of a thread each, of n_least at least."""
    n_parts = max(1, min(torch.get_num_threads(), n_all // n_least))
    ends = [n_all * part // n_parts for part in range(n_parts + 1)]
    return in_threads(work, [slice(begin, end) for begin, end in pairwise(ends)])


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    # it is set for each thread; threads that torch meets later have one, too, and those that it knows keep theirs
    return ThreadPoolExecutor(n_threads, initializer=lambda: torch.set_num_threads(1))
