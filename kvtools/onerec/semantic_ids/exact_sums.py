"""Sums that do not depend on the order of addition, and so not on blocks, threads or ranks.

A value is cut into parts, each a multiple of its own power of two, chosen so that no sum of them exceeds float64's 53 bits:
addition is exact, and what was added can be taken away again. For 200,000 rows a part is 34 bits. As many parts are taken as
the values of a column need, from the largest down to the last bit of the smallest: two, for most vectors. So rows of very
different sizes have the sums that each would have alone. Legend: N rows here, B rows of a block, K codes, D width, P parts.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from kvtools.onerec.semantic_ids.kernels import Kernels

_PIECE_ROWS = 1 << 10


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


class Parts:
    """The powers of two to multiples of which values are rounded, one after the other; the same on all ranks."""

    def __init__(self, largest: np.ndarray, n_rows: int, last_bit: np.ndarray | None = None) -> None:
        """largest: bounds on the values' sizes, float64 (D,) by column, or (1,) for all. n_rows: how many are summed, on all
        ranks. last_bit: powers of two, (D,), that the values are multiples of, 0 where all are 0; None for one part, which
        rounds them."""
        magics: list[np.ndarray] = []
        bound = np.where(largest > 0, largest, 1.0)
        while not magics or (last_bit is not None and ((bound > last_bit) & (last_bit > 0)).any()):
            # sums lie below 2^e; one unit is 2^(e - 52), and 1.5 * 2^e has that for its last place: adding it rounds
            exponent = np.ceil(np.log2(bound * max(2, n_rows)) + 1)
            magics.append(1.5 * 2.0**exponent)
            bound = 2.0 ** (exponent - 52)
        self.magics_PD = np.array(magics)  # float64: adding one, and taking it away again, leaves a part

    def __len__(self) -> int:
        return len(self.magics_PD)

    def round(self, values: np.ndarray) -> np.ndarray:
        """The first part of float64 values (N,), of the same shape, where one bound is for all."""
        return np.asarray((values + self.magics_PD[0]) - self.magics_PD[0])

    def cut(self, values: torch.Tensor, part: int, columns: torch.Tensor | None = None) -> torch.Tensor:
        """That part of float64 values, of the same shape, of which the parts before were cut; it is taken away from them.

        values: (B, D), or (n,) of these columns, int64 (n,).
        """
        magic_D = torch.from_numpy(self.magics_PD[part])
        magic = magic_D if columns is None else magic_D[columns]
        cut = (values + magic).sub_(magic)
        values.sub_(cut)
        return cut


def power_of_two_above(largest: np.ndarray, ranks: Ranks) -> np.ndarray:
    """The powers of two at or above the largest values of all ranks, float64 (D,); 0 where all are 0. A collective."""
    largest = ranks.gather_array(largest[None]).max(axis=0)
    return np.where(largest > 0, 2.0 ** np.ceil(np.log2(np.where(largest > 0, largest, 1.0))), 0.0)


class SquareSums:
    """The sum of all vectors' squares, and the parts that their own sums need. A collective.

    The parts of each column go by its own values, of which few are so much smaller than its largest that they need a second.
    """

    def __init__(self, vectors: Vectors, n_rows: int, ranks: Ranks) -> None:
        """n_rows: of all ranks."""
        largest_D, smallest_D, squares = np.zeros(vectors.n_width), np.full(vectors.n_width, math.inf), []
        for piece_BD in (piece_BD for _, block_BD in vectors for piece_BD in pieces(block_BD)):
            most_D, least_D = _extremes(piece_BD)
            largest_D, smallest_D = np.maximum(largest_D, most_D), np.minimum(smallest_D, least_D)
            squares.append(np.square(piece_BD, dtype=np.float64).sum(axis=1))
        largest_D = power_of_two_above(largest_D, ranks)
        smallest_D = ranks.gather_array(smallest_D[None]).min(axis=0)
        of_squares = Parts(vectors.n_width * largest_D.max(keepdims=True) ** 2, n_rows)
        total = sum(float(of_squares.round(square_B).sum()) for square_B in squares)
        last_bit_D = np.where(largest_D > 0, 2.0 ** np.maximum(-149, np.frexp(smallest_D)[1] - 24), 0.0)  # of float32
        self.parts = Parts(largest_D, n_rows, last_bit_D)
        self.total = float(ranks.sum_array(np.array([total]))[0])

    def objective(self, codebook_KD: np.ndarray, sums_KD: np.ndarray, counts_K: np.ndarray) -> float:
        """The sum of squared distances of all rows to their codes, from the sums and sizes of the cells."""
        wide_KD = codebook_KD.astype(np.float64)
        gain = float((wide_KD * (2 * sums_KD - counts_K[:, None] * wide_KD)).sum())
        return max(0.0, self.total - gain)


class CellSums:
    """The sum and the size of each cell, updated as rows move between cells: `counts_K` int64, of this rank's rows."""

    def __init__(self, n_codes: int, n_width: int, parts: Parts, compiled: Kernels | None = None) -> None:
        """compiled: what moves rows, if not torch."""
        self._parts = parts
        self._kernels = compiled
        self._sums_PKD = torch.zeros((len(parts), n_codes, n_width), dtype=torch.float64)
        self.counts_K = np.zeros(n_codes, np.int64)

    def move(self, x_BD: np.ndarray, old_B: np.ndarray | None, new_B: np.ndarray) -> None:
        """Move rows, float32, from their old cells, where they had any, to their new ones; cells: int32."""
        signs = [(cells, sign) for cells, sign in ((new_B, 1), (old_B, -1)) if cells is not None]
        for cells, sign in signs:
            self.counts_K += sign * np.bincount(cells, minlength=len(self.counts_K))
        if self._kernels is not None:
            from_B = np.full(len(new_B), -1, np.int32) if old_B is None else old_B
            self._kernels.move(x_BD, from_B, new_B, self._parts.magics_PD, self._sums_PKD.numpy())
            return
        for moved in pieces(np.arange(len(x_BD)) if old_B is None else np.flatnonzero(old_B != new_B)):
            left = torch.from_numpy(x_BD[moved]).double()
            first_BD = self._parts.cut(left, 0)
            for cells, sign in signs:
                self._sums_PKD[0].index_add_(0, torch.from_numpy(cells[moved]), first_BD, alpha=sign)
            # of most vectors few values have further parts
            index = np.flatnonzero(left.ne(0).numpy())
            if len(self._parts) > 1 and len(index):
                self._add(left.view(-1)[index], [(cells[moved], sign) for cells, sign in signs], index)

    def _add(self, left: torch.Tensor, signs: list[tuple[np.ndarray, int]], index: np.ndarray) -> None:
        """Add the further parts of values of rows in these cells; index: where in the rows, one after the other, they are."""
        rows, columns = np.divmod(index, self._sums_PKD.shape[2])
        columns_n = torch.from_numpy(columns)
        for part in range(1, len(self._parts)):
            values = self._parts.cut(left, part, columns_n)
            for cells, sign in signs:
                self._sums_PKD[part].index_put_(
                    (torch.from_numpy(cells[rows]).long(), columns_n), sign * values, accumulate=True
                )

    def sums(self, ranks: Ranks) -> np.ndarray:
        """float64 (K, D): the sums of all ranks' rows, rounded once for each part. A collective."""
        sums_PKD: np.ndarray = ranks.sum_array(self._sums_PKD.numpy())
        sums_KD: np.ndarray = sums_PKD[::-1].sum(axis=0)  # the smallest part first
        return sums_KD


def pieces(array: np.ndarray) -> list[np.ndarray]:
    """The array (N, ...) in pieces of 1,024 rows, of which float64 copies are small."""
    return [array[begin : begin + _PIECE_ROWS] for begin in range(0, len(array), _PIECE_ROWS)]


def _extremes(x_BD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest size in each column of float32 values, 0 for none, and the least but 0, infinite for none; float64 (D,)."""
    bits_BD = x_BD.view(np.uint32) & np.uint32(0x7FFFFFFF)  # of sizes: in their order
    largest_D = bits_BD.max(axis=0, initial=0)
    bits_BD -= np.uint32(1)  # 0 becomes the largest
    smallest_D = np.where(largest_D > 0, bits_BD.min(axis=0, initial=0xFFFFFFFF) + np.uint32(1), np.uint32(0x7F800000))
    return largest_D.view(np.float32).astype(np.float64), smallest_D.view(np.float32).astype(np.float64)
