"""The nearest code of every row, exactly: a cheap matrix product leaves a few candidates, float64 decides among them.

Each row comes with a guess, its code of the iteration before. A blocked product in bfloat16 (four times float32's speed on
AVX512-BF16 and on GPUs) or in float32 gives, for every code, an upper bound on how much better it is than the guess: the
bounds on rounding are further columns of the product, so that a sign bit tells a candidate. Most rows have none and keep
their guess; the others are settled by differences in float32, and what is still too close by float64. So the answer is that
of exact arithmetic, whatever the machine, the block size, the number of threads or the precision: the invariant to keep is
that every bound is a proof, never an estimate. N x K scores are never held, one block of them is.

Legend: N rows, B rows of a block, K codes, D width, E width with the bounds' columns, P pairs of a row and a candidate.
Source of the expansion argmin ||x - c||^2 = argmax x.c - ||c||^2 / 2: Lloyd 1982; of the float bounds: Higham, "Accuracy
and Stability of Numerical Algorithms", 2nd ed., section 3.1. The combination is ours.
"""

import os
import time
from dataclasses import dataclass

import numpy as np
import torch

_BLOCK_BYTES = 4 << 20  # scores of a block; measured best of 1, 2, 4, 8, 16 MiB on two cores
_GROUP = 16  # codes whose best score is looked at together; 1/16 of the scores pass the slow operations
_COLUMNS = 64  # groups, at least: torch reduces shorter rows ten times slower
_EXTRA = 8  # columns: bias and threshold in two parts each, two bounds, two of padding for the kernels' sake
_KEYS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
_MANY = 4  # candidates a row, from which a better guess costs less than looking at them


@dataclass(frozen=True)
class Filter:
    """How candidates are found: where, and in which precision. The choice changes the speed, not the answer."""

    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.device.type} {str(self.dtype).removeprefix('torch.')}"


