"""RQ-KMeans: codebooks fitted greedily, level by level, by plain Lloyd on what the levels before left over.

Source: OneRec Technical Report (arXiv 2506.13695 v4) section 2.1.2: r^1 = x; C^l = KMeans(r^l, K); s^l = argmin_k
||r^l - c_k||; r^(l+1) = r^l - c_(s^l). Initialisation, iterations and empty cells are not found in the source; the choices
below are ours and said to be.

The invariant: codes and codebooks depend on the rows and the seed alone. Assignment is exact (nearest.py). Sums are exact
too: every value is rounded to a multiple of one power of two, chosen so that no sum of them exceeds float64's 53 bits, so
the order of addition, and with it blocks, threads and ranks, cannot matter, and what moved can be added and taken away. The
rounding is 2^-34 of the largest value for 200,000 rows, far under float32's own.

Not here: early stopping by tolerance, mini-batches, and sub-sampling, all of which trade exactness for speed.
Legend: N rows, K codes, L levels, D width.
"""

import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch

from kvtools.chance import rng_for
from kvtools.onerec.semantic_ids.nearest import Codebook, Filter

Init = Literal["k-means++", "random"]

_SAMPLE_BYTES = 64 << 20  # of rows that seeds are drawn from
_SAMPLE_ROWS = 64  # for each code, at most
_SEEDING_BYTES = 8e9  # memory traffic a level's seeding may cost; beyond, several seeds are drawn at once
_INT = 2**15 - 1
_PART_ROWS = 1 << 12
_STEP_ASIDE = 2.0**-6  # of the way to the farthest row: about half of a cell in 256 dimensions lies nearer to it


class Rows(Protocol):
    """Vectors to be gone through in blocks; artifact.rows.Rows is one, in memory or on disk."""

    n_width: int

    def __len__(self) -> int: ...
    @property
    def numbers(self) -> np.ndarray: ...
    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]: ...
    def take_away(self, codes_N: np.ndarray, codebook_KD: np.ndarray) -> None: ...
    def pick(self, numbers: np.ndarray) -> np.ndarray: ...


class Peers(Protocol):
    """Those who share the rows among them; World is one."""

    def sum_array(self, array: np.ndarray) -> np.ndarray: ...
    def gather_array(self, array: np.ndarray) -> np.ndarray: ...


class Alone:
    """The peers of one who holds all rows."""

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        return array

    def gather_array(self, array: np.ndarray) -> np.ndarray:
        return array


@dataclass(frozen=True)
class Step:
    """One iteration of one level, both from 0: what it cost before, rows that changed their code, cells re-seeded."""

    level: int
    iteration: int
    objective: float  # mean squared distance to the code, a dimension, before the codes moved
    n_changed: int
    n_reseeded: int


