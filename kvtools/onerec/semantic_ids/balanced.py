"""Balanced residual k-means: on every level each code gets as many items as every other, give or take one.

Source: the first OneRec paper (arXiv 2502.18965), Algorithm 1: code after code takes the w items nearest to it of those
left, and moves to their mean, until nothing changes. The report that followed it dropped this for RQ-KMeans, since evenness
costs reconstruction. Ours: the remainder of N / K is spread, one more item to each of the first codes, where w = ceil(N / K)
would leave the last ones empty.

Not here: anything for the codes whose turn comes late, which get leftovers; that is the algorithm's nature. The rows are
held by one process, as one matrix. Legend: N rows, K codes, C of them at once, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvtools.onerec.semantic_ids.exact_sums import Ranks, Vectors
from kvtools.onerec.semantic_ids.initial_centroids import initial_centroids
from kvtools.onerec.semantic_ids.nearest import Backend
from kvtools.onerec.semantic_ids.rqkmeans import FitStep, ResidualFit, require_rows

_AT_ONCE = 32  # codes whose distances are computed together


@dataclass
class Balanced(ResidualFit):
    """Balanced residual k-means; codes are those the algorithm gave, not the nearest."""

    is_parallel: ClassVar[bool] = False
    can_resume: ClassVar[bool] = False

    def fit(self, vectors: Vectors, _backend: Backend, ranks: Ranks) -> Iterator[FitStep]:
        """Fit all levels; afterwards `vectors` are the residuals. Raises ValueError for fewer rows than codes."""
        n_rows = require_rows(vectors, self.n_codes, ranks)
        for level in range(self.n_levels):
            x_ND = np.concatenate([block_BD for _, block_BD in vectors])
            first_KD = initial_centroids(vectors, n_rows, self.n_codes, self.init, self.seed, level, ranks)
            for iteration, (codebook_KD, codes_N, n_changed) in enumerate(balanced(x_ND, first_KD, self.n_iterations)):
                self.mse = float(np.square(x_ND - codebook_KD[codes_N], dtype=np.float64).mean())
                yield FitStep(level, iteration, self.mse, n_changed, 0)
            self.close_level(vectors, codebook_KD, codes_N)
            self.reseeds.append(0)


def balanced(x_ND: np.ndarray, codebook_KD: np.ndarray, n_iterations: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """After each iteration: the moved codes float32 (K, D), the items' codes int32 (N,), and how many items changed.

    x_ND, codebook_KD: float32. Ends when nothing changes, or after n_iterations. O(N K D / 2) an iteration, K passes over the
    items that are left.
    """
    sizes_K = np.full(len(codebook_KD), len(x_ND) // len(codebook_KD))
    sizes_K[: len(x_ND) % len(codebook_KD)] += 1
    half_N = np.square(x_ND).sum(axis=1) / 2
    codes_N = np.full(len(x_ND), -1, np.int32)
    for _ in range(n_iterations):
        before_N, (codebook_KD, codes_N) = codes_N, _take_turns(x_ND, half_N, codebook_KD, sizes_K)
        n_changed = int(np.count_nonzero(codes_N != before_N))
        yield codebook_KD, codes_N, n_changed
        if n_changed == 0:
            return


def _take_turns(
    x_ND: np.ndarray, half_N: np.ndarray, codebook_KD: np.ndarray, sizes_K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The moved codes and the items' codes, once each code in turn has taken its number of items. half_N: half the squared norm
    of each item."""
    moved_KD, codes_N = codebook_KD.copy(), np.full(len(x_ND), -1, np.int32)
    left = np.arange(len(x_ND))
    for begin in range(0, len(codebook_KD), _AT_ONCE):
        # half the squared distance, but for the code's own norm: rows are compared for one code at a time
        distance_NC = half_N[left, None] - x_ND[left] @ codebook_KD[begin : begin + _AT_ONCE].T
        for column, distance_N in enumerate(distance_NC.T):
            is_free = codes_N[left] < 0
            taken = left[_least(np.where(is_free, distance_N, np.inf), int(sizes_K[begin + column]))]
            codes_N[taken] = begin + column
            moved_KD[begin + column] = x_ND[taken].mean(axis=0, dtype=np.float64)
        left = left[codes_N[left] < 0]
    return moved_KD, codes_N


def _least(values: np.ndarray, n: int) -> np.ndarray:
    """Indices of the n least values, ties to the lower index."""
    if n == 0:
        return np.empty(0, np.int64)
    limit = np.partition(values, n - 1)[n - 1]
    below = np.flatnonzero(values < limit)
    return np.concatenate([below, np.flatnonzero(values == limit)[: n - len(below)]])