def fastest(device: str, n_width: int, n_codes: int) -> Filter:
    """bfloat16 or float32, whichever multiplies a block of this shape sooner on this device; tried on the spot."""
    seconds: dict[torch.dtype, float] = {}
    place = torch.device(device)
    if place.type == "cuda":  # sums must be kept in float32, or no bound on them holds
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    n_rows = max(256, min(2048, (1 << 28) // (n_width * n_codes)))
    for dtype in _KEYS:
        x_BD, c_KD = (torch.ones((n, n_width), dtype=dtype, device=place) for n in (n_rows, n_codes))
        for _ in range(3):  # the first call prepares kernels
            begun = time.perf_counter()
            float(torch.mm(x_BD, c_KD.T)[0, 0])
            seconds[dtype] = min(seconds.get(dtype, 1e9), time.perf_counter() - begun)
    return Filter(place, min(seconds, key=lambda dtype: seconds[dtype]))


def share_cores(n_processes: int) -> None:
    """Leave as many of this machine's cores to the others as they are, where several processes work on it."""
    if n_processes > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // n_processes))


class Codebook:
    """Codes (K, D) made ready to be searched: centred, rounded, their norms known. `nearest` may be called often."""

    def __init__(self, codes_KD: np.ndarray, chosen: Filter) -> None:
        """codes_KD: float32, finite, below 1e15 in size."""
        device, dtype = chosen.device, chosen.dtype
        self._filter = chosen
        self.codes_KD = np.array(codes_KD, dtype=np.float32)
        self._codes_KD = torch.from_numpy(self.codes_KD).to(device)
        n_codes, n_width = self._codes_KD.shape
        self._centre_D = self._codes_KD.double().mean(0).float()
        self._centred_KD = self._codes_KD - self._centre_D
        exact_KD = self._centred_KD.double()
        rounded_KD = exact_KD.to(dtype)
        norm_K = exact_KD.norm(dim=1)
        bias_K = -exact_KD.square().sum(1) / 2
        self._bias_K = bias_K.float()
        self._reach = float(norm_K.max())
        self._sums = (n_width + 16) * 2.0**-22  # running sums in float32, relative to the norms' product, fourfold
        self._parts = 2.0**-14 if dtype == torch.bfloat16 else 2.0**-22  # what two parts leave of a number, fourfold
        wrong_K = (exact_KD - rounded_KD.double()).norm(dim=1) + self._sums * norm_K
        self._group = max(1, min(_GROUP, n_codes // _COLUMNS))
        n_padded = self._group * -(-n_codes // self._group)
        self._rounded_KE = torch.zeros((n_padded, n_width + _EXTRA), dtype=dtype, device=device)
        self._rounded_KE[:n_codes, :n_width] = rounded_KD
        extra = [*_two_parts(bias_K, dtype), torch.ones_like(bias_K), torch.ones_like(bias_K), _up(norm_K), _up(wrong_K)]
        for column, values in enumerate(extra, start=n_width):
            self._rounded_KE[:n_codes, column] = values.to(dtype)
        self._rounded_KE[n_codes:, n_width] = -torch.finfo(dtype).max / 4  # codes that are not there never win
        n_block = max(64, _BLOCK_BYTES // (n_padded * self._rounded_KE.element_size()))
        self._scores_BK = torch.empty((n_block, n_padded), dtype=dtype, device=device)
        self._rows_BE = torch.zeros((n_block, n_width + _EXTRA), dtype=dtype, device=device)
        self._rows_BE[:, n_width : n_width + 2] = 1

    def nearest(self, x_ND: np.ndarray, guess_N: np.ndarray | None = None) -> np.ndarray:
        """The number of the code nearest to each row, int32 (N,); squared Euclidean distance, ties to the lower number.

        x_ND: float32, finite, below 1e15 in size. guess_N: any codes; the better they are, the sooner it is done.
        O(N K D) time; memory of a few blocks.
        """
        nearest_N = np.empty(len(x_ND), np.int32)
        n_block = len(self._scores_BK)
        for begin in range(0, len(x_ND), n_block):
            some = slice(begin, begin + n_block)
            x_BD = torch.from_numpy(x_ND[some]).to(self._filter.device)
            guess_B = None if guess_N is None else torch.from_numpy(guess_N[some]).long().to(self._filter.device)
            nearest_N[some] = self._nearest_of(x_BD, guess_B).cpu().numpy()
        return nearest_N

    def _nearest_of(self, x_BD: torch.Tensor, guess_B: torch.Tensor | None) -> torch.Tensor:
        centred_BD = x_BD - self._centre_D
        if guess_B is None:
            guess_B = self._guess(centred_BD)
        rows, codes = self._rivals(centred_BD, guess_B)
        if len(rows) > _MANY * len(x_BD):
            guess_B = self._guess(centred_BD)
            rows, codes = self._rivals(centred_BD, guess_B)
        if len(rows) == 0:
            return guess_B
        return self._settle(x_BD, guess_B, rows, codes)

    def _guess(self, centred_BD: torch.Tensor) -> torch.Tensor:
        """A good code for each row, most often the nearest."""
        scores_BK = self._multiply(centred_BD, torch.zeros(len(centred_BD), dtype=torch.float64, device=centred_BD.device))
        if scores_BK.is_cuda:
            return scores_BK.argmax(1)
        if scores_BK.dtype == torch.bfloat16:
            # as integers in the same order, numpy finds the largest twenty times as fast as torch does
            keys_BK = scores_BK.view(torch.int16)
            scores_BK = keys_BK.bitwise_xor_((keys_BK >> 15).bitwise_and_(0x7FFF))
        return torch.from_numpy(scores_BK.numpy().argmax(axis=1))

    def _rivals(self, centred_BD: torch.Tensor, guess_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs (row, code), rows ascending: every code that may be nearer than, or as near as, the row's guess."""
        score_B = (
            (centred_BD * self._centred_KD.index_select(0, guess_B)).sum(1) + self._bias_K.index_select(0, guess_B)
        ).double()
        keys_BK = self._multiply(centred_BD, score_B).view(_KEYS[self._filter.dtype])
        keys_BK[torch.arange(len(guess_B), device=guess_B.device), guess_B] = -1
        n_columns = keys_BK.shape[1] // self._group
        keys_BGC = keys_BK.view(len(guess_B), self._group, n_columns)
        best_BC = keys_BGC.amax(1) if self._group > 1 else keys_BK
        rows, columns = (best_BC >= 0).nonzero(as_tuple=True)
        if self._group == 1:
            return rows, columns
        pairs, members = (keys_BGC[rows, :, columns] >= 0).nonzero(as_tuple=True)
        return rows[pairs], members * n_columns + columns[pairs]

    def _multiply(self, centred_BD: torch.Tensor, score_B: torch.Tensor) -> torch.Tensor:
        """By how much, at most, each code's score exceeds the given one: scores (B, K) in the filter's precision."""
        dtype, n_width = self._filter.dtype, centred_BD.shape[1]
        rows_BE = self._rows_BE[: len(centred_BD)]
        rows_BE[:, :n_width] = centred_BD
        norm_B = centred_BD.norm(dim=1).double() * (1 + self._sums)
        wrong_B = (centred_BD - rows_BE[:, :n_width]).norm(dim=1).double() * (1 + self._sums)
        least = score_B - (self._parts + self._sums) * (score_B.abs() + self._reach**2)
        least -= 2 * self._sums * self._reach * norm_B + 1e-30
        for column, values in enumerate([*_two_parts(-least, dtype), _up(wrong_B), _up(norm_B)], start=n_width + 2):
            rows_BE[:, column] = values
        return torch.mm(rows_BE, self._rounded_KE.T, out=self._scores_BK[: len(centred_BD)])

    def _settle(self, x_BD: torch.Tensor, guess_B: torch.Tensor, rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The nearest of each row's guess and rivals."""
        touched, first = torch.unique_consecutive(rows, return_inverse=True)
        rows = torch.cat([touched, rows])
        codes = torch.cat([guess_B[touched], codes])
        place = torch.cat([torch.arange(len(touched), device=rows.device), first])
        distances = _squares(x_BD, self._codes_KD, rows, codes)
        least = torch.full((len(touched),), torch.inf, device=rows.device).scatter_reduce_(0, place, distances, "amin")
        # a sum of squares has a small relative error, so few pairs are left for float64
        close = distances <= least[place] * (1 + 4 * self._sums) + 1e-30
        row, code = rows[close].cpu().numpy(), codes[close].cpu().numpy()
        x_ND, c_KD = x_BD.cpu().numpy(), self.codes_KD
        nearest_B = guess_B.clone()
        order = np.argsort(row, kind="stable")
        alone = np.ones(len(row), bool)
        row, code = row[order], code[order]
        alone[1:] &= row[1:] != row[:-1]
        alone[:-1] &= row[1:] != row[:-1]
        nearest_B[torch.from_numpy(row[alone])] = torch.from_numpy(code[alone])
        row, code = row[~alone], code[~alone]
        exact = np.square(x_ND[row].astype(np.float64) - c_KD[code]).sum(axis=1)
        order = np.lexsort((code, exact, row))
        _, first_of = np.unique(row[order], return_index=True)
        winners = order[first_of]
        nearest_B[torch.from_numpy(row[winners])] = torch.from_numpy(code[winners])
        return nearest_B


def _squares(x_BD: torch.Tensor, c_KD: torch.Tensor, rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    distances = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    step = max(1, _BLOCK_BYTES // (4 * x_BD.shape[1]))
    for begin in range(0, len(rows), step):
        some = slice(begin, begin + step)
        distances[some] = (x_BD.index_select(0, rows[some]) - c_KD.index_select(0, codes[some])).square_().sum(1)
    return distances


def _two_parts(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two numbers of the narrow type whose sum is nearly the wide one."""
    high = values.to(dtype)
    return high, (values - high.double()).to(dtype)


def _up(values: torch.Tensor) -> torch.Tensor:
    """A little more: what stays an upper bound when it is rounded to bfloat16."""
    return values * (1 + 2.0**-7)
