"""Codes less a centre, ready for products whose sign bits mark candidates: `nearest.py` says what for.

The bounds on rounding are further columns of the product, of rows and codes. The invariant to keep is that every bound is a
proof, never an estimate. Legend: B rows of a block, K codes, D width, E width with the bounds' columns, C columns of groups or
codes of a chunk, G codes of a group, P pairs (row, candidate). Source of the float bounds: Higham, "Accuracy and Stability of
Numerical Algorithms", 2nd ed., section 3.1.
"""

import threading
from collections.abc import Iterator

import numpy as np
import torch

from kvtools.onerec.semantic_ids.kernels import Kernels

BLOCK_BYTES = 4 << 20  # scores of a block; measured best of 1, 2, 4, 8, 16 MiB on two cores
_GROUP = 16  # codes whose best score is read together; 1/16 of the scores pass the slow operations
_LEAST = np.iinfo(np.int16).min
_ALIGNED = 4  # codes are padded to whole words of eight bytes
_CHUNK = 1024  # codes of a product whose scores compiled passes read before the next: so many that a block has many rows
_COLUMNS = 64  # groups, at least: torch reduces shorter rows ten times slower
_EXTRA = 8  # columns: bias and threshold in two parts each, two bounds, two of padding for the kernels' sake
SIGNED = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # integers with the sign bit of the scores
_UNSIGNED = {torch.bfloat16: torch.uint16, torch.float32: torch.uint32}


