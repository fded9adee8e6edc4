"""The nearest code of every row, exactly: a cheap matrix product leaves a few candidates, float64 decides among them.

Each row comes with a guess, its code of the iteration before. A blocked product in bfloat16 (four times float32's speed on
AVX512-BF16 and on GPUs) or in float32 gives, for every code, an upper bound on how much better it is than the guess: the
bounds on rounding are further columns of the product, so that the sign bit marks a candidate. Most rows have none and keep
their guess; the others are decided by differences in float32, and what is still too close by float64. So the answer is that
of exact arithmetic, whatever the machine, the block size, the number of threads or the precision: the invariant to keep is
that every bound is a proof, never an estimate. N x K scores are never held, one block of them is.

Legend: N rows, B rows of a block, K codes, D width, E width with the bounds' columns, G centres, P pairs (row, candidate).
Source of the expansion argmin ||x - c||^2 = argmax x.c - ||c||^2 / 2: Lloyd 1982; of the float bounds: Higham, "Accuracy
and Stability of Numerical Algorithms", 2nd ed., section 3.1. The combination is ours.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from kvtools.onerec.semantic_ids.equal_rows import equal_rows

_BLOCK_BYTES = 4 << 20  # scores of a block; measured best of 1, 2, 4, 8, 16 MiB on two cores
_GROUP = 16  # codes whose best score is read together; 1/16 of the scores pass the slow operations
_COLUMNS = 64  # groups, at least: torch reduces shorter rows ten times slower
_EXTRA = 8  # columns: bias and threshold in two parts each, two bounds, two of padding for the kernels' sake
_SIGNED = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # integers with the sign bit of the scores
_MANY = 4  # candidates a row, from which a better guess costs less than deciding among them
_TOO_MANY = (1.5, 8.0)  # candidates a row on stages 0 and 1, from which the next stage is cheaper …
_TOO_MANY_ROWS = 1 << 13  # … counted as if there were at least so many rows
_CENTRES = 16
_CENTRE_STEPS = 3
_CENTRES_BYTES = 96 << 20


@dataclass(frozen=True)
class Backend:
    """The device and the precision that candidates are found with. The choice changes the speed, not the answer."""

    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.device.type} {str(self.dtype).removeprefix('torch.')}"


def fastest(device: str, n_width: int, n_codes: int) -> Backend:
    """bfloat16 or float32, whichever multiplies a block of this shape sooner on this device; measured on the spot."""
    seconds: dict[torch.dtype, float] = {}
    on = torch.device(device)
    if on.type == "cuda":  # sums must be kept in float32, or no bound on them holds
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    n_rows = max(256, min(2048, (1 << 28) // (n_width * n_codes)))
    for dtype in _SIGNED:
        x_BD, c_KD = (torch.ones((n, n_width), dtype=dtype, device=on) for n in (n_rows, n_codes))
        for _ in range(3):  # the first call prepares kernels
            begun = time.perf_counter()
            float(torch.mm(x_BD, c_KD.T)[0, 0])
            seconds[dtype] = min(seconds.get(dtype, 1e9), time.perf_counter() - begun)
    return Backend(on, min(seconds, key=lambda dtype: seconds[dtype]))


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
        self._buffers = _Buffers(backend.device)
        mean_D = self._codes_KD.double().mean(0).float()
        self._whole = _CentredCodes(self._codes_KD, mean_D, backend.dtype, self._buffers)
        self._centred = [self._whole]
        self._centre_of_K = np.zeros(len(self._distinct_KD), np.int64)
        self._n_rows = self._n_candidates = 0  # so far on this stage
        if stage:
            self._take_several_centres()

    def nearest(self, x_ND: np.ndarray, guess_N: np.ndarray | None = None) -> np.ndarray:
        """int32 (N,): the number of the code nearest to each row; squared Euclidean distance, ties to the lower number.

        x_ND: float32, finite, below 1e15 in size. guess_N: any codes; the better they are, the sooner it is done.
        O(N K D) time; memory of a few blocks.
        """
        nearest_N = self._guess(x_ND) if guess_N is None else self._number_of_code[guess_N].astype(np.int32)
        # codes that are nearest already stay so on the next stage; there are three stages at most
        while not self._correct(x_ND, nearest_N):
            self.stage += 1
            self._take_several_centres()
        return np.asarray(self._first_K[nearest_N], np.int32)

    def _guess(self, x_ND: np.ndarray) -> np.ndarray:
        guess_N = np.empty(len(x_ND), np.int32)
        for rows in _slices(len(x_ND), self._whole.n_block):
            guess_N[rows] = self._whole.guess(self._on_device(x_ND[rows])).cpu().numpy()
        return guess_N

    def _correct(self, x_ND: np.ndarray, nearest_N: np.ndarray) -> bool:
        """Replace each row's guess by its nearest code; False as soon as the candidates are too many for this stage."""
        for centred, rows in self._blocks(nearest_N):
            x_BD = self._on_device(x_ND[rows])
            guess_B = torch.from_numpy(nearest_N[rows]).long().to(x_BD.device)
            row_P, code_P = centred.candidates(x_BD, guess_B)
            if len(row_P) > _MANY * len(x_BD):
                guess_B = self._whole.guess(x_BD)
                nearest_N[rows] = guess_B.cpu().numpy()  # kept where no candidate is left
                row_P, code_P = centred.candidates(x_BD, guess_B)
            self._n_rows += len(x_BD)
            self._n_candidates += len(row_P)
            limit = _TOO_MANY[self.stage] * max(_TOO_MANY_ROWS, self._n_rows) if self.stage < len(_TOO_MANY) else np.inf
            if self._n_candidates > limit:
                return False
            if len(row_P):
                nearest_N[rows] = self._decide(x_BD, guess_B, row_P, code_P)
        return True

    def _blocks(self, guess_N: np.ndarray) -> Iterator[tuple["_CentredCodes", "slice | np.ndarray"]]:
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
        self._centred = [_CentredCodes(self._codes_KD, centre_D, dtype, self._buffers) for centre_D in centres_GD]
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


