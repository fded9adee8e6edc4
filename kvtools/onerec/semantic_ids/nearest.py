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

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

_BLOCK_BYTES = 4 << 20  # scores of a block; measured best of 1, 2, 4, 8, 16 MiB on two cores
_GROUP = 16  # codes whose best score is looked at together; 1/16 of the scores pass the slow operations
_COLUMNS = 64  # groups, at least: torch reduces shorter rows ten times slower
_EXTRA = 8  # columns: bias and threshold in two parts each, two bounds, two of padding for the kernels' sake
_KEYS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
_MANY = 4  # candidates a row, from which a better guess costs less than looking at them
_TOO_MANY = (1.5, 8.0)  # candidates a row on stages 0 and 1, from which the next stage is cheaper; of so many rows at least:
_JURY = 1 << 13
_VIEWS = 16
_VIEW_STEPS = 3
_VIEWS_BYTES = 96 << 20


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


class Codebook:
    """Codes (K, D) made ready to be searched. `nearest` may be called often.

    Rounding is felt in proportion to how far rows and codes lie from the centre that both are told from. Where that leaves
    too many candidates, `stage` rises: codes are told from several centres, each row from the one its guess belongs to, and
    in the end in float32. Which stage a search ended on tells where to begin the next.
    """

    def __init__(self, codes_KD: np.ndarray, chosen: Filter, *, stage: int = 0) -> None:
        """codes_KD: float32, finite, below 1e15 in size. stage: 0, 1 or 2; the answer is the same."""
        self.codes_KD = np.array(codes_KD, dtype=np.float32)
        self.stage = stage
        self._filter = chosen
        self._codes_KD = torch.from_numpy(self.codes_KD).to(chosen.device)
        self._desk = _Desk(chosen.device)
        self._whole = _View(self._codes_KD, self._codes_KD.double().mean(0).float(), chosen.dtype, self._desk)
        self._views = [self._whole]
        self._view_of_K = np.zeros(len(codes_KD), np.int64)
        self._n_rows = self._n_rivals = 0  # seen on this stage
        if stage:
            self._look_closer()

    def nearest(self, x_ND: np.ndarray, guess_N: np.ndarray | None = None) -> np.ndarray:
        """The number of the code nearest to each row, int32 (N,); squared Euclidean distance, ties to the lower number.

        x_ND: float32, finite, below 1e15 in size. guess_N: any codes; the better they are, the sooner it is done.
        O(N K D) time; memory of a few blocks.
        """
        if guess_N is None:
            guess_N = np.empty(len(x_ND), np.int32)
            for some in _slices(len(x_ND), self._whole.n_block):
                guess_N[some] = self._whole.guess(self._rows(x_ND[some])).cpu().numpy()
        nearest_N = guess_N.astype(np.int32)
        if len(self._views) == 1:
            for some in _slices(len(x_ND), self._whole.n_block):
                if not self._search(self._whole, x_ND, some, nearest_N):
                    break
            else:
                return nearest_N
        order = np.argsort(self._view_of_K[guess_N], kind="stable")
        ends = np.searchsorted(self._view_of_K[guess_N], np.arange(len(self._views) + 1), sorter=order)
        for view, begin, end in zip(self._views, ends[:-1], ends[1:], strict=True):
            for some in _slices(end - begin, view.n_block):
                if not self._search(view, x_ND, order[begin + some.start : begin + some.stop], nearest_N):
                    return self.nearest(x_ND, nearest_N)
        return nearest_N

    def _search(self, view: "_View", x_ND: np.ndarray, some: "slice | np.ndarray", nearest_N: np.ndarray) -> bool:
        """Put right the codes of some rows; False where there were so many candidates that the stage has risen instead."""
        x_BD = self._rows(x_ND[some])
        guess_B = torch.from_numpy(nearest_N[some]).long().to(x_BD.device)
        rows, codes = view.rivals(x_BD, guess_B)
        if len(rows) > _MANY * len(x_BD):
            guess_B = self._whole.guess(x_BD)
            rows, codes = view.rivals(x_BD, guess_B)
        self._n_rows += len(x_BD)
        self._n_rivals += len(rows)
        if self.stage < len(_TOO_MANY) and self._n_rivals > _TOO_MANY[self.stage] * max(_JURY, self._n_rows):
            self.stage += 1
            self._look_closer()
            return False
        if len(rows):
            nearest_N[some] = self._settle(x_BD, guess_B, rows, codes).cpu().numpy()
        return True

    def _rows(self, x_BD: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x_BD).to(self._filter.device)

    def _look_closer(self) -> None:
        """Take views from several centres, found by a few steps of Lloyd on the codes; each code belongs to one."""
        dtype = self._filter.dtype if self.stage < len(_TOO_MANY) else torch.float32
        n_views = max(1, min(_VIEWS, _VIEWS_BYTES // (self.codes_KD.size * dtype.itemsize), len(self.codes_KD) // 8))
        centres_GD = self._codes_KD[:: len(self.codes_KD) // n_views][:n_views].clone()
        for _ in range(_VIEW_STEPS):
            view_of_K = (self._codes_KD @ centres_GD.T - centres_GD.square().sum(1) / 2).argmax(1)
            for g in range(n_views):
                if bool((view_of_K == g).any()):
                    centres_GD[g] = self._codes_KD[view_of_K == g].mean(0)
        self._views = [_View(self._codes_KD, centre_D, dtype, self._desk) for centre_D in centres_GD]
        self._view_of_K = view_of_K.cpu().numpy()
        self._n_rows = self._n_rivals = 0

    def _settle(self, x_BD: torch.Tensor, guess_B: torch.Tensor, rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The nearest of each row's guess and rivals."""
        touched, first = torch.unique_consecutive(rows, return_inverse=True)
        rows = torch.cat([touched, rows])
        codes = torch.cat([guess_B[touched], codes])
        place = torch.cat([torch.arange(len(touched), device=rows.device), first])
        distances = _squares(x_BD, self._codes_KD, rows, codes)
        least = torch.full((len(touched),), torch.inf, device=rows.device).scatter_reduce_(0, place, distances, "amin")
        # a sum of squares has a small relative error, so few pairs are left for float64
        close = distances <= least[place] * (1 + (x_BD.shape[1] + 16) * 2.0**-20) + 1e-30
        row, code = rows[close].cpu().numpy(), codes[close].cpu().numpy()
        order = np.argsort(row, kind="stable")
        row, code = row[order], code[order]
        is_alone = np.ones(len(row), bool)
        is_alone[1:] &= row[1:] != row[:-1]
        is_alone[:-1] &= row[1:] != row[:-1]
        nearest_B = guess_B.cpu().numpy()
        nearest_B[row[is_alone]] = code[is_alone]
        row, code = row[~is_alone], code[~is_alone]
        x_PD = x_BD.cpu().numpy()[row].astype(np.float64)
        exact = np.square(x_PD - self.codes_KD[code]).sum(axis=1)
        order = np.lexsort((code, exact, row))
        winners = order[np.unique(row[order], return_index=True)[1]]
        nearest_B[row[winners]] = code[winners]
        return torch.from_numpy(nearest_B)


class _Desk:
    """Memory for one block's work, used again for the next: taking it anew each time cost a third of the product."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sheets: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def sheet(self, use: str, n_rows: int, n_columns: int, dtype: torch.dtype) -> torch.Tensor:
        """A matrix for one use, which has one width, with whatever was left in it; at first it is zero."""
        sheet = self._sheets.get((use, dtype))
        if sheet is None or len(sheet) < n_rows:
            sheet = self._sheets[use, dtype] = torch.zeros((n_rows, n_columns), dtype=dtype, device=self._device)
        return sheet[:n_rows]


class _View:
    """The codes as they look from one centre, in the filter's precision, with what is wrong with each."""

    def __init__(self, codes_KD: torch.Tensor, centre_D: torch.Tensor, dtype: torch.dtype, desk: _Desk) -> None:
        n_codes, n_width = codes_KD.shape
        self._dtype = dtype
        self._desk = desk
        self._centre_D = centre_D
        self._centred_KD = codes_KD - centre_D
        exact_KD = self._centred_KD.double()
        rounded_KD = exact_KD.to(dtype)
        self._norm_K = exact_KD.norm(dim=1)
        bias_K = -exact_KD.square().sum(1) / 2
        self._bias_K = bias_K.float()
        self._sums = (n_width + 16) * 2.0**-22  # running sums in float32, relative to the terms' sizes, fourfold
        self._parts = 2.0**-14 if dtype == torch.bfloat16 else 2.0**-22  # what two parts leave of a number, fourfold
        wrong_K = (exact_KD - rounded_KD.double()).norm(dim=1) + self._sums * self._norm_K
        most_K = bias_K + (self._parts + self._sums) * bias_K.abs()
        self._group = max(1, min(_GROUP, n_codes // _COLUMNS))
        n_padded = self._group * -(-n_codes // self._group)
        self._rounded_KE = torch.zeros((n_padded, n_width + _EXTRA), dtype=dtype, device=codes_KD.device)
        self._rounded_KE[:n_codes, :n_width] = rounded_KD
        ones_K = torch.ones_like(bias_K)
        extra = [*_two_parts(most_K, dtype), ones_K, ones_K, _up(self._norm_K), _up(wrong_K)]
        for column, values in enumerate(extra, start=n_width):
            self._rounded_KE[:n_codes, column] = values.to(dtype)
        self._rounded_KE[n_codes:, n_width] = -torch.finfo(dtype).max / 4  # codes that are not there never win
        self.n_block = max(64, _BLOCK_BYTES // (n_padded * self._rounded_KE.element_size()))

    def guess(self, x_BD: torch.Tensor) -> torch.Tensor:
        """A good code for each row, most often the nearest."""
        scores_BK = self._multiply(x_BD - self._centre_D, torch.zeros(len(x_BD), dtype=torch.float64, device=x_BD.device))
        n_codes = len(self._norm_K)
        if scores_BK.is_cuda:
            return scores_BK.argmax(1).clamp_(max=n_codes - 1)
        if scores_BK.dtype == torch.bfloat16:
            # as integers in the same order, numpy finds the largest twenty times as fast as torch does
            keys_BK = scores_BK.view(torch.int16)
            scores_BK = keys_BK.bitwise_xor_((keys_BK >> 15).bitwise_and_(0x7FFF))
        return torch.from_numpy(scores_BK.numpy().argmax(axis=1).clip(max=n_codes - 1))

    def rivals(self, x_BD: torch.Tensor, guess_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs (row, code), rows ascending: every code that may be nearer than, or as near as, the row's guess."""
        centred_BD = x_BD - self._centre_D
        products_B = (centred_BD * self._centred_KD.index_select(0, guess_B)).sum(1)
        score_B = (products_B + self._bias_K.index_select(0, guess_B)).double()
        keys_BK = self._multiply(centred_BD, score_B, self._norm_K.index_select(0, guess_B)).view(_KEYS[self._dtype])
        keys_BK[torch.arange(len(guess_B), device=guess_B.device), guess_B] = -1
        n_columns = keys_BK.shape[1] // self._group
        keys_BGC = keys_BK.view(len(guess_B), self._group, n_columns)
        best_BC = keys_BGC.amax(1) if self._group > 1 else keys_BK
        rows, columns = (best_BC >= 0).nonzero(as_tuple=True)
        if self._group == 1:
            return rows, columns
        pairs, members = (keys_BGC[rows, :, columns] >= 0).nonzero(as_tuple=True)
        return rows[pairs], members * n_columns + columns[pairs]

    def _multiply(
        self, centred_BD: torch.Tensor, score_B: torch.Tensor, guess_norm_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """By how much, at most, each code's score exceeds the given one, of a code of that norm: (B, K), rounded."""
        n_width = centred_BD.shape[1]
        rows_BE = self._desk.sheet("rows", len(centred_BD), n_width + _EXTRA, self._dtype)
        rows_BE[:, :n_width] = centred_BD
        rows_BE[:, n_width : n_width + 2] = 1
        norm_B = centred_BD.norm(dim=1).double() * (1 + self._sums)
        wrong_B = (centred_BD - rows_BE[:, :n_width]).norm(dim=1).double() * (1 + self._sums)
        least_B = score_B - (self._parts + self._sums) * score_B.abs() - 1e-30
        if guess_norm_B is not None:  # what is wrong with the score itself: a product and a bias, in float32
            least_B -= 2 * self._sums * guess_norm_B * (norm_B + guess_norm_B)
        for column, values in enumerate([*_two_parts(-least_B, self._dtype), _up(wrong_B), _up(norm_B)], start=n_width + 2):
            rows_BE[:, column] = values
        scores_BK = self._desk.sheet("scores", len(centred_BD), len(self._rounded_KE), self._dtype)
        return torch.mm(rows_BE, self._rounded_KE.T, out=scores_BK)


def _slices(n_rows: int, n_block: int) -> Iterator[slice]:
    return (slice(begin, min(begin + n_block, n_rows)) for begin in range(0, n_rows, n_block))


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
