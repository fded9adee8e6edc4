"""RQ-KMeans: codebooks fitted greedily, level by level, by plain Lloyd on the residuals of the levels before.

Source: OneRec Technical Report (arXiv 2506.13695 v4) section 2.1.2: r^1 = x; C^l = KMeans(r^l, K); s^l = argmin_k
||r^l - c_k||; r^(l+1) = r^l - c_(s^l). The source does not give initialisation, iterations and empty cells; the choices below
are ours and say so.

The invariant: codes and codebooks depend on the rows and the seed alone. Assignment is exact (nearest.py), and so are sums
(exact_sums.py); blocks, threads and ranks cannot matter.

Not here: early stopping by tolerance, mini-batches, and sub-sampling, all of which trade exactness for speed.
Legend: N rows of this rank, B rows of a block, P picked rows, K codes, L levels, D width.
"""

import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from kvtools.onerec.semantic_ids import collisions
from kvtools.onerec.semantic_ids.equal_rows import DistinctRows
from kvtools.onerec.semantic_ids.exact_sums import CellSums, Parts, Ranks, SquareSums, Vectors, pieces, power_of_two_above
from kvtools.onerec.semantic_ids.initial_centroids import Init, initial_centroids
from kvtools.onerec.semantic_ids.kernels import Kernels
from kvtools.onerec.semantic_ids.nearest import Backend, CodebookIndex

_STEP_ASIDE = 2.0**-6  # of the way to the farthest row: about half of a cell in 256 dimensions lies nearer to it


class OtherVectors(ValueError):
    """A stopped fit was begun with other vectors than those it is to go on with."""


@dataclass(frozen=True)
class FitStep:
    """One iteration of one level, both from 0."""

    level: int
    iteration: int
    objective: float  # mean squared distance to the code, a dimension, before the codes moved
    n_changed: int  # rows that changed their code
    n_reseeded: int  # codes of empty cells that were moved


@dataclass
class ResidualFit:
    """A fit of residual k-means under way, and afterwards its result; `codes_NL` int32 are of the rows held here."""

    n_levels: int
    n_codes: int
    n_iterations: int
    seed: int
    init: Init = "k-means++"
    codebooks: list[np.ndarray] = field(default_factory=list)  # float32 (K, D) of each level done
    reseeds: list[int] = field(default_factory=list)  # a level: codes of empty cells that were moved
    mse: float = math.nan  # a dimension, of the whole reconstruction
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)  # of what vectors go through before the codebooks: nothing
    _codes: list[np.ndarray] = field(default_factory=list)

    @property
    def codes_NL(self) -> np.ndarray:
        """int32 (N, L)."""
        return np.stack(self._codes, axis=1)

    def close_level(self, residuals: Vectors, codebook_KD: np.ndarray, codes_N: np.ndarray) -> None:
        """Keep the codes of a level, and subtract them from the residuals; codes_N: int32."""
        residuals.subtract(codes_N, codebook_KD)
        self.codebooks.append(codebook_KD)
        self._codes.append(codes_N)

    def move_collisions(self, residuals: Vectors, codes_NL: np.ndarray, ranks: Ranks) -> tuple[np.ndarray, float, int]:
        """int32 (N, L) codes of all ranks' rows without collisions as far as may be; the error then, a dimension; and how many
        rows found no free code. residuals: what the fit left. codes_NL: int32, of all ranks. A collective."""
        rows_P = collisions.colliding(codes_NL)
        left_PD = ranks.sum_array(residuals.pick(rows_P)).astype(np.float64)
        moved_NL, n_stuck, before, after = collisions.move_residuals(codes_NL, rows_P, left_PD, self.codebooks[-1])
        return moved_NL, self.mse + (after - before) / (len(codes_NL) * residuals.n_width), n_stuck