class _Buffers:
    """Memory for one block's work, used again for the next: taking it anew each time cost a third of the product."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def get(self, name: str, n_rows: int, n_columns: int, dtype: torch.dtype) -> torch.Tensor:
        """The matrix of that name, which has one width, with whatever was left in it; at first it is zero."""
        buffer = self._buffers.get((name, dtype))
        if buffer is None or len(buffer) < n_rows:
            buffer = self._buffers[name, dtype] = torch.zeros((n_rows, n_columns), dtype=dtype, device=self._device)
        return buffer[:n_rows]


class _CentredCodes:
    """The codes less one centre, in the backend's precision, with a bound on the rounding error of each."""

    def __init__(self, codes_KD: torch.Tensor, centre_D: torch.Tensor, dtype: torch.dtype, buffers: _Buffers) -> None:
        n_codes, n_width = codes_KD.shape
        self._dtype = dtype
        self._buffers = buffers
        self._centre_D = centre_D
        self._centred_KD = codes_KD - centre_D
        exact_KD = self._centred_KD.double()
        rounded_KD = exact_KD.to(dtype)
        self._norm_K = exact_KD.norm(dim=1)
        bias_K = -exact_KD.square().sum(1) / 2
        self._bias_K = bias_K.float()
        self._sums = (n_width + 16) * 2.0**-22  # running sums in float32, relative to the terms' sizes, fourfold
        self._parts = 2.0**-14 if dtype == torch.bfloat16 else 2.0**-22  # what two parts leave of a number, fourfold
        error_K = (exact_KD - rounded_KD.double()).norm(dim=1) + self._sums * self._norm_K
        most_K = bias_K + (self._parts + self._sums) * bias_K.abs()
        self._group = max(1, min(_GROUP, n_codes // _COLUMNS))
        n_padded = self._group * -(-n_codes // self._group)
        self._rounded_KE = torch.zeros((n_padded, n_width + _EXTRA), dtype=dtype, device=codes_KD.device)
        self._rounded_KE[:n_codes, :n_width] = rounded_KD
        ones_K = torch.ones_like(bias_K)
        extra = [*_two_parts(most_K, dtype), ones_K, ones_K, _up(self._norm_K), _up(error_K)]
        for column, values in enumerate(extra, start=n_width):
            self._rounded_KE[:n_codes, column] = values.to(dtype)
        self._rounded_KE[n_codes:, n_width] = -torch.finfo(dtype).max / 4  # the codes of the padding never win
        self.n_block = max(64, _BLOCK_BYTES // (n_padded * self._rounded_KE.element_size()))

    def guess(self, x_BD: torch.Tensor) -> torch.Tensor:
        """int64 (B,): a good code for each row, most often the nearest."""
        scores_BK = self._multiply(x_BD - self._centre_D, torch.zeros(len(x_BD), dtype=torch.float64, device=x_BD.device))
        n_codes = len(self._norm_K)
        if scores_BK.is_cuda:
            return scores_BK.argmax(1).clamp_(max=n_codes - 1)
        if scores_BK.dtype == torch.bfloat16:
            # as integers in the same order, numpy finds the largest twenty times as fast as torch does
            signed_BK = scores_BK.view(torch.int16)
            scores_BK = signed_BK.bitwise_xor_((signed_BK >> 15).bitwise_and_(0x7FFF))
        return torch.from_numpy(scores_BK.numpy().argmax(axis=1).clip(max=n_codes - 1))

    def candidates(self, x_BD: torch.Tensor, guess_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows int64 (P,), rising, and codes int64 (P,): every code that may be nearer than, or as near as, the row's guess."""
        centred_BD = x_BD - self._centre_D
        products_B = (centred_BD * self._centred_KD.index_select(0, guess_B)).sum(1)
        score_B = (products_B + self._bias_K.index_select(0, guess_B)).double()
        scores_BK = self._multiply(centred_BD, score_B, self._norm_K.index_select(0, guess_B))
        signed_BK = scores_BK.view(_SIGNED[self._dtype])
        signed_BK[torch.arange(len(guess_B), device=guess_B.device), guess_B] = -1
        n_columns = signed_BK.shape[1] // self._group
        signed_BGC = signed_BK.view(len(guess_B), self._group, n_columns)
        best_BC = signed_BGC.amax(1) if self._group > 1 else signed_BK
        rows, columns = (best_BC >= 0).nonzero(as_tuple=True)
        if self._group == 1:
            return rows, columns
        pairs, members = (signed_BGC[rows, :, columns] >= 0).nonzero(as_tuple=True)
        return rows[pairs], members * n_columns + columns[pairs]

    def _multiply(
        self, centred_BD: torch.Tensor, score_B: torch.Tensor, guess_norm_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, K), rounded: by how much, at most, each code's score exceeds the given one, that of a code of the given norm."""
        n_width = centred_BD.shape[1]
        rows_BE = self._buffers.get("rows", len(centred_BD), n_width + _EXTRA, self._dtype)
        rows_BE[:, :n_width] = centred_BD
        rows_BE[:, n_width : n_width + 2] = 1
        norm_B = centred_BD.norm(dim=1).double() * (1 + self._sums)
        error_B = (centred_BD - rows_BE[:, :n_width]).norm(dim=1).double() * (1 + self._sums)
        least_B = score_B - (self._parts + self._sums) * score_B.abs() - 1e-30
        if guess_norm_B is not None:  # the error of the score itself: a product and a bias, in float32
            least_B -= 2 * self._sums * guess_norm_B * (norm_B + guess_norm_B)
        for column, values in enumerate([*_two_parts(-least_B, self._dtype), _up(error_B), _up(norm_B)], start=n_width + 2):
            rows_BE[:, column] = values
        scores_BK = self._buffers.get("scores", len(centred_BD), len(self._rounded_KE), self._dtype)
        return torch.mm(rows_BE, self._rounded_KE.T, out=scores_BK)


def _slices(n_rows: int, n_block: int) -> Iterator[slice]:
    return (slice(begin, min(begin + n_block, n_rows)) for begin in range(0, n_rows, n_block))


def _squared_distances(x_BD: torch.Tensor, c_KD: torch.Tensor, row_P: torch.Tensor, code_P: torch.Tensor) -> torch.Tensor:
    """float32 (P,)."""
    distance_P = torch.empty(len(row_P), dtype=torch.float32, device=row_P.device)
    for pairs in _slices(len(row_P), max(1, _BLOCK_BYTES // (4 * x_BD.shape[1]))):
        difference_PD = x_BD.index_select(0, row_P[pairs]) - c_KD.index_select(0, code_P[pairs])
        distance_P[pairs] = difference_PD.square_().sum(1)
    return distance_P


def _two_parts(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two numbers of the narrow type whose sum is nearly the wide one."""
    high = values.to(dtype)
    return high, (values - high.double()).to(dtype)


def _up(values: torch.Tensor) -> torch.Tensor:
    """A little more: what stays an upper bound when it is rounded to bfloat16."""
    return values * (1 + 2.0**-7)
