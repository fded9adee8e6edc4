"""Policy objectives of reinforcement learning: GRPO, ECPO, GBPO and GSPO, as losses to be minimised.

GRPO, ECPO and GBPO work element by element: give log-probabilities of tokens for an objective of tokens, or their sums for
one of whole answers, such as OneRec's, where the ratio is that of whole items. GSPO takes tokens and makes one ratio an answer.
The log-probabilities of the policy that sampled are constants: no gradient goes through them. Not here: rewards, sampling, the
mean over a batch, the loss of other data that is trained jointly.

Sources: GRPO: DeepSeekMath (arXiv 2402.03300), and the k3 estimator of KL after Schulman 2020. ECPO: OneRec (2506.13695 v4),
equation 32. GBPO: OneRec-V2 (2508.20900 v4). GSPO: Zheng et al. 2025 (2507.18071).

Legend: P prompts or users, G answers a group, N = P * G answers, T tokens an answer.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_LEAST_STD = 1e-8  # rewards that differ by less are constant: dividing by it would only enlarge rounding


class Surrogate(NamedTuple):
    """What an objective gives for each ratio, in the ratios' shape."""

    loss: Tensor  # float, to be minimised
    is_clipped: Tensor  # bool: the objective cuts or bounds the gradient there


def group_advantages(rewards_PG: np.ndarray, is_kept_PG: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Advantages within each group, (reward - mean) / std, and which groups have none.

    rewards_PG: float (P, G). is_kept_PG: bool, which answers count; those left out are in no mean, and their advantage is 0.
    The std is that of the group, divided by G and not G - 1. Returns float64 (P, G), and bool (P,): groups whose rewards are
    constant, or not finite anywhere, or of fewer than two answers; their advantages are all 0.
    """
    rewards_PG = np.asarray(rewards_PG, np.float64)
    kept_PG = np.ones(rewards_PG.shape, bool) if is_kept_PG is None else np.asarray(is_kept_PG, bool)
    is_finite_P = (np.isfinite(rewards_PG) | ~kept_PG).all(1)
    counted_PG = kept_PG & is_finite_P[:, None]
    rewards_PG = np.where(counted_PG, rewards_PG, 0.0)
    n_P1 = np.maximum(counted_PG.sum(1, keepdims=True), 1)
    centred_PG = np.where(counted_PG, rewards_PG - rewards_PG.sum(1, keepdims=True) / n_P1, 0.0)
    std_P1 = np.sqrt((centred_PG**2).sum(1, keepdims=True) / n_P1)
    scale_P1 = np.maximum(np.abs(rewards_PG).max(1, keepdims=True, initial=0.0), 1.0)
    has_none_P1 = std_P1 <= _LEAST_STD * scale_P1
    return np.where(has_none_P1, 0.0, centred_PG / np.where(has_none_P1, 1.0, std_P1)), has_none_P1[:, 0]


def grpo(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip: float, clip_high: float | None = None) -> Surrogate:
    """The clipped objective -min(ratio * A, clip(ratio, 1 - clip, 1 + clip_high) * A).

    logp, old_logp, advantages: float, any shape that broadcasts; gradients go through logp alone. clip_high: as clip where it
    is None. The ratio is unbounded where A < 0 and the answer has become more probable.
    """
    return _clipped((logp - old_logp.detach()).exp(), advantages, clip, clip if clip_high is None else clip_high)


def ecpo(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip: float, delta: float) -> Surrogate:
    """GRPO with early clipping: old probabilities are raised to at least sg(p) / (1 + clip + delta).

    logp, old_logp, advantages: float, any shape that broadcasts. Where A < 0 the gradient's factor is at most
    (1 + clip + delta) |A|; elsewhere it equals GRPO's.
    """
    floor = logp.detach() - math.log1p(clip + delta)
    surrogate = _clipped((logp - torch.maximum(floor, old_logp.detach())).exp(), advantages, clip, clip)
    return surrogate._replace(is_clipped=surrogate.is_clipped | ((advantages < 0) & (floor > old_logp)))


def gbpo(logp: Tensor, old_logp: Tensor, advantages: Tensor) -> Surrogate:
    """Gradients bounded as those of binary cross-entropy: no answer is ever dropped.

    logp, old_logp, advantages: float, any shape that broadcasts; logp is of whole answers, 0 at most. The old probability is
    raised to at least sg(p) where A >= 0, and to at least 1 - sg(p) where A < 0.
    """
    floor = torch.where(advantages >= 0, logp.detach(), _log1m_exp(logp.detach()))
    ratio = (logp - torch.maximum(floor, old_logp.detach())).exp()
    return Surrogate(-ratio * advantages, floor > old_logp)


def gspo(
    logp_NT: Tensor, old_logp_NT: Tensor, advantages_N: Tensor, mask_NT: Tensor, *, clip: float, clip_high: float | None = None
) -> Surrogate:
    """GRPO's objective of one ratio an answer, the geometric mean of its tokens' ratios.

    mask_NT: bool or float (N, T), 1 where a token counts. Returns shape (N,); an answer without a token has ratio 1.
    """
    ratio_N = per_answer(logp_NT - old_logp_NT.detach(), mask_NT).exp()
    return _clipped(ratio_N, advantages_N, clip, clip if clip_high is None else clip_high)


def kl_k3(logp: Tensor, reference_logp: Tensor) -> Tensor:
    """An estimate of KL(policy | reference) for each sample of the policy: exp(d) - d - 1 of d = reference - policy; never
    negative, unbiased, the shape of the inputs, which broadcast."""
    difference = reference_logp.detach() - logp
    return torch.expm1(difference) - difference


def per_answer(values_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """The mean over each answer's tokens, (N,); 0 for an answer without one. mask_NT: bool or float, 1 where a token counts."""
    mask_NT = mask_NT.to(values_NT.dtype)
    # not values * mask: a padded position may hold an infinity, and 0 times that is NaN
    total_N = torch.where(mask_NT > 0, values_NT * mask_NT, torch.zeros_like(values_NT)).sum(1)
    return total_N / mask_NT.sum(1).clamp(min=1.0)


def _clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Surrogate:
    gain = torch.minimum(ratio * advantages, ratio.clamp(1.0 - low, 1.0 + high) * advantages)
    is_clipped = ((advantages > 0) & (ratio > 1.0 + high)) | ((advantages < 0) & (ratio < 1.0 - low))
    return Surrogate(-gain, is_clipped)


def _log1m_exp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x <= 0, exact at both ends; -inf at 0."""
    x = x.clamp(max=0.0)
    is_large = x > -math.log(2.0)
    return torch.where(is_large, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
