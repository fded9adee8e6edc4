"""Tables and dropout for training on CPUs, where torch's own took a tenth of a step of `tiny` more (bench/shares.py).

On other devices both are torch's. Legend: I rows of a table, D width.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

_SHADES = 1 << 16  # probabilities that 16 bits can tell apart


class Table(nn.Embedding):
    """An embedding table whose gradients are summed in a quarter of the time, to the same bits, for any number of threads."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 nn.Embedding's own name
        """Rows of the table, (…,) -> (…, D). input: int64, below I."""
        return sum_of_rows([self], [input])


def sum_of_rows(tables: Sequence[nn.Module], indices: Sequence[Tensor]) -> Tensor:
    """The sum of a row of each table, (…, D). tables: embeddings of one width. indices: of each table int64 (…,), below I."""
    weights = [cast("nn.Embedding", table).weight for table in tables]
    if weights[0].device.type != "cpu" or not torch.is_grad_enabled():
        return cast("Tensor", sum(nf.embedding(index, weight) for index, weight in zip(indices, weights, strict=True)))
    rows: Tensor = _Rows.apply(*weights, *indices)  # type: ignore[no-untyped-call]
    return rows


class _Rows(torch.autograd.Function):
    """Sums of gathered rows. torch's own backward calls an addition of tensors for each row."""

    @staticmethod
    def forward(ctx: Any, *weights_and_indices: Tensor) -> Tensor:
        n = len(weights_and_indices) // 2
        weights, indices = weights_and_indices[:n], weights_and_indices[n:]
        ctx.save_for_backward(*indices)
        ctx.n_rows = [len(weight) for weight in weights]
        total = nf.embedding(indices[0], weights[0])
        for index, weight in zip(indices[1:], weights[1:], strict=True):
            total += nf.embedding(index, weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows = gradients[0].reshape(-1, gradients[0].shape[-1]).contiguous()
        sums = [
            rows.new_zeros(n_rows, rows.shape[1]).index_add_(0, index.flatten(), rows) if is_needed else None
            for index, n_rows, is_needed in zip(ctx.saved_tensors, ctx.n_rows, ctx.needs_input_grad, strict=False)
        ]
        return *sums, *[None] * len(sums)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Numbers of x, (…, D), with a probability of `rate` each, from 0 to less than 1, become 0; the others grow so that
    the mean stays. On CPUs the rate is rounded to 16 bits."""
    if not rate:
        return x
    return nf.dropout(x, rate) if x.device.type != "cpu" else x * _factors(x, rate)


def add_dropped(total: Tensor, x: Tensor, rate: float) -> Tensor:
    """The total plus dropout(x), both of one shape (…, D)."""
    if not rate or x.device.type != "cpu":
        return total + dropout(x, rate)
    return torch.addcmul(total, x, _factors(x, rate))


def _factors(x: Tensor, rate: float) -> Tensor:
    """By which dropout multiplies x. A draw of torch's generator decides four: bernoulli_ takes five times as long."""
    n_dropped = min(round(rate * _SHADES), _SHADES - 1)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    is_kept = draws.view(torch.int16)[: x.numel()] >= n_dropped - _SHADES // 2
    return is_kept.to(x.dtype).mul_(_SHADES / (_SHADES - n_dropped)).view(x.shape)
