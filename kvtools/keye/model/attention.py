"""Attention within the segments of a packed row: no token attends to another segment, and no time is spent on masking them.

Segments of equal length are computed as one batch, others in a call each: the work is the sum of the squares of the lengths.
torch's scaled_dot_product_attention everywhere but on CPUs in bfloat16 (cpu_kernels.py). Not here: positions (rope.py) and
projections.

Legend: S tokens of a row, G segments, H heads, K heads of keys and values, R = H / K, X width of a head, N new tokens of a
segment, C cached tokens.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as nf

from kvtools.keye.model.cpu_kernels import attention_bf16_cpu

_GATHERED = (
    512  # tokens: segments up to this long are gathered into a batch; copying longer ones costs more than the call saved
)


@dataclass(frozen=True)
class _Batch:
    """Segments of one length. tokens: the first token and the one after the last, or an int64 index of the tokens."""

    length: int
    tokens: tuple[int, int] | Tensor


@dataclass(frozen=True)
class _Whole:
    """Segments that continue others, each written out after a copy of what it continues, E tokens in all. tokens_E: where each
    of them stands in the row. restore_S: where each token of the row stands among them."""

    segments: "Segments"
    tokens_E: Tensor
    restore_S: Tensor


@dataclass(frozen=True)
class Segments:
    """How a row of n_tokens falls into segments; made once a forward, used in every layer."""

    starts: tuple[int, ...]
    n_tokens: int
    batches: tuple[_Batch, ...]
    restore_S: Tensor | None  # index of each token's result among those of the batches; None where they are in order
    whole: "_Whole | None" = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each segment."""
        return [end - start for start, end in zip(self.starts, (*self.starts[1:], self.n_tokens), strict=True)]

    @classmethod
    def of(cls, starts: Sequence[int], n_tokens: int, device: torch.device | str = "cpu") -> "Segments":
        """The segments with those first tokens. Raises ValueError unless they begin with 0, rise, and end below n_tokens."""
        starts = tuple(int(start) for start in starts)
        ends = (*starts[1:], n_tokens)
        if not starts or starts[0] != 0 or any(a >= b for a, b in zip(starts, ends, strict=True)):
            raise ValueError(
                f"segments start at {list(starts)[:8]}, and starts that rise from 0 to below {n_tokens} are needed"
            )
        spans: dict[int, list[tuple[int, int]]] = defaultdict(list)  # by length; neighbours of one length are joined
        for start, end in zip(starts, ends, strict=True):
            same = spans[end - start]
            if same and same[-1][1] == start:
                same[-1] = (same[-1][0], end)
            else:
                same.append((start, end))
        batches, order = [], []
        for length, equal in spans.items():
            tokens = [torch.arange(*span) for span in equal]
            order += tokens
            if len(equal) > 1 and length <= _GATHERED:
                batches.append(_Batch(length, torch.cat(tokens).to(device)))
            else:
                batches += [_Batch(length, span) for span in equal]
        order_S = torch.cat(order)
        is_in_order = bool((order_S[1:] > order_S[:-1]).all())
        return cls(starts, n_tokens, tuple(batches), None if is_in_order else order_S.argsort().to(device))

    def continuing(self, prompts: Sequence[int], device: torch.device | str = "cpu") -> "Segments":
        """The same segments, of which each also attends to its prompt, an earlier segment without one: int (G,), -1 for none.
        Attention within a prompt is computed once a segment that continues it; all else once. Raises ValueError for others."""
        ends = (*self.starts[1:], self.n_tokens)
        if len(prompts) != len(ends) or not all(
            prompt == -1 or (0 <= prompt < number and prompts[prompt] == -1) for number, prompt in enumerate(prompts)
        ):
            raise ValueError(f"prompts are {list(prompts)[:8]}, and each of {len(ends)} segments needs an earlier one, or -1")
        continued = set(prompts)
        tokens: list[Tensor] = []
        starts, n_whole = [], 0
        restore_S = torch.empty(self.n_tokens, dtype=torch.long)
        for number, (start, end, prompt) in enumerate(zip(self.starts, ends, prompts, strict=True)):
            if number in continued:
                continue  # it is computed with the first that continues it
            parts = [] if prompt < 0 else [torch.arange(self.starts[prompt], ends[prompt])]
            row = torch.cat([*parts, torch.arange(start, end)])
            restore_S[row] = torch.arange(n_whole, n_whole + len(row))
            starts.append(n_whole)
            n_whole += len(row)
            tokens.append(row)
        whole = _Whole(Segments.of(starts, n_whole, device), torch.cat(tokens).to(device), restore_S.to(device))
        return replace(self, whole=whole)


