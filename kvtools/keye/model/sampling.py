"""The next token: the distribution that a repetition penalty, temperature, top-k and top-p leave, and a draw from it.

As published implementations have it (transformers' logits processors): first the penalty, then the temperature, then top-k,
then top-p of what top-k left. The invariant: a draw depends on its row of logits, on the tokens that it had and on its number
in [0, 1) alone, not on its neighbours in the batch; of equally probable tokens the lower id is kept first.

Legend: B rows, V vocabulary, K candidates of a row, F forbidden tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

_ROUNDING = 1e-12


@dataclass(frozen=True)
class SamplingConfig:
    """temperature 0: always the most probable token. top_k 0: all. repetition_penalty: what the logits of tokens that the
    prompt or the answer has are divided by, those below 0 multiplied. Raises ValueError for values that give no
    distribution."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}, and a number of at least 0 is needed")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, and 0 for all tokens or a number of tokens is needed")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, and a number above 0 and at most 1 is needed")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}, and a number above 0 is needed")


@dataclass(frozen=True)
class SampledTokens:
    """One token a row: tokens_B int64; logprobs_B float32, under the model's whole distribution at temperature 1;
    sampling_logprobs_B float32, under the distribution it was drawn from, which greedily is 0."""

    tokens_B: Tensor
    logprobs_B: Tensor
    sampling_logprobs_B: Tensor


class SeenTokens:
    """Which tokens each row has had, of its prompt and of its answer so far: bool (B, V)."""

    def __init__(self, is_seen_BV: Tensor) -> None:
        self.is_seen_BV = is_seen_BV

    def select(self, index_B: Tensor) -> Self:
        """The same, of these rows alone."""
        self.is_seen_BV = self.is_seen_BV[index_B]
        return self


def seen_tokens(sampling: SamplingConfig, prompts: Sequence[np.ndarray], output_VD: Tensor) -> SeenTokens | None:
    """The tokens of these prompts, int32 (S,) each, a row a prompt; None without a penalty. output_VD: the output matrix."""
    if sampling.repetition_penalty == 1:
        return None
    is_seen_BV = torch.zeros(len(prompts), len(output_VD), dtype=torch.bool)
    for row, tokens in enumerate(prompts):
        is_seen_BV[row, torch.from_numpy(tokens).long()] = True
    return SeenTokens(is_seen_BV.to(output_VD.device))


def sample_tokens(
    logits_BV: Tensor, sampling: SamplingConfig, uniform_B: Tensor, forbidden_F: Tensor, seen: SeenTokens | None = None
) -> SampledTokens:
    """A token a row. uniform_B: float64 in [0, 1). forbidden_F: int64, ids that are never drawn, though they keep their
    probability in logprobs_B. seen: what the repetition penalty is for, to which the tokens drawn are added. Raises ValueError
    for logits that are not finite."""
    wide_BV = logits_BV.float()
    total_B = wide_BV.logsumexp(1)
    if not bool(total_B.isfinite().all()):
        raise ValueError("the model gives logits that are not finite")
    penalised_BV = wide_BV
    if seen is not None:
        penalty = sampling.repetition_penalty
        changed_BV = torch.where(wide_BV < 0, wide_BV * penalty, wide_BV / penalty)
        penalised_BV = torch.where(seen.is_seen_BV, changed_BV, wide_BV)
    allowed_BV = penalised_BV.index_fill(1, forbidden_F, -math.inf) if len(forbidden_F) else penalised_BV
    if sampling.temperature == 0:
        tokens_B = allowed_BV.argmax(1)  # of equals the first
        sampling_logprobs_B = torch.zeros_like(total_B)
    else:
        ids_BK, probs_BK = candidates(allowed_BV, sampling)
        index_B1 = _invert_cdf(probs_BK, uniform_B)
        tokens_B = index_B1[:, 0] if ids_BK is None else ids_BK.gather(1, index_B1)[:, 0]
        sampling_logprobs_B = probs_BK.gather(1, index_B1)[:, 0].log().float()
    if seen is not None:
        seen.is_seen_BV.scatter_(1, tokens_B[:, None], value=True)
    logprobs_B = wide_BV.gather(1, tokens_B[:, None])[:, 0] - total_B
    return SampledTokens(tokens_B, logprobs_B, sampling_logprobs_B)


def candidates(logits_BV: Tensor, sampling: SamplingConfig) -> tuple[Tensor | None, Tensor]:
    """Ids int64 (B, K), None where they are all in order, and their probabilities float64, which sum to 1; some may be 0.

    temperature above 0. top_p keeps the fewest of the most probable whose probabilities sum to at least top_p.
    """
    highest_B1 = logits_BV.amax(1, keepdim=True)
    values_BK = (logits_BV - highest_B1) / sampling.temperature  # a temperature near 0 gives -inf, and 0 for the highest
    ids_BK = None
    if 0 < sampling.top_k < values_BK.shape[1]:
        ids_BK = _top_k(values_BK, sampling.top_k)
        values_BK = values_BK.gather(1, ids_BK)
    if sampling.top_p < 1:
        values_BK, order_BK = values_BK.sort(dim=1, descending=True, stable=True)
        ids_BK = order_BK if ids_BK is None else ids_BK.gather(1, order_BK)
    probs_BK = values_BK.double().softmax(1)
    if sampling.top_p < 1:
        before_BK = probs_BK.cumsum(1) - probs_BK
        # sums end in rounding: 27 of 30 equal probabilities are 0.9 to everybody else
        probs_BK = probs_BK.masked_fill(before_BK >= max(sampling.top_p - _ROUNDING, _ROUNDING), 0)
        probs_BK = probs_BK / probs_BK.sum(1, keepdim=True)
    return ids_BK, probs_BK


def _top_k(values_BV: Tensor, k: int) -> Tensor:
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


def _invert_cdf(probs_BK: Tensor, uniform_B: Tensor) -> Tensor:
    """The candidate that each row's number falls on, int64 (B, 1); never one of probability 0."""
    sums_BK = probs_BK.cumsum(1)
    total_B1 = sums_BK[:, -1:].contiguous()
    index_B1 = torch.searchsorted(sums_BK, uniform_B[:, None] * total_B1, right=True)
    last_B1 = torch.searchsorted(sums_BK, total_B1)  # the first that brings the sum to the total: the last that is not 0
    return torch.minimum(index_B1, last_B1)
