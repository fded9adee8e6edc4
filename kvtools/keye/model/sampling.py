"""Which token comes next: the distribution that temperature, top-k and top-p leave, and a draw from it.

As published implementations have it (transformers' logits processors): first the temperature, then top-k, then top-p of what
top-k left. The invariant: a draw depends on its row of logits and its number in [0, 1) alone, not on its neighbours in the
batch; of equally probable tokens the lower id is kept first.

Legend: B rows, V vocabulary, K candidates of a row.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 1e-12


@dataclass(frozen=True)
class SamplingConfig:
    """temperature 0: always the most probable token. top_k 0: all. Raises ValueError for what is no distribution."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: {self.temperature} found, 0 or more expected")
        if self.top_k < 0:
            raise ValueError(f"top_k: {self.top_k} found, 0 for all or a count expected")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p} found, more than 0 and at most 1 expected")


@dataclass(frozen=True)
class SampledTokens:
    """tokens_B int64; logprobs_B: float32, under the whole model at temperature 1; drawn_B: under what was drawn from."""

    tokens_B: Tensor
    logprobs_B: Tensor
    drawn_B: Tensor


def sample_tokens(logits_BV: Tensor, sampling: SamplingConfig, chance_B: Tensor, never: Tensor) -> SampledTokens:
    """A token a row. chance_B: float64 in [0, 1); never: int64, ids that are not drawn, though they keep their share of the
    log-probabilities. Raises ValueError for logits that are not finite."""
    wide_BV = logits_BV.float()
    total_B = wide_BV.logsumexp(1)
    if not bool(total_B.isfinite().all()):
        raise ValueError("logits that are not finite found")
    allowed_BV = wide_BV.index_fill(1, never, -math.inf) if len(never) else wide_BV
    if sampling.temperature == 0:
        tokens_B = allowed_BV.argmax(1)  # of equals the first
        drawn_B = torch.zeros_like(total_B)
    else:
        ids_BK, share_BK = candidates(allowed_BV, sampling)
        place_B1 = _draw(share_BK, chance_B)
        tokens_B = place_B1[:, 0] if ids_BK is None else ids_BK.gather(1, place_B1)[:, 0]
        drawn_B = share_BK.gather(1, place_B1)[:, 0].log().float()
    logprobs_B = wide_BV.gather(1, tokens_B[:, None])[:, 0] - total_B
    return SampledTokens(tokens_B, logprobs_B, drawn_B)


def candidates(logits_BV: Tensor, sampling: SamplingConfig) -> tuple[Tensor | None, Tensor]:
    """Ids int64 (B, K), None where they are all in order, and their shares float64, which sum to 1; some may be 0.

    temperature above 0. top_p keeps the fewest of the most probable whose shares sum to at least top_p.
    """
    highest_B1 = logits_BV.amax(1, keepdim=True)
    values = (logits_BV - highest_B1) / sampling.temperature  # a temperature near 0 gives -inf, and 0 for the highest
    ids = None
    if 0 < sampling.top_k < values.shape[1]:
        ids = _highest(values, sampling.top_k)
        values = values.gather(1, ids)
    if sampling.top_p < 1:
        values, order = values.sort(dim=1, descending=True, stable=True)
        ids = order if ids is None else ids.gather(1, order)
    share = values.double().softmax(1)
    if sampling.top_p < 1:
        before = share.cumsum(1) - share
        # sums end in rounding: 27 equal shares of 30 are 0.9 to everybody else
        share = share.masked_fill(before >= max(sampling.top_p - _ROUNDING, _ROUNDING), 0)
        share = share / share.sum(1, keepdim=True)
    return ids, share


def _highest(values_BV: Tensor, k: int) -> Tensor:
    """Ids of the k highest of each row, rising; of equals the lower ids. (B, k)."""
    top = values_BV.topk(k + 1)
    if bool((top.values[:, k - 1] > top.values[:, k]).all()):
        return top.indices[:, :k].sort(1).values
    # topk does not say which of equals it takes
    least_B1 = top.values[:, k - 1 : k]
    is_above, is_tied = values_BV > least_B1, values_BV == least_B1
    n_room_B1 = k - is_above.sum(1, keepdim=True)
    is_kept = is_above | (is_tied & (is_tied.cumsum(1) <= n_room_B1))
    return is_kept.nonzero()[:, 1].view(-1, k)


def _draw(share_BK: Tensor, chance_B: Tensor) -> Tensor:
    """The place that each row's number falls on, (B, 1); never one without a share."""
    sums_BK = share_BK.cumsum(1)
    whole_B1 = sums_BK[:, -1:].contiguous()
    place_B1 = torch.searchsorted(sums_BK, chance_B[:, None] * whole_B1, right=True)
    last_B1 = torch.searchsorted(sums_BK, whole_B1)  # the first that brings the sum to the whole: the last with a share
    return torch.minimum(place_B1, last_B1)
