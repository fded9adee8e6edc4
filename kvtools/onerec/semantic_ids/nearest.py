"""The nearest code of every row, exactly: a cheap matrix product leaves a few candidates, float64 decides among them.

Each row comes with a guess, its code of the iteration before. A blocked product in bfloat16 (four times float32's speed on
AVX512-BF16 and on GPUs) or in float32 gives, for every code, an upper bound on how much better it is than the guess: the
bounds on rounding are further columns of the product (centred_codes.py), so that the sign bit marks a candidate. Most rows
have none and keep their guess; the others are decided by differences in float32, and what is still too close by float64. So
the answer is that of exact arithmetic, whatever the machine, the block size, the number of threads or the precision: the
invariant to keep is that every bound is a proof, never an estimate. N x K scores are never held, one block of them is.

Legend: N rows, B rows of a block, K codes, D width, E width with the bounds' columns, G centres, P pairs (row, candidate).
Source of the expansion argmin ||x - c||^2 = argmax x.c - ||c||^2 / 2: Lloyd 1982; of the float bounds: Higham, "Accuracy
and Stability of Numerical Algorithms", 2nd ed., section 3.1. The combination is ours.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from kvtools.onerec.semantic_ids import kernels
from kvtools.onerec.semantic_ids.centred_codes import BLOCK_BYTES, SIGNED, Buffers, CentredCodes
from kvtools.onerec.semantic_ids.equal_rows import equal_rows

_P = TypeVar("_P")
_T = TypeVar("_T")

_MANY = 4  # candidates a row, from which a better guess costs less than deciding among them
_TOO_MANY = (1.5, 8.0)  # candidates a row on stages 0 and 1, from which the next stage is cheaper …
_TOO_MANY_ROWS = 1 << 13  # … counted as if there were at least so many rows
_MANY_SCORES = 2e9  # a second's work: compiled passes take half a second to load
_CENTRES = 8
_CENTRE_STEPS = 3
_CENTRES_BYTES = 96 << 20


@dataclass(frozen=True)
class Backend:
    """The device and the precision that candidates are found with, and whether compiled passes read their scores.

    The choice changes the speed, not the answer.
    """

    device: torch.device
    dtype: torch.dtype
    is_compiled: bool = False

    def __str__(self) -> str:
        return f"{self.device.type} {str(self.dtype).removeprefix('torch.')}{', compiled passes' if self.is_compiled else ''}"


def fastest(device: str, n_width: int, n_codes: int, n_scores: float = 0) -> Backend:
    """bfloat16 or float32, whichever multiplies a block of this shape sooner on this device; measured on the spot.

    n_scores: how many will be made in all; for few, compiled passes are not worth loading.
    """
    seconds: dict[torch.dtype, float] = {}
    on = torch.device(device)
    if on.type == "cuda":  # sums must be kept in float32, or no bound on them holds
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    n_rows = max(256, min(2048, (1 << 28) // (n_width * n_codes)))
    for dtype in SIGNED:
        x_BD, c_KD = (torch.ones((n, n_width), dtype=dtype, device=on) for n in (n_rows, n_codes))
        for _ in range(3):  # the first call prepares kernels
            begun = time.perf_counter()
            float(torch.mm(x_BD, c_KD.T)[0, 0])
            seconds[dtype] = min(seconds.get(dtype, 1e9), time.perf_counter() - begun)
    dtype = min(seconds, key=lambda dtype: seconds[dtype])
    return Backend(on, dtype, on.type == "cpu" and n_scores >= _MANY_SCORES and kernels.are_there())


class CodebookIndex:
    """Codes (K, D) prepared for searches. `nearest` may be called often.

    Rounding errors grow with the distance of rows and codes from the centre that is subtracted from both. Where that leaves
    too many candidates, `stage` rises: on stage 1 codes are centred at several centres, each row at the one that its guess
    belongs to, and on stage 2 in float32. The stage a search ended on tells where to begin the next.
    """

    def __init__(self, codes_KD: np.ndarray, backend: Backend, *, stage: int = 0) -> None:
        """codes_KD: float32, finite, below 1e15 in size. stage: 0, 1 or 2; the answer is the same."""
        # of equal codes the first wins every tie, and the others would be candidates of every row near them
        self._first_K, self._number_of_code = equal_rows(np.asarray(codes_KD, np.float32))
        self.codes_KD = np.array(codes_KD, dtype=np.float32)
        self._distinct_KD = self.codes_KD[self._first_K]
        self.stage = stage
        self._backend = backend
        self._codes_KD = torch.from_numpy(self._distinct_KD).to(backend.device)
        self._buffers = Buffers(backend.device)
        self._kernels = kernels.Kernels() if backend.is_compiled else None
        mean_D = self._codes_KD.double().mean(0).float()
        self._whole = CentredCodes(self._codes_KD, mean_D, backend.dtype, self._buffers, self._kernels)
        self._centred = [self._whole]
        self._centre_of_K = np.zeros(len(self._distinct_KD), np.int64)
        self._counting = threading.Lock()
        self._n_rows = self._n_candidates = 0  # so far on this stage
        if stage:
            self._take_several_centres()

    def nearest(self, x_ND: np.ndarray, guess_N: np.ndarray | None = None) -> np.ndarray:
        """int32 (N,): the number of the code nearest to each row; squared Euclidean distance, ties to the lower number.

        x_ND: float32, finite, below 1e15 in size. guess_N: any codes; the better they are, the sooner it is done.
        O(N K D) time; memory of a few blocks, of each thread where passes are compiled, and of 8 bytes a row.
        """
        nearest_N = self._guess(x_ND) if guess_N is None else self._number_of_code[guess_N].astype(np.int32)
        # codes that are nearest already stay so on the next stage; there are three stages at most
        while not self._correct(x_ND, nearest_N):
            self.stage += 1
            self._take_several_centres()
        return np.asarray(self._first_K[nearest_N], np.int32)

    def _guess(self, x_ND: np.ndarray) -> np.ndarray:
        guess_N = np.empty(len(x_ND), np.int32)

        def guess(rows: slice) -> None:
            guess_N[rows] = self._whole.guess(self._on_device(x_ND[rows])).cpu().numpy()

        self._each(guess, _slices(len(x_ND), self._whole.n_block))
        return guess_N

    def _correct(self, x_ND: np.ndarray, nearest_N: np.ndarray) -> bool:
        """Replace each row's guess by its nearest code; False as soon as the candidates are too many for this stage."""
        correct = self._search if self._kernels is None else self._settle

        def is_corrected(block: tuple[CentredCodes, slice | np.ndarray]) -> bool:
            return not self._are_too_many() and correct(block[0], x_ND, nearest_N, block[1])

        return all(self._each(is_corrected, self._blocks(nearest_N)))

    def _each(self, work: Callable[[_P], _T], blocks: Iterable[_P]) -> list[_T]:
        """The results of work on each block: one after the other for torch's passes, which take all threads for each."""
        return [*map(work, blocks)] if self._kernels is None else kernels.in_threads(work, blocks)

    def _search(self, centred: CentredCodes, x_ND: np.ndarray, nearest_N: np.ndarray, rows: slice | np.ndarray) -> bool:
        """What `_correct` does with a block, by torch's passes."""
        x_BD = self._on_device(x_ND[rows])
        guess_B = torch.from_numpy(nearest_N[rows]).long().to(x_BD.device)
        row_P, code_P = centred.candidates(x_BD, guess_B)
        if len(row_P) > _MANY * len(x_BD):
            guess_B = self._whole.guess(x_BD)
            nearest_N[rows] = guess_B.cpu().numpy()  # kept where no candidate is left
            row_P, code_P = centred.candidates(x_BD, guess_B)
        if self._are_too_many(len(x_BD), len(row_P)):
            return False
        if len(row_P):
            nearest_N[rows] = self._decide(x_BD, guess_B, row_P, code_P)
        return True

    def _settle(self, centred: CentredCodes, x_ND: np.ndarray, nearest_N: np.ndarray, rows: slice | np.ndarray) -> bool:
        """The same by compiled passes."""
        rows_B: np.ndarray = np.r_[rows]
        n_candidates, is_left_B = centred.settle(x_ND, rows_B, nearest_N, self._distinct_KD)
        if n_candidates > _MANY * len(rows_B):
            nearest_N[rows_B] = self._whole.guess(torch.from_numpy(x_ND[rows_B])).numpy()
            n_candidates, is_left_B = centred.settle(x_ND, rows_B, nearest_N, self._distinct_KD)
        if self._are_too_many(len(rows_B), n_candidates):
            return False
        all_left = rows_B[is_left_B]
        for part in _slices(len(all_left), centred.n_whole_block):
            left = all_left[part]
            x_BD, guess_B = torch.from_numpy(x_ND[left]), torch.from_numpy(nearest_N[left]).long()
            nearest_N[left] = self._decide(x_BD, guess_B, *centred.candidates(x_BD, guess_B))
        return True

    def _are_too_many(self, n_rows: int = 0, n_candidates: int = 0) -> bool:
        """Count a block's, and tell whether the next stage is cheaper."""
        with self._counting:
            self._n_rows += n_rows
            self._n_candidates += n_candidates
        return self.stage < len(_TOO_MANY) and self._n_candidates > _TOO_MANY[self.stage] * max(_TOO_MANY_ROWS, self._n_rows)

    def _blocks(self, guess_N: np.ndarray) -> Iterator[tuple[CentredCodes, "slice | np.ndarray"]]:
        """Rows in blocks, with the codes as centred where the rows' guesses are."""
        if len(self._centred) == 1:
            yield from ((self._whole, rows) for rows in _slices(len(guess_N), self._whole.n_block))
            return
        centre_N = self._centre_of_K[guess_N]
        order = np.argsort(centre_N, kind="stable")
        ends = np.searchsorted(centre_N, np.arange(len(self._centred) + 1), sorter=order)
        for centred, begin, end in zip(self._centred, ends[:-1], ends[1:], strict=True):
            for rows in _slices(end - begin, centred.n_block):
                yield centred, order[begin + rows.start : begin + rows.stop]

    def _on_device(self, x_BD: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x_BD).to(self._backend.device)

    def _take_several_centres(self) -> None:
        """Centre the codes at several centres, found by a few steps of Lloyd on the codes; each code belongs to one."""
        dtype = self._backend.dtype if self.stage < len(_TOO_MANY) else torch.float32
        n_bytes = self._distinct_KD.size * dtype.itemsize
        n_centres = max(1, min(_CENTRES, _CENTRES_BYTES // n_bytes, len(self._distinct_KD) // 8))
        centres_GD = self._codes_KD[:: len(self._distinct_KD) // n_centres][:n_centres].clone()
        for _ in range(_CENTRE_STEPS):
            centre_of_K = (self._codes_KD @ centres_GD.T - centres_GD.square().sum(1) / 2).argmax(1)
            for g in range(n_centres):
                if bool((centre_of_K == g).any()):
                    centres_GD[g] = self._codes_KD[centre_of_K == g].mean(0)
        self._centred = [CentredCodes(self._codes_KD, centre_D, dtype, self._buffers, self._kernels) for centre_D in centres_GD]
        self._centre_of_K = centre_of_K.cpu().numpy()
        self._n_rows = self._n_candidates = 0

    def _decide(self, x_BD: torch.Tensor, guess_B: torch.Tensor, row_P: torch.Tensor, code_P: torch.Tensor) -> np.ndarray:
        """int64 (B,): the nearest of each row's guess and candidates."""
        touched, first_P = torch.unique_consecutive(row_P, return_inverse=True)
        row_P = torch.cat([touched, row_P])
        code_P = torch.cat([guess_B[touched], code_P])
        index_P = torch.cat([torch.arange(len(touched), device=row_P.device), first_P])
        distance_P = _squared_distances(x_BD, self._codes_KD, row_P, code_P)
        least = torch.full((len(touched),), torch.inf, device=row_P.device).scatter_reduce_(0, index_P, distance_P, "amin")
        # a sum of squares has a small relative error, so few pairs are left for float64
        is_close = distance_P <= least[index_P] * (1 + (x_BD.shape[1] + 16) * 2.0**-20) + 1e-30
        row, code = row_P[is_close].cpu().numpy(), code_P[is_close].cpu().numpy()
        order = np.argsort(row, kind="stable")
        row, code = row[order], code[order]
        is_alone = np.ones(len(row), bool)
        is_alone[1:] &= row[1:] != row[:-1]
        is_alone[:-1] &= row[1:] != row[:-1]
        nearest_B: np.ndarray = guess_B.cpu().numpy()
        nearest_B[row[is_alone]] = code[is_alone]
        row, code = row[~is_alone], code[~is_alone]
        x_PD = x_BD.cpu().numpy()[row].astype(np.float64)
        exact = np.square(x_PD - self._distinct_KD[code]).sum(axis=1)
        order = np.lexsort((code, exact, row))
        winners = order[np.unique(row[order], return_index=True)[1]]
        nearest_B[row[winners]] = code[winners]
        return nearest_B


def _slices(n_rows: int, n_block: int) -> Iterator[slice]:
    return (slice(begin, min(begin + n_block, n_rows)) for begin in range(0, n_rows, n_block))


def _squared_distances(x_BD: torch.Tensor, c_KD: torch.Tensor, row_P: torch.Tensor, code_P: torch.Tensor) -> torch.Tensor:
    """float32 (P,)."""
    distance_P = torch.empty(len(row_P), dtype=torch.float32, device=row_P.device)
    for pairs in _slices(len(row_P), max(1, BLOCK_BYTES // (4 * x_BD.shape[1]))):
        difference_PD = x_BD.index_select(0, row_P[pairs]) - c_KD.index_select(0, code_P[pairs])
        distance_P[pairs] = difference_PD.square_().sum(1)
    return distance_P