@dataclass
class RqKMeans:
    """A fit under way, and afterwards its result: `codebooks_LKD` float32 and `codes_NL` int32 of the rows held here.

    Iterate `fit` for its steps. Between two of them `codebooks`, `begun` and `reseeds` are all there is to know: another
    object with the same three goes on to the same end.
    """

    n_levels: int
    n_codes: int
    n_iterations: int
    seed: int
    init: Init = "k-means++"
    peers: Peers = field(default_factory=Alone)
    codebooks: list[np.ndarray] = field(default_factory=list)  # of the levels done
    begun: tuple[int, np.ndarray] | None = None  # of the level under way: iterations done, codes now
    reseeds: list[int] = field(default_factory=list)
    total_square: float | None = None  # of the rows, exact: tells whether they are those the fit was begun with
    mse: float = math.nan  # a dimension, of the whole reconstruction
    _codes: list[np.ndarray] = field(default_factory=list)

    @property
    def codebooks_LKD(self) -> np.ndarray:
        return np.stack(self.codebooks)

    @property
    def codes_NL(self) -> np.ndarray:
        return np.stack(self._codes, axis=1)

    def fit(self, rows: Rows, chosen: Filter) -> Iterator[Step]:
        """Fit all levels; afterwards `rows` are the residuals.

        Raises ValueError for fewer rows than codes. Time O(N K D) an iteration; memory O(K D) beside the rows.
        """
        n_rows = int(self.peers.sum_array(np.array([len(rows)]))[0])
        if n_rows < self.n_codes:
            raise ValueError(f"{n_rows} rows found, at least one for each of {self.n_codes} codes expected")
        grid = _Grid.of(rows, n_rows, self.peers)
        if self.total_square not in (None, grid.total_square):
            raise ValueError("an unfinished run with other vectors found, the same expected")
        self.total_square = grid.total_square
        for codebook_KD in self.codebooks:
            self._finish(rows, codebook_KD, assign(rows, Codebook(codebook_KD, chosen)))
            grid = _Grid.of(rows, n_rows, self.peers)
        for level in range(len(self.codebooks), self.n_levels):
            if self.begun is None:
                self.begun = (0, seeds(rows, n_rows, self.n_codes, self.init, self.seed, level, self.peers))
                self.reseeds.append(0)
            codes_N = yield from self._lloyd(rows, level, grid, chosen, n_rows)
            codebook_KD, self.begun = self.begun[1], None
            self.codebooks.append(codebook_KD)
            self._finish(rows, codebook_KD, codes_N)
            grid = _Grid.of(rows, n_rows, self.peers)
        self.mse = grid.total_square / (n_rows * rows.n_width)

    def _finish(self, rows: Rows, codebook_KD: np.ndarray, codes_N: np.ndarray) -> None:
        rows.take_away(codes_N, codebook_KD)
        self._codes.append(codes_N)

    def _lloyd(self, rows: Rows, level: int, grid: "_Grid", chosen: Filter, n_rows: int) -> Generator[Step, None, np.ndarray]:
        """Iterate until nothing moves; the codes of the last assignment, which are of the codebook as it then stands."""
        cells = _Cells(self.n_codes, rows.n_width, grid)
        codes_N: np.ndarray | None = None
        stage = 0
        while True:
            assert self.begun is not None, "a level begins with its seeds"
            iteration, codebook_KD = self.begun
            search = Codebook(codebook_KD, chosen, stage=stage)
            before_N, codes_N = codes_N, assign(rows, search, codes_N, cells)
            stage = max(0, search.stage - 1)  # what was hard may have become easier; to find out costs a few rows
            is_moved = np.ones(len(rows), bool) if before_N is None else codes_N != before_N
            n_changed = int(self.peers.sum_array(np.array([is_moved.sum()]))[0])
            sums_KD, counts_K = self.peers.sum_array(cells.sums_KD), self.peers.sum_array(cells.counts_K)
            objective = grid.objective(codebook_KD, sums_KD, counts_K) / (n_rows * rows.n_width)
            if iteration == self.n_iterations:
                yield Step(level, iteration, objective, n_changed, 0)
                return codes_N
            moved_KD = codebook_KD.copy()
            is_filled = counts_K > 0
            moved_KD[is_filled] = sums_KD[is_filled] / counts_K[is_filled, None]
            n_reseeded = self._reseed(rows, codes_N, codebook_KD, moved_KD, ~is_filled)
            if np.array_equal(moved_KD, codebook_KD):
                yield Step(level, iteration, objective, n_changed, 0)
                return codes_N
            self.reseeds[-1] += n_reseeded
            self.begun = (iteration + 1, moved_KD)
            yield Step(level, iteration, objective, n_changed, n_reseeded)

    def _reseed(
        self, rows: Rows, codes_N: np.ndarray, codebook_KD: np.ndarray, moved_KD: np.ndarray, is_empty: np.ndarray
    ) -> int:
        """Put the codes of empty cells, in order, into the cells with the largest error, a little way from the mean towards
        the farthest row, so that the next assignment halves them. Our choice: the report names none, and rows far out, which
        many steal, are often alone. Returns how many found a place; where all errors are 0 none does."""
        empty = np.flatnonzero(is_empty)
        if not len(empty):
            return 0
        distance_N = np.empty(len(rows))
        for begin, block_BD in rows:
            for row in range(0, len(block_BD), _PART_ROWS):
                part_BD = block_BD[row : row + _PART_ROWS].astype(np.float64)
                some = slice(begin + row, begin + row + len(part_BD))
                distance_N[some] = np.square(part_BD - codebook_KD[codes_N[some]]).sum(axis=1)
        largest = _power_above(float(distance_N.max(initial=0.0)), self.peers)
        # rounded as everything that is added up is, so that the order cannot matter
        exact_N = _rounded(distance_N, _magic(largest, int(self.peers.sum_array(np.array([len(rows)]))[0])))
        error_K = self.peers.sum_array(np.bincount(codes_N, weights=exact_N, minlength=len(codebook_KD)))
        cells: list[int] = []
        while len(cells) < len(empty) and error_K.max() > 0:
            cells.append(int(error_K.argmax()))
            error_K[cells[-1]] /= 2
        numbers, found = _farthest(distance_N, codes_N, rows.numbers, Counter(cells), self.peers)
        far_PD = self.peers.sum_array(rows.pick(numbers))
        moved_KD[empty[: len(found)]] = moved_KD[found] + (far_PD - moved_KD[found]) * _STEP_ASIDE
        return len(found)