@dataclass
class RqKMeans(ResidualFit):
    """RQ-KMeans. Between two steps `state` is all there is to know: another object that resumes it goes on to the same end."""

    is_parallel: ClassVar[bool] = True
    can_resume: ClassVar[bool] = True
    begun: tuple[int, np.ndarray] | None = None  # of the level under way: iterations done, codes now
    digest: int | None = None  # of the rows and their order: tells whether they are those the fit was begun with

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The fit as it stands between two steps: tensors, and fields of JSON."""
        n_width = (self.begun[1] if self.begun else self.codebooks[0]).shape[1]
        tensors = {"done": np.array(self.codebooks, np.float32).reshape(len(self.codebooks), self.n_codes, n_width)}
        if self.begun:
            tensors["begun"] = self.begun[1]
        iteration = self.begun[0] if self.begun else 0
        return tensors, {"reseeds": self.reseeds, "iteration": iteration, "digest": self.digest}

    def resume(self, tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.codebooks = [np.array(codebook_KD) for codebook_KD in tensors["done"]]
        self.reseeds, self.digest = list(fields["reseeds"]), fields["digest"]
        if "begun" in tensors:
            self.begun = (fields["iteration"], np.array(tensors["begun"]))

    def fit(self, vectors: Vectors, backend: Backend, ranks: Ranks) -> Iterator[FitStep]:
        """Fit all levels; afterwards `vectors` are the residuals. A collective.

        Raises ValueError for fewer rows than codes, OtherVectors for others than those of the state it resumes. Time O(N K D)
        an iteration; memory O(K D) beside the rows.
        """
        n_rows = require_rows(vectors, self.n_codes, ranks)
        squares, distinct = SquareSums(vectors, n_rows, ranks), DistinctRows(vectors)
        digest = int(ranks.sum_array(distinct.digest)[0])
        if self.digest not in (None, digest):
            raise OtherVectors("the stopped run had other vectors")
        self.digest = digest
        done, self.codebooks = self.codebooks, []
        for codebook_KD in done:
            self.close_level(vectors, codebook_KD, assign_codes(vectors, CodebookIndex(codebook_KD, backend), distinct))
            squares = SquareSums(vectors, n_rows, ranks)
        for level in range(len(done), self.n_levels):
            if squares.total == 0:  # all vectors are reconstructed, and nothing is left to quantise
                yield from self._empty_levels(vectors, level)
                break
            if self.begun is None:
                self.begun = (0, initial_centroids(vectors, n_rows, self.n_codes, self.init, self.seed, level, ranks))
                self.reseeds.append(0)
            codes_N = yield from self._lloyd(vectors, level, squares, distinct, backend, n_rows, ranks)
            codebook_KD, self.begun = self.begun[1], None
            self.close_level(vectors, codebook_KD, codes_N)
            squares = SquareSums(vectors, n_rows, ranks)
        self.mse = squares.total / (n_rows * vectors.n_width)

    def _empty_levels(self, vectors: Vectors, first: int) -> Iterator[FitStep]:
        """The levels from `first` on, of residuals that are all 0: every row gets code 0, the origin."""
        for level in range(first, self.n_levels):
            origin_KD = np.zeros((self.n_codes, vectors.n_width), np.float32)
            self.close_level(vectors, origin_KD, np.zeros(len(vectors), np.int32))
            self.reseeds.append(0)
            yield FitStep(level, 0, 0.0, 0, 0)

    def _lloyd(
        self, vectors: Vectors, level: int, squares: SquareSums, distinct: DistinctRows, backend: Backend, n_rows: int,
        ranks: Ranks,
    ) -> Generator[FitStep, None, np.ndarray]:  # fmt: skip
        """Iterate until nothing moves; the codes of the last assignment, which are of the codebook as it then stands."""
        cells = CellSums(self.n_codes, vectors.n_width, squares.parts, Kernels() if backend.is_compiled else None)
        codes_N: np.ndarray | None = None
        stage = 0
        while True:
            assert self.begun is not None, "a level begins with its initial centroids"
            iteration, codebook_KD = self.begun
            index = CodebookIndex(codebook_KD, backend, stage=stage)
            before_N, codes_N = codes_N, assign_codes(vectors, index, distinct, codes_N, cells)
            # what was hard may have become easier; to find out costs a few rows, so it is done ever more seldom
            stage = max(0, index.stage - (iteration & (iteration + 1) == 0))
            is_moved = np.ones(len(vectors), bool) if before_N is None else codes_N != before_N
            n_changed = int(ranks.sum_array(np.array([is_moved.sum()]))[0])
            sums_KD, counts_K = cells.sums(ranks), ranks.sum_array(cells.counts_K)
            objective = squares.objective(codebook_KD, sums_KD, counts_K) / (n_rows * vectors.n_width)
            moved_KD, n_reseeded = codebook_KD, 0
            if iteration < self.n_iterations:
                is_filled = counts_K > 0
                moved_KD = codebook_KD.copy()
                moved_KD[is_filled] = sums_KD[is_filled] / counts_K[is_filled, None]
                n_reseeded = _reseed(vectors, codes_N, codebook_KD, moved_KD, ~is_filled, ranks)
            if np.array_equal(moved_KD, codebook_KD):
                yield FitStep(level, iteration, objective, n_changed, 0)
                return codes_N
            self.reseeds[-1] += n_reseeded
            self.begun = (iteration + 1, moved_KD)
            yield FitStep(level, iteration, objective, n_changed, n_reseeded)


def require_rows(vectors: Vectors, n_codes: int, ranks: Ranks) -> int:
    """How many rows all ranks have together. Raises ValueError where they are fewer than codes."""
    n_rows = int(ranks.sum_array(np.array([len(vectors)]))[0])
    if n_rows < n_codes:
        raise ValueError(f"{n_rows} vectors are too few for {n_codes} codes")
    return n_rows


def assign_codes(
    vectors: Vectors, index: CodebookIndex, distinct: DistinctRows, guess_N: np.ndarray | None = None,
    cells: CellSums | None = None,
) -> np.ndarray:  # fmt: skip
    """int32 (N,): the nearest code of each row. guess_N: int32 codes to begin with; cells stand as these have it, and are
    brought up to date."""
    codes_N = np.empty(len(vectors), np.int32)
    for begin, block_BD in vectors:
        rows = slice(begin, begin + len(block_BD))
        guess_B = None if guess_N is None else guess_N[rows]
        codes_N[rows] = distinct.apply(begin, index.nearest, block_BD, guess_B)
        if cells is not None:
            cells.move(block_BD, guess_B, codes_N[rows])
    return codes_N


def encode(x_BD: np.ndarray, indexes: list[CodebookIndex]) -> tuple[np.ndarray, np.ndarray]:
    """int32 (B, L) codes of rows, float32, by the codebooks of L levels; and their residuals, float32 (B, D)."""
    left_BD = x_BD.copy()
    codes_BL = np.empty((len(x_BD), len(indexes)), np.int32)
    for level, index in enumerate(indexes):
        codes_BL[:, level] = index.nearest(left_BD)
        left_BD -= index.codes_KD[codes_BL[:, level]]
    return codes_BL, left_BD


def _reseed(
    vectors: Vectors, codes_N: np.ndarray, codebook_KD: np.ndarray, moved_KD: np.ndarray, is_empty_K: np.ndarray, ranks: Ranks
) -> int:
    """Put the codes of empty cells, in order, into the cells with the largest error, a little way from the mean towards the
    farthest row, so that the next assignment halves them. Our choice: the report names none, and rows far out, which many
    implementations take, are often alone. Returns how many were put somewhere; where all errors are 0 none is. Collective."""
    empty = np.flatnonzero(is_empty_K)
    if not len(empty):
        return 0
    distance_N = np.empty(len(vectors))
    for begin, block_BD in vectors:
        squares = [
            np.square(piece_BD.astype(np.float64) - codebook_KD[codes_B]).sum(axis=1)
            for piece_BD, codes_B in zip(pieces(block_BD), pieces(codes_N[begin : begin + len(block_BD)]), strict=True)
        ]
        distance_N[begin : begin + len(block_BD)] = np.concatenate(squares) if squares else 0
    largest = power_of_two_above(distance_N.max(initial=0.0, keepdims=True), ranks)
    # rounded as everything that is added up is, so that the order cannot matter
    exact_N = Parts(largest, int(ranks.sum_array(np.array([len(vectors)]))[0])).round(distance_N)
    error_K = ranks.sum_array(np.bincount(codes_N, weights=exact_N, minlength=len(codebook_KD)))
    cells: list[int] = []
    while len(cells) < len(empty) and error_K.max() > 0:
        cells.append(int(error_K.argmax()))
        error_K[cells[-1]] /= 2
    numbers_P, cells_P = _farthest(distance_N, codes_N, vectors.row_numbers, Counter(cells), ranks)
    far_PD = ranks.sum_array(vectors.pick(numbers_P))
    moved_KD[empty[: len(cells_P)]] = moved_KD[cells_P] + (far_PD - moved_KD[cells_P]) * _STEP_ASIDE
    return len(cells_P)


def _farthest(
    distance_N: np.ndarray, codes_N: np.ndarray, row_numbers_N: np.ndarray, wanted: Mapping[int, int], ranks: Ranks
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (P,) and cells (P,): of each wanted cell so many rows, the farthest first, ties to the lower number; none at
    distance 0. A collective."""
    mine: list[np.ndarray] = [np.empty(0, np.int64)]
    for cell, n_wanted in wanted.items():
        rows = np.flatnonzero((codes_N == cell) & (distance_N > 0))
        mine.append(rows[np.lexsort((row_numbers_N[rows], -distance_N[rows]))[:n_wanted]])
    rows = np.concatenate(mine)
    distances, numbers = ranks.gather_array(distance_N[rows]), ranks.gather_array(row_numbers_N[rows])
    cells = ranks.gather_array(codes_N[rows])
    order = np.lexsort((numbers, -distances, cells))
    cells, numbers = cells[order], numbers[order]
    rank = np.arange(len(cells)) - np.searchsorted(cells, cells)  # within the cell
    kept = rank < np.array([wanted[cell] for cell in cells.tolist()], np.int64)
    return numbers[kept], cells[kept]
