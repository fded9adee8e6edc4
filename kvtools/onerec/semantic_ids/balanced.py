"""Balanced residual k-means: on every level each code gets as many items as every other, give or take one.

Source: the first OneRec paper (arXiv 2502.18965), Algorithm 1: code after code takes the w items nearest to it of those
left, and moves to their mean, until nothing changes. The report that followed it dropped this for RQ-KMeans, since evenness
costs reconstruction. Ours: the remainder of N / K is spread, one more item to each of the first codes, where w = ceil(N / K)
would leave the last ones empty.

Not here: anything for the codes whose turn comes late, which get leftovers; that is the algorithm's nature. The rows are
held by one process, as one matrix.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from kvtools.onerec.semantic_ids.nearest import Filter
from kvtools.onerec.semantic_ids.rqkmeans import Alone, Init, Rows, Step, seeds

_AT_ONCE = 32  # codes whose distances are computed together


@dataclass
class Balanced:
    """A fit, and afterwards its result, as RqKMeans has it; codes are those the algorithm gave, not the nearest."""

    n_levels: int
    n_codes: int
    n_iterations: int
    seed: int
    init: Init = "k-means++"
    codebooks: list[np.ndarray] = field(default_factory=list)
    reseeds: list[int] = field(default_factory=list)
    mse: float = math.nan
    _codes: list[np.ndarray] = field(default_factory=list)

    @property
    def codebooks_LKD(self) -> np.ndarray:
        return np.stack(self.codebooks)

    @property
    def codes_NL(self) -> np.ndarray:
        return np.stack(self._codes, axis=1)

    def fit(self, rows: Rows, _chosen: Filter) -> Iterator[Step]:
        """Fit all levels; afterwards `rows` are the residuals. Raises ValueError for fewer rows than codes."""
        n_rows = len(rows)
        if n_rows < self.n_codes:
            raise ValueError(f"{n_rows} rows found, at least one for each of {self.n_codes} codes expected")
        for level in range(self.n_levels):
            x_ND = np.concatenate([block_BD for _, block_BD in rows])
            first_KD = seeds(rows, n_rows, self.n_codes, self.init, self.seed, level, Alone())
            for iteration, (codebook_KD, codes_N, n_changed) in enumerate(balanced(x_ND, first_KD, self.n_iterations)):
                squares = np.square(x_ND - codebook_KD[codes_N], dtype=np.float64)
                yield Step(level, iteration, float(squares.mean()), n_changed, 0)
            rows.take_away(codes_N, codebook_KD)
            self.codebooks.append(codebook_KD)
            self._codes.append(codes_N)
            self.reseeds.append(0)
            self.mse = float(squares.mean())


def balanced(x_ND: np.ndarray, codebook_KD: np.ndarray, n_iterations: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """After each iteration: the codes' new places float32 (K, D), the items' codes int32 (N,), and how many changed.

    x_ND: float32. Ends when nothing changes, or after n_iterations. O(N K D / 2) an iteration, K passes over what is left.
    """
    sizes_K = np.full(len(codebook_KD), len(x_ND) // len(codebook_KD))
    sizes_K[: len(x_ND) % len(codebook_KD)] += 1
    half_N = np.square(x_ND).sum(axis=1) / 2
    codebook_KD = codebook_KD.copy()
    codes_N = np.full(len(x_ND), -1, np.int32)
    for _ in range(n_iterations):
        before_N, codes_N = codes_N, np.full(len(x_ND), -1, np.int32)
        left = np.arange(len(x_ND))
        for begin in range(0, len(codebook_KD), _AT_ONCE):
            some_CD = codebook_KD[begin : begin + _AT_ONCE].copy()
            # half the squared distance, but for the code's own norm: rows are compared for one code at a time
            apart_NC = half_N[left, None] - x_ND[left] @ some_CD.T
            for column in range(len(some_CD)):
                is_free = codes_N[left] < 0
                near = _least(np.where(is_free, apart_NC[:, column], np.inf), int(sizes_K[begin + column]))
                codes_N[left[near]] = begin + column
                codebook_KD[begin + column] = x_ND[left[near]].mean(axis=0, dtype=np.float64)
            left = left[codes_N[left] < 0]
        n_changed = int(np.count_nonzero(codes_N != before_N))
        yield codebook_KD.copy(), codes_N, n_changed
        if n_changed == 0:
            return


def _least(values: np.ndarray, n: int) -> np.ndarray:
    """Places of the n least values, ties to the lower place."""
    if n == 0:
        return np.empty(0, np.int64)
    limit = np.partition(values, n - 1)[n - 1]
    below = np.flatnonzero(values < limit)
    return np.concatenate([below, np.flatnonzero(values == limit)[: n - len(below)]])
