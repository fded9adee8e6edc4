"""Mixed preference optimisation (MPO): a worse and a better answer to one prompt, in three terms.

    preference   -log sigmoid(r_c - r_r)                                    which answer is better
    quality      -log sigmoid(r_c - shift) - log sigmoid(shift - r_r)       how good each is by itself (BCO)
    generation   -log p(chosen) / tokens                                    how a good answer is made

r(y) = beta * log(p(y) / p0(y)), with p0 the frozen model that training starts from; `shift` is the running mean of the rewards
of earlier steps (`RunningMean`). Source: arXiv 2411.10442; Keye-VL's report (section 4.1) names the method without its weights,
so these are the method's own, .8, .2 and 1. trl's losses sigmoid, bco_pair and sft are the same with shift 0 and one pair a
batch (of several, its sft is a mean over tokens, ours over answers).

Legend: B pairs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as nf


@dataclass(frozen=True)
class MpoConfig:
    """Weights of the three terms, and beta, the strength of the hold on the start model. Raises ValueError for values that give
    no loss."""

    preference: float = 0.8
    quality: float = 0.2
    generation: float = 1.0
    beta: float = 0.1

    def __post_init__(self) -> None:
        weights = (self.preference, self.quality, self.generation)
        if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise ValueError(f"weights are {', '.join(f'{x:g}' for x in weights)}, and none below 0 and one above is needed")
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta is {self.beta:g}, and a finite number above 0 is needed")


class MpoTerms(NamedTuple):
    """The weighted loss of each pair and its terms, all float (B,); the rewards of both answers, without gradients."""

    loss_B: Tensor
    preference_B: Tensor
    quality_B: Tensor
    generation_B: Tensor
    chosen_reward_B: Tensor
    rejected_reward_B: Tensor


def mpo(
    chosen_B: Tensor, rejected_B: Tensor, chosen_start_B: Tensor, rejected_start_B: Tensor, n_chosen_B: Tensor, *,
    config: MpoConfig, shift: float = 0.0,
) -> MpoTerms:  # fmt: skip
    """The loss of pairs of answers, from the summed log-probabilities of each.

    chosen_B, rejected_B: float (B,), of the model that learns; chosen_start_B, rejected_start_B: of the start model.
    n_chosen_B: (B,), tokens of the better answers, at least 1. shift: the mean of earlier rewards, in r's unit.
    """
    chosen_reward_B = config.beta * (chosen_B - chosen_start_B)
    rejected_reward_B = config.beta * (rejected_B - rejected_start_B)
    preference_B = -nf.logsigmoid(chosen_reward_B - rejected_reward_B)
    quality_B = -nf.logsigmoid(chosen_reward_B - shift) - nf.logsigmoid(shift - rejected_reward_B)
    generation_B = -chosen_B / n_chosen_B
    loss_B = config.preference * preference_B + config.quality * quality_B + config.generation * generation_B
    return MpoTerms(loss_B, preference_B, quality_B, generation_B, chosen_reward_B.detach(), rejected_reward_B.detach())


@dataclass
class RunningMean:
    """The mean of all rewards so far, of both answers of every pair: BCO's shift. A step sees that of the steps before it."""

    total: float = 0.0
    count: int = 0

    @property
    def value(self) -> float:
        """The mean; 0 before the first."""
        return self.total / self.count if self.count else 0.0

    def add(self, total: float, count: int) -> None:
        """Count the rewards of a step, by their sum."""
        self.total, self.count = self.total + total, self.count + count


def segment_sums(logprobs_S: Tensor, segments: Tensor) -> Tensor:
    """The summed log-probabilities of each conversation of a packed row, (G,): segments int64 (G,) are first tokens."""
    n_tokens = torch.diff(segments, append=segments.new_tensor([len(logprobs_S)]))
    conversation_S = torch.repeat_interleave(torch.arange(len(segments), device=segments.device), n_tokens)
    return logprobs_S.new_zeros(len(segments)).index_add(0, conversation_S, logprobs_S)