def attend(q_SHX: Tensor, k_SKX: Tensor, v_SKX: Tensor, segments: Segments, *, is_causal: bool) -> Tensor:
    """Attention of each token to its own segment, (S, H, X). H a multiple of K: neighbouring heads share keys and values."""
    if segments.whole is not None:
        whole = segments.whole
        q_EHX, k_EKX, v_EKX = (x.index_select(0, whole.tokens_E) for x in (q_SHX, k_SKX, v_SKX))
        return attend(q_EHX, k_EKX, v_EKX, whole.segments, is_causal=is_causal).index_select(0, whole.restore_S)
    parts = []
    for batch in segments.batches:
        q_GHLX, k_GKLX, v_GKLX = (_gather(x, batch) for x in (q_SHX, k_SKX, v_SKX))
        parts.append(_attend(q_GHLX, k_GKLX, v_GKLX, is_causal=is_causal))
    out_SHX = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out_SHX if segments.restore_S is None else out_SHX[segments.restore_S]


def attend_cached(q_SHX: Tensor, k_GKCX: Tensor, v_GKCX: Tensor, before_G: Tensor, segments: Segments) -> Tensor:
    """Attention of new tokens to themselves and to all tokens before them in their segment: (S, H, X).

    k_GKCX, v_GKCX: keys and values of each segment, those of the new tokens included. before_G: int64, the number of tokens
    before the new ones. Where every segment has one new token, as in generation, one call serves all of them.
    """
    n_heads, n_kv = q_SHX.shape[1], k_GKCX.shape[1]
    if len(segments.starts) == segments.n_tokens:
        # heads that share keys stand in for tokens: keys and values are read once, not once a head
        q_GKRX = q_SHX.view(len(q_SHX), n_kv, n_heads // n_kv, -1)
        is_cached_GC = torch.arange(k_GKCX.shape[2], device=q_SHX.device) <= before_G[:, None]
        out = nf.scaled_dot_product_attention(q_GKRX, k_GKCX, v_GKCX, attn_mask=is_cached_GC[:, None, None, :])
        return out.flatten(1, 2)
    parts = []
    for number, (start, length, before) in enumerate(zip(segments.starts, segments.lengths, before_G.tolist(), strict=True)):
        q_1HNX = q_SHX[start : start + length].transpose(0, 1).unsqueeze(0)
        k_1KCX, v_1KCX = (x[number : number + 1, :, : before + length] for x in (k_GKCX, v_GKCX))
        mask_NC = torch.ones(length, before + length, dtype=torch.bool, device=q_SHX.device).tril(before)
        out = nf.scaled_dot_product_attention(q_1HNX, k_1KCX, v_1KCX, attn_mask=mask_NC, enable_gqa=n_heads != n_kv)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def _gather(x_SHX: Tensor, batch: _Batch) -> Tensor:
    """A batch's tokens, (G, H, length, X)."""
    part = x_SHX[slice(*batch.tokens)] if isinstance(batch.tokens, tuple) else x_SHX[batch.tokens]
    return part.view(-1, batch.length, *part.shape[1:]).transpose(1, 2)


def _attend(q_GHLX: Tensor, k_GKLX: Tensor, v_GKLX: Tensor, *, is_causal: bool) -> Tensor:
    """Attention within each segment of a batch, (G * L, H, X)."""
    if q_GHLX.device.type == "cpu" and q_GHLX.dtype == torch.bfloat16:
        return attention_bf16_cpu(q_GHLX, k_GKLX, v_GKLX, is_causal=is_causal).flatten(0, 1)
    is_grouped = q_GHLX.shape[1] != k_GKLX.shape[1]
    out = nf.scaled_dot_product_attention(q_GHLX, k_GKLX, v_GKLX, is_causal=is_causal, enable_gqa=is_grouped)
    return out.transpose(1, 2).flatten(0, 1)
