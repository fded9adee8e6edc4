"""Equal rows of a matrix, found by a hash and then compared: what is done for one of them holds for all.

Legend: N rows, D width, M distinct rows, B rows of a block.
"""

from collections.abc import Callable

import numpy as np

from kvtools.onerec.semantic_ids.exact_sums import Vectors, pieces

_WORTHWHILE = 2  # rows a distinct row, from which their copies cost less than their work


def equal_rows(x_ND: np.ndarray, hash_N: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first of each set of equal rows, int64 (M,), rising, and for every row the index of its own there, int64 (N,).

    x_ND: float32, finite; 0 and -0 are equal. hash_N: what `_hashes` gives for them, where it is known. Time O(N D + N log N),
    about that of copying the rows.
    """
    hash_N = _hashes(x_ND) if hash_N is None else hash_N
    _, first_M, number_N = np.unique(hash_N, return_index=True, return_inverse=True)
    both = zip(pieces(x_ND), pieces(number_N), strict=True)
    if not all(np.array_equal(piece_BD, x_ND[first_M[number_B]]) for piece_BD, number_B in both):
        # two rows that differ have one hash: rare, or made on purpose
        _, first_M, number_N = np.unique(x_ND + np.float32(0), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first_M)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return first_M[order], rank[number_N.reshape(-1)]


def _hashes(x_ND: np.ndarray) -> np.ndarray:
    odd_D = np.random.default_rng(0).integers(1 << 63, size=x_ND.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = [(np.ascontiguousarray(piece_BD + np.float32(0)).view(np.uint32) * odd_D).sum(axis=1) for piece_BD in pieces(x_ND)]
    return np.concatenate([np.empty(0, np.uint64), *hashes])


class DistinctRows:
    """Which rows of each block of vectors are distinct, so that equal vectors are assigned once. Residuals of equal vectors
    stay equal, and one look at the vectors serves all levels. Memory of 4 bytes a row where there are many equal ones.

    digest: a hash of the rows and their numbers, uint64 (1,); those of all ranks add up to that of all rows."""

    def __init__(self, vectors: Vectors) -> None:
        self._equal_by_begin: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.digest = np.zeros(1, np.uint64)
        for begin, block_BD in vectors:
            hash_B = _hashes(block_BD)
            first_M, number_B = equal_rows(block_BD, hash_B)
            odd_B = 2 * vectors.row_numbers[begin : begin + len(block_BD)].astype(np.uint64) + np.uint64(1)
            self.digest += (hash_B * odd_B).sum()
            if _WORTHWHILE * len(first_M) <= len(block_BD):
                self._equal_by_begin[begin] = first_M, number_B.astype(np.int32)

    def apply(
        self, begin: int, of_rows: Callable[[np.ndarray, np.ndarray | None], np.ndarray], x_BD: np.ndarray,
        guess_B: np.ndarray | None,
    ) -> np.ndarray:  # fmt: skip
        """What of_rows gives for the rows and their guesses, asked for the distinct rows of the block that starts at begin."""
        if begin not in self._equal_by_begin:
            return of_rows(x_BD, guess_B)
        first_M, number_B = self._equal_by_begin[begin]
        of_distinct: np.ndarray = of_rows(x_BD[first_M], None if guess_B is None else guess_B[first_M])[number_B]
        return of_distinct