def seeds(rows: Rows, n_rows: int, n_codes: int, init: Init, seed: int, level: int, peers: Peers) -> np.ndarray:
    """The first codes of a level, float32 (K, D): rows drawn from a sample of all n_rows, the same for everyone."""
    chance = rng_for(seed, "semid-build", "init", level)
    n_sample = n_codes
    if init == "k-means++":
        n_sample = max(n_codes, min(_SAMPLE_ROWS * n_codes, _SAMPLE_BYTES // (4 * rows.n_width)))
    numbers = np.sort(chance.choice(n_rows, size=min(n_sample, n_rows), replace=False))
    sample_RD = peers.sum_array(rows.pick(numbers))
    return sample_RD if init == "random" else sample_RD[plus_plus(sample_RD, n_codes, chance)]


def assign(rows: Rows, search: Codebook, guess_N: np.ndarray | None = None, cells: "_Cells | None" = None) -> np.ndarray:
    """The nearest code of each row, int32 (N,); cells, which stand as the guesses have it, are brought up to date."""
    codes_N = np.empty(len(rows), np.int32)
    for begin, block_BD in rows:
        some = slice(begin, begin + len(block_BD))
        guess_B = None if guess_N is None else guess_N[some]
        codes_N[some] = search.nearest(block_BD, guess_B)
        if cells is not None:
            cells.move(block_BD, guess_B, codes_N[some])
    return codes_N


def encode(x_BD: np.ndarray, searches: list[Codebook]) -> tuple[np.ndarray, np.ndarray]:
    """Codes int32 (B, L) of rows, by codebooks made ready; also what is left over, float32 (B, D)."""
    left_BD = x_BD.copy()
    codes_BL = np.empty((len(x_BD), len(searches)), np.int32)
    for level, search in enumerate(searches):
        codes_BL[:, level] = search.nearest(left_BD)
        left_BD -= search.codes_KD[codes_BL[:, level]]
    return codes_BL, left_BD


def plus_plus(x_RD: np.ndarray, n_codes: int, chance: np.random.Generator) -> np.ndarray:
    """Rows to begin with, int64 (K,), distinct: k-means++ (Arthur & Vassilvitskii 2007), each drawn in proportion to its
    squared distance to those drawn before; of 2 + ln K draws the one that leaves least, as their section 5 proposes.

    Distances are exact integers of rows rounded to 16 bits, so that every machine draws the same. Where one at a time would
    take too many passes over the rows, several are drawn and kept at once, as k-means|| does (Bahmani et al. 2012).
    """
    largest = float(np.abs(x_RD).max(initial=0.0)) or 1.0
    whole_RD = np.rint(x_RD * (_INT / largest)).astype(np.float64)
    norm_R = np.square(whole_RD).sum(axis=1)
    n_at_once = math.ceil(whole_RD.nbytes * n_codes / _SEEDING_BYTES)
    chosen = [int(chance.integers(len(x_RD)))]
    apart_R = _apart(whole_RD, norm_R, np.array(chosen))[:, 0]
    while len(chosen) < n_codes:
        reached_R = np.cumsum(apart_R.astype(np.int64))
        if reached_R[-1] == 0:  # fewer distinct rows than codes: the rest lie on others, and stay empty
            rest = np.setdiff1d(np.arange(len(x_RD)), chosen)[: n_codes - len(chosen)]
            return np.array([*chosen, *rest])
        n_draws = 2 + int(math.log(n_codes)) if n_at_once == 1 else min(n_at_once, n_codes - len(chosen))
        draws = chance.integers(reached_R[-1], size=n_draws)
        fresh = np.unique(np.searchsorted(reached_R, draws, side="right"))
        left_RM = np.minimum(apart_R[:, None], _apart(whole_RD, norm_R, fresh))
        if n_at_once == 1:
            best = int(left_RM.astype(np.int64).sum(axis=0).argmin())
            fresh, left_RM = fresh[best : best + 1], left_RM[:, best : best + 1]
        apart_R = left_RM.min(axis=1)
        chosen += fresh.tolist()
    return np.array(chosen)


def _apart(whole_RD: np.ndarray, norm_R: np.ndarray, rows_M: np.ndarray) -> np.ndarray:
    """Squared distances (R, M) of all rows to some of them; exact, being sums of integers below 2^53."""
    apart_RM: np.ndarray = norm_R[:, None] - 2 * (whole_RD @ whole_RD[rows_M].T) + norm_R[rows_M]
    return apart_RM


@dataclass(frozen=True)
class _Grid:
    """Multiples of a power of two to which values are rounded so that their sums are exact."""

    magic: float  # adding and subtracting it rounds
    total_square: float  # of all rows, of everyone

    @staticmethod
    def of(rows: Rows, n_rows: int, peers: Peers) -> "_Grid":
        largest, squares = 0.0, []
        for _, block_BD in rows:
            largest = max(largest, float(np.abs(block_BD).max(initial=0.0)))
            squares += [np.square(part_BD, dtype=np.float64).sum(axis=1) for part_BD in _parts(block_BD)]
        largest = _power_above(largest, peers)
        total = sum(float(_rounded(square_B, _magic(rows.n_width * largest**2, n_rows)).sum()) for square_B in squares)
        return _Grid(_magic(largest, n_rows), float(peers.sum_array(np.array([total]))[0]))

    def objective(self, codebook_KD: np.ndarray, sums_KD: np.ndarray, counts_K: np.ndarray) -> float:
        """The sum of squared distances of all rows to their codes, from the cells' sums."""
        wide_KD = codebook_KD.astype(np.float64)
        gain = float((wide_KD * (2 * sums_KD - counts_K[:, None] * wide_KD)).sum())
        return max(0.0, self.total_square - gain)


class _Cells:
    """Sums and sizes of the cells, kept up as rows move between them; exact, see the module's invariant."""

    def __init__(self, n_codes: int, n_width: int, grid: _Grid) -> None:
        self._magic = grid.magic
        self._sums_KD = torch.zeros((n_codes, n_width), dtype=torch.float64)
        self.counts_K = np.zeros(n_codes, np.int64)

    @property
    def sums_KD(self) -> np.ndarray:
        return self._sums_KD.numpy()

    def move(self, x_BD: np.ndarray, old_B: np.ndarray | None, new_B: np.ndarray) -> None:
        """Rows leave their old cells, where they had one, for their new ones."""
        for moved in _parts(np.arange(len(x_BD)) if old_B is None else np.flatnonzero(old_B != new_B)):
            values = torch.from_numpy(x_BD[moved]).double().add_(self._magic).sub_(self._magic)
            for cells, sign in ((new_B, 1), (old_B, -1)):
                if cells is not None:
                    self._sums_KD.index_add_(0, torch.from_numpy(cells[moved]), values, alpha=sign)
                    self.counts_K += sign * np.bincount(cells[moved], minlength=len(self.counts_K))


def _parts(array: np.ndarray) -> list[np.ndarray]:
    """An array in pieces of which float64 copies are small."""
    return [array[begin : begin + _PART_ROWS] for begin in range(0, len(array), _PART_ROWS)]


def _magic(largest: float, n_rows: int) -> float:
    # values up to `largest`, n_rows of them: sums below 2^e; one unit is 2^(e - 52), and 1.5 * 2^e has that for last place
    return 1.5 * 2.0 ** math.ceil(math.log2(largest * max(2, n_rows)) + 1) if largest else 0.0


def _rounded(values: np.ndarray, magic: float) -> np.ndarray:
    return (values + magic) - magic


def _power_above(largest: float, peers: Peers) -> float:
    """The power of two at or above everyone's largest value; 0 where all are 0."""
    largest = float(peers.gather_array(np.array([largest])).max())
    return 2.0 ** math.ceil(math.log2(largest)) if largest else 0.0


def _farthest(
    distance_N: np.ndarray, codes_N: np.ndarray, numbers_N: np.ndarray, wanted: Mapping[int, int], peers: Peers
) -> tuple[np.ndarray, np.ndarray]:
    """Of each wanted cell so many rows, by number, and the cells they are of: the farthest first, ties to the lower number;
    none at distance 0."""
    mine: list[np.ndarray] = []
    for cell, n_wanted in wanted.items():
        rows = np.flatnonzero((codes_N == cell) & (distance_N > 0))
        mine.append(rows[np.lexsort((numbers_N[rows], -distance_N[rows]))[:n_wanted]])
    rows = np.concatenate(mine) if mine else np.empty(0, np.int64)
    distances, numbers = peers.gather_array(distance_N[rows]), peers.gather_array(numbers_N[rows])
    cells = peers.gather_array(codes_N[rows])
    order = np.lexsort((numbers, -distances, cells))
    kept, n_taken = [], Counter[int]()
    for place in order.tolist():
        n_taken[int(cells[place])] += 1
        if n_taken[int(cells[place])] <= wanted[int(cells[place])]:
            kept.append(place)
    return numbers[kept], cells[kept]
