"""Sums that do not depend on the order of addition, and so not on blocks, threads or ranks.

Every value is rounded to a multiple of one power of two, chosen so that no sum of them exceeds float64's 53 bits: addition is
exact, and what was added can be taken away again. The rounding is 2^-34 of the largest value for 200,000 rows, far under
float32's own. Legend: N rows here, B rows of a block, K codes, D width.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

_PART_ROWS = 1 << 12


class Vectors(Protocol):
    """Float32 vectors (n, D) that are read in blocks, in memory or on disk; vector_store.VectorStore is one."""

    n_width: int

    def __len__(self) -> int: ...
    @property
    def row_numbers(self) -> np.ndarray:
        """See VectorStore."""

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]: ...
    def subtract(self, codes_N: np.ndarray, codebook_KD: np.ndarray) -> None:
        """See VectorStore."""

    def pick(self, row_numbers_P: np.ndarray) -> np.ndarray:
        """See VectorStore."""


class Ranks(Protocol):
    """The ranks that share the rows; world.World is one, and `World()` the only rank of a serial run."""

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """See World."""

    def gather_array(self, array: np.ndarray) -> np.ndarray:
        """See World."""


class Rounding:
    """The power of two to which values of this size are rounded before they are summed; the same on all ranks."""

    def __init__(self, largest: float, n_rows: int) -> None:
        """largest: a bound on the values' size. n_rows: how many are summed, on all ranks."""
        # sums lie below 2^e; one unit is 2^(e - 52), and 1.5 * 2^e has that for its last place: adding it rounds
        self._magic = 1.5 * 2.0 ** math.ceil(math.log2(largest * max(2, n_rows)) + 1) if largest else 0.0

    def round(self, values: np.ndarray) -> np.ndarray:
        """float64 of the same shape."""
        return (values + self._magic) - self._magic

    def round_(self, values: torch.Tensor) -> torch.Tensor:
        """The float64 tensor itself, of any shape, rounded in place."""
        return values.add_(self._magic).sub_(self._magic)


def power_of_two_above(largest: float, ranks: Ranks) -> float:
    """The power of two at or above the largest value of all ranks; 0 where all are 0. A collective."""
    largest = float(ranks.gather_array(np.array([largest])).max())
    return 2.0 ** math.ceil(math.log2(largest)) if largest else 0.0


class SquareSums:
    """The sum of all vectors' squares, exact, and the rounding that their sums need. A collective."""

    def __init__(self, vectors: Vectors, n_rows: int, ranks: Ranks) -> None:
        """n_rows: of all ranks."""
        largest, squares = 0.0, []
        for _, block_BD in vectors:
            largest = max(largest, float(np.abs(block_BD).max(initial=0.0)))
            squares += [np.square(part_BD, dtype=np.float64).sum(axis=1) for part_BD in parts(block_BD)]
        largest = power_of_two_above(largest, ranks)
        of_squares = Rounding(vectors.n_width * largest**2, n_rows)
        total = sum(float(of_squares.round(square_B).sum()) for square_B in squares)
        self.rounding = Rounding(largest, n_rows)
        self.total = float(ranks.sum_array(np.array([total]))[0])

    def objective(self, codebook_KD: np.ndarray, sums_KD: np.ndarray, counts_K: np.ndarray) -> float:
        """The sum of squared distances of all rows to their codes, from the sums and sizes of the cells."""
        wide_KD = codebook_KD.astype(np.float64)
        gain = float((wide_KD * (2 * sums_KD - counts_K[:, None] * wide_KD)).sum())
        return max(0.0, self.total - gain)


class CellSums:
    """The sum and the size of each cell, updated as rows move between cells: `sums_KD` float64, `counts_K` int64."""

    def __init__(self, n_codes: int, n_width: int, rounding: Rounding) -> None:
        self._rounding = rounding
        self._sums_KD = torch.zeros((n_codes, n_width), dtype=torch.float64)
        self.sums_KD = self._sums_KD.numpy()
        self.counts_K = np.zeros(n_codes, np.int64)

    def move(self, x_BD: np.ndarray, old_B: np.ndarray | None, new_B: np.ndarray) -> None:
        """Move rows, float32, from their old cells, where they had any, to their new ones; cells: int32."""
        for moved in parts(np.arange(len(x_BD)) if old_B is None else np.flatnonzero(old_B != new_B)):
            values = self._rounding.round_(torch.from_numpy(x_BD[moved]).double())
            for cells, sign in ((new_B, 1), (old_B, -1)):
                if cells is not None:
                    self._sums_KD.index_add_(0, torch.from_numpy(cells[moved]), values, alpha=sign)
                    self.counts_K += sign * np.bincount(cells[moved], minlength=len(self.counts_K))


def parts(array: np.ndarray) -> list[np.ndarray]:
    """The array (N, ...) in pieces of 4096 rows, of which float64 copies are small."""
    return [array[begin : begin + _PART_ROWS] for begin in range(0, len(array), _PART_ROWS)]
