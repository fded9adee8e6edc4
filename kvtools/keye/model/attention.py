"""Attention within the segments of a packed row: no token sees another segment's, and no time is spent on hiding them.

Segments of equal length are computed as one batch, others in a call each: the work is the sum of the squares of the lengths.
torch's scaled_dot_product_attention everywhere but on CPUs in bfloat16 (products.py). Not here: positions (rope.py), and what
goes in and comes out.

Legend: S tokens of a row, G segments, H heads, K heads of keys and values, X width of a head, C cached tokens.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nf

from kvtools.keye.model.cpu_kernels import attention_bf16_cpu

_COPIED = 512  # tokens: segments up to this long are gathered into a batch; copying longer ones costs more than the call saved


@dataclass(frozen=True)
class _Batch:
    """Segments of one length: `where` is where they lie, from token to token, or the numbers of their tokens."""

    length: int
    where: tuple[int, int] | Tensor


@dataclass(frozen=True)
class Segments:
    """How a row of n_tokens falls into segments; made once a forward, used in every layer."""

    starts: tuple[int, ...]
    n_tokens: int
    batches: tuple[_Batch, ...]
    back: Tensor | None  # where each token's result lies among those of the batches; None: where it is

    @property
    def lengths(self) -> list[int]:
        return [end - start for start, end in zip(self.starts, (*self.starts[1:], self.n_tokens), strict=True)]

    @classmethod
    def of(cls, starts: Sequence[int], n_tokens: int, device: torch.device | str = "cpu") -> "Segments":
        """Raises ValueError unless the starts begin with 0, rise, and end before the row does."""
        starts = tuple(int(start) for start in starts)
        ends = (*starts[1:], n_tokens)
        if not starts or starts[0] != 0 or any(a >= b for a, b in zip(starts, ends, strict=True)):
            raise ValueError(f"segments that start at {list(starts)[:8]} found, rising from 0 to below {n_tokens} expected")
        runs: dict[int, list[tuple[int, int]]] = defaultdict(list)  # by length, neighbours joined
        for start, end in zip(starts, ends, strict=True):
            same = runs[end - start]
            if same and same[-1][1] == start:
                same[-1] = (same[-1][0], end)
            else:
                same.append((start, end))
        batches, order = [], []
        for length, spans in runs.items():
            if len(spans) > 1 and length <= _COPIED:
                where = torch.cat([torch.arange(*span) for span in spans])
                batches.append(_Batch(length, where.to(device)))
                order.append(where)
            else:
                batches += [_Batch(length, span) for span in spans]
                order += [torch.arange(*span) for span in spans]
        lying = torch.cat(order)
        is_in_order = bool((lying[1:] > lying[:-1]).all())
        return cls(starts, n_tokens, tuple(batches), None if is_in_order else lying.argsort().to(device))


def attend(q_SHX: Tensor, k_SKX: Tensor, v_SKX: Tensor, segments: Segments, *, is_causal: bool) -> Tensor:
    """What each token sees of its own segment, (S, H, X). H a multiple of K: neighbouring heads share keys and values."""
    results = [_attend(*(_taken(x, batch) for x in (q_SHX, k_SKX, v_SKX)), is_causal=is_causal) for batch in segments.batches]
    out = results[0] if len(results) == 1 else torch.cat(results)
    return out if segments.back is None else out[segments.back]


def attend_cached(q_SHX: Tensor, k_GKCX: Tensor, v_GKCX: Tensor, before_G: Tensor, segments: Segments) -> Tensor:
    """What new tokens see of their segment, itself and before it: (S, H, X).

    k_GKCX, v_GKCX: keys and values of each segment, the new ones among them; before_G: how many there were before. Where all
    segments have one new token, which is how text is generated, one call serves all of them.
    """
    n_heads, n_kv = q_SHX.shape[1], k_GKCX.shape[1]
    if len(segments.starts) == segments.n_tokens:
        # heads that share keys stand in for tokens: keys and values are read once, not once a head
        q_GKRX = q_SHX.view(len(q_SHX), n_kv, n_heads // n_kv, -1)
        is_there = torch.arange(k_GKCX.shape[2], device=q_SHX.device) <= before_G[:, None]
        seen = nf.scaled_dot_product_attention(q_GKRX, k_GKCX, v_GKCX, attn_mask=is_there[:, None, None, :])
        return seen.flatten(1, 2)
    parts = []
    for number, (start, length, before) in enumerate(zip(segments.starts, segments.lengths, before_G.tolist(), strict=True)):
        q_1HNX = q_SHX[start : start + length].transpose(0, 1).unsqueeze(0)
        k, v = (x[number : number + 1, :, : before + length] for x in (k_GKCX, v_GKCX))
        mask = torch.ones(length, before + length, dtype=torch.bool, device=q_SHX.device).tril(before)
        seen = nf.scaled_dot_product_attention(q_1HNX, k, v, attn_mask=mask, enable_gqa=n_heads != n_kv)
        parts.append(seen[0].transpose(0, 1))
    return torch.cat(parts)


def _taken(x_SHX: Tensor, batch: _Batch) -> Tensor:
    """(S, H, X) to the batch's (G, H, length, X)."""
    part = x_SHX[slice(*batch.where)] if isinstance(batch.where, tuple) else x_SHX[batch.where]
    return part.view(-1, batch.length, *part.shape[1:]).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return attention_bf16_cpu(q, k, v, is_causal=is_causal).flatten(0, 1)
    seen = nf.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1])
    return seen.transpose(1, 2).flatten(0, 1)