class Buffers(threading.local):
    """Memory for one block's work, of each thread, used again for the next: taking it anew each time cost a third of the
    product."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, int, torch.dtype], torch.Tensor] = {}

    def get(self, name: str, n_rows: int, n_columns: int, dtype: torch.dtype) -> torch.Tensor:
        """The matrix (n_rows, n_columns) of that name and width, zero at first, then as it was left."""
        buffer = self._buffers.get((name, n_columns, dtype))
        if buffer is None or len(buffer) < n_rows:
            buffer = self._buffers[name, n_columns, dtype] = torch.zeros((n_rows, n_columns), dtype=dtype, device=self._device)
        return buffer[:n_rows]


class CentredCodes:
    """The codes less one centre, in the backend's precision, with a bound on the rounding error of each."""

    def __init__(
        self, codes_KD: torch.Tensor, centre_D: torch.Tensor, dtype: torch.dtype, buffers: Buffers, compiled: Kernels | None
    ) -> None:
        n_codes, n_width = codes_KD.shape
        self._dtype = dtype
        self._buffers = buffers
        self._kernels = compiled
        self._centre_D = centre_D
        self._sums = (n_width + 16) * 2.0**-22  # running sums in float32, relative to the terms' sizes, fourfold
        self._parts = 2.0**-14 if dtype == torch.bfloat16 else 2.0**-22  # what two parts leave of a number, fourfold
        self._group = max(1, min(_GROUP, n_codes // _COLUMNS))
        multiple = _ALIGNED * self._group  # codes are padded to one of it
        n_chunks = -(-n_codes // _CHUNK) if compiled is not None else 1
        self._n_chunk = multiple * -(-n_codes // (multiple * n_chunks))
        n_padded = n_chunks * self._n_chunk
        self._rounded_KE = torch.zeros((n_padded, n_width + _EXTRA), dtype=dtype, device=codes_KD.device)
        if compiled is not None and dtype == torch.bfloat16:
            bits_KE = self._rounded_KE.view(torch.uint16).numpy()
            written = compiled.write_codes(codes_KD.numpy(), centre_D.numpy(), bits_KE[:n_codes])
            self._centred_KD, square_K, lost_K = map(torch.from_numpy, written)
        else:
            self._centred_KD = codes_KD - centre_D
            exact_KD = self._centred_KD.double()
            self._rounded_KE[:n_codes, :n_width] = self._centred_KD
            square_K = exact_KD.square().sum(1)
            lost_K = (exact_KD - self._rounded_KE[:n_codes, :n_width].double()).square().sum(1)
        self._norm_K = square_K.sqrt()
        bias_K = -square_K / 2
        self._bias_K = bias_K.float()
        error_K = lost_K.sqrt() + self._sums * self._norm_K
        most_K = bias_K + (self._parts + self._sums) * bias_K.abs()
        ones_K = torch.ones_like(bias_K)
        extra = [*_two_parts(most_K, dtype), ones_K, ones_K, _up(self._norm_K), _up(error_K)]
        for column, values in enumerate(extra, start=n_width):
            self._rounded_KE[:n_codes, column] = values.to(dtype)
        self._rounded_KE[n_codes:, n_width] = -torch.finfo(dtype).max / 4  # the codes of the padding never win
        if not codes_KD.is_cuda:
            self._arrays = centre_D.numpy(), (self._centred_KD.numpy(), self._bias_K.numpy(), self._norm_K.numpy())
        n_bytes = self._rounded_KE.element_size()
        self.n_block = max(64, BLOCK_BYTES // (self._n_chunk * n_bytes))
        self.n_whole_block = max(64, BLOCK_BYTES // (n_padded * n_bytes))  # rows of a product with all codes at once

    def guess(self, x_BD: torch.Tensor) -> torch.Tensor:
        """int64 (B,): a good code for each row, most often the nearest."""
        if self._kernels is None or self._dtype != torch.bfloat16:
            parts = range(0, max(1, len(x_BD)), self.n_whole_block)
            return torch.cat([self._guess_by_torch(x_BD[begin : begin + self.n_whole_block]) for begin in parts])
        largest_B, where_B = np.full(len(x_BD), _LEAST, np.int16), np.zeros(len(x_BD), np.int64)
        for first, scores_BC in self._chunks(self._unbounded_rows(x_BD)):
            self._kernels.largest(scores_BC.view(torch.int16).numpy(), first, largest_B, where_B)
        return torch.from_numpy(where_B.clip(max=len(self._norm_K) - 1))

    def _guess_by_torch(self, x_BD: torch.Tensor) -> torch.Tensor:
        scores_BK = self._product(self._unbounded_rows(x_BD), self._rounded_KE)
        n_codes = len(self._norm_K)
        if scores_BK.is_cuda:
            return scores_BK.argmax(1).clamp_(max=n_codes - 1)
        if scores_BK.dtype == torch.bfloat16:
            # as integers in the same order, numpy finds the largest twenty times as fast as torch does
            signed_BK = scores_BK.view(torch.int16)
            scores_BK = signed_BK.bitwise_xor_((signed_BK >> 15).bitwise_and_(0x7FFF))
        return torch.from_numpy(scores_BK.numpy().argmax(axis=1).clip(max=n_codes - 1))

    def _unbounded_rows(self, x_BD: torch.Tensor) -> torch.Tensor:
        """(B, E): the rows of a product that gives plain scores."""
        rows_BE = self._rows(x_BD - self._centre_D)
        rows_BE[:, x_BD.shape[1] + 2 :] = 0
        return rows_BE

    def candidates(self, x_BD: torch.Tensor, guess_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows int64 (P,), rising, and codes int64 (P,): every code that may be nearer than, or as near as, the row's guess."""
        signed_BK = self._scores(x_BD, guess_B).view(SIGNED[self._dtype])
        signed_BK[torch.arange(len(guess_B), device=guess_B.device), guess_B] = -1
        n_columns = signed_BK.shape[1] // self._group
        signed_BGC = signed_BK.view(len(guess_B), self._group, n_columns)
        best_BC = signed_BGC.amax(1) if self._group > 1 else signed_BK
        rows, columns = (best_BC >= 0).nonzero(as_tuple=True)
        if self._group == 1:
            return rows, columns
        pairs, members = (signed_BGC[rows, :, columns] >= 0).nonzero(as_tuple=True)
        return rows[pairs], members * n_columns + columns[pairs]

    def settle(
        self, x_ND: np.ndarray, rows_B: np.ndarray, nearest_N: np.ndarray, codes_KD: np.ndarray
    ) -> tuple[int, np.ndarray]:
        """`Kernels.settle` of a block, the rows rows_B. nearest_N: int32, the guesses, which are replaced."""
        assert self._kernels is not None, "without them there is `candidates`"
        if self._dtype == torch.bfloat16:
            rows_BE = self._buffers.get("rows", len(rows_B), self._rounded_KE.shape[1], self._dtype)
            bits_BE = rows_BE.view(torch.uint16).numpy()
            self._kernels.write_rows(x_ND, rows_B, nearest_N, *self._arrays, (self._sums, self._parts), bits_BE)
        else:
            rows_BE = self._bounded_rows(torch.from_numpy(x_ND[rows_B]), torch.from_numpy(nearest_N[rows_B]).long())
        n_candidates, is_left_B = 0, np.zeros(len(rows_B), bool)
        for first, scores_BC in self._chunks(rows_BE):
            bits_BC = scores_BC.view(_UNSIGNED[self._dtype]).numpy()
            n_candidates += self._kernels.settle(bits_BC, first, x_ND, rows_B, codes_KD, nearest_N, is_left_B)
        return n_candidates, is_left_B

    def _chunks(self, rows_BE: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """The scores (B, C) of one chunk of codes after the other, in the same memory, and the number of its first code."""
        for first in range(0, len(self._rounded_KE), self._n_chunk):
            yield first, self._product(rows_BE, self._rounded_KE[first : first + self._n_chunk])

    def _scores(self, x_BD: torch.Tensor, guess_B: torch.Tensor) -> torch.Tensor:
        """(B, K): by how much, at most, each code's score exceeds that of the row's guess."""
        return self._product(self._bounded_rows(x_BD, guess_B), self._rounded_KE)

    def _bounded_rows(self, x_BD: torch.Tensor, guess_B: torch.Tensor) -> torch.Tensor:
        """(B, E): the rows of that product."""
        centred_BD, n_width = x_BD - self._centre_D, x_BD.shape[1]
        rows_BE = self._rows(centred_BD)
        products_B = (centred_BD * self._centred_KD.index_select(0, guess_B)).sum(1)
        score_B = (products_B + self._bias_K.index_select(0, guess_B)).double()
        norm_B = centred_BD.norm(dim=1).double() * (1 + self._sums)
        error_B = (centred_BD - rows_BE[:, :n_width]).norm(dim=1).double() * (1 + self._sums)
        least_B = score_B - (self._parts + self._sums) * score_B.abs() - 1e-30
        # the error of the score itself: a product and a bias, in float32
        guess_norm_B = self._norm_K.index_select(0, guess_B)
        least_B -= 2 * self._sums * guess_norm_B * (norm_B + guess_norm_B)
        for column, values in enumerate([*_two_parts(-least_B, self._dtype), _up(error_B), _up(norm_B)], start=n_width + 2):
            rows_BE[:, column] = values
        return rows_BE

    def _product(self, rows_BE: torch.Tensor, codes_CE: torch.Tensor) -> torch.Tensor:
        """(B, C): the scores of some codes, until the next product with as many."""
        scores_BC = self._buffers.get("scores", len(rows_BE), len(codes_CE), self._dtype)
        return torch.mm(rows_BE, codes_CE.T, out=scores_BC)

    def _rows(self, centred_BD: torch.Tensor) -> torch.Tensor:
        """(B, E): the rows of a product, the columns of their bounds as they were left."""
        rows_BE = self._buffers.get("rows", len(centred_BD), self._rounded_KE.shape[1], self._dtype)
        rows_BE[:, : centred_BD.shape[1]] = centred_BD
        rows_BE[:, centred_BD.shape[1] : centred_BD.shape[1] + 2] = 1
        return rows_BE


def _two_parts(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two numbers of the narrow type whose sum is nearly the wide one."""
    high = values.to(dtype)
    return high, (values - high.double()).to(dtype)


def _up(values: torch.Tensor) -> torch.Tensor:
    """A little more: what stays an upper bound when it is rounded to bfloat16."""
    return values * (1 + 2.0**-7)
