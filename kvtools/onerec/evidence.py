"""Neighbours as evidence for codes: how much speaks for each code, given the codes before it.

Items that the training part puts beside a user's latest ones are known by their codes too. Of those whose first codes agree
with a prefix, the scores are summed by the next code; the generator learns how far to trust the sums (`Trust`). Our own, in
the manner of pointer networks (See et al. 2017, arXiv 1704.04368), but added to logits instead of mixed into probabilities.

Legend: R rows (a user, or a user and a target), N neighbours, S levels, K codes, M prefixes asked about.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nf


@dataclass(frozen=True)
class Evidence:
    """codes_RNS: int64, the neighbours' IDs. alike_RN: float32, how much speaks for each, 0 where there is none."""

    codes_RNS: Tensor
    alike_RN: Tensor

    def start(self) -> Tensor:
        """Which neighbours agree with the empty prefix of each row: all, bool (R, N)."""
        return torch.ones_like(self.alike_RN, dtype=torch.bool)

    def follow(self, level: int, rows_M: Tensor, agree_MN: Tensor, codes_M: Tensor) -> Tensor:
        """Which still agree when each prefix goes on with a code of this level, bool (M, N)."""
        return agree_MN & (self.codes_RNS[rows_M, :, level] == codes_M.unsqueeze(1))

    def sums(self, level: int, rows_M: Tensor, agree_MN: Tensor, n_codes: int) -> Tensor:
        """How much speaks for each code of a level, float32 (M, K)."""
        alike_MN = self.alike_RN[rows_M] * agree_MN
        return alike_MN.new_zeros(len(rows_M), n_codes).scatter_add_(1, self.codes_RNS[rows_M, :, level], alike_MN)


class Trust(nn.Module):
    """What evidence adds to a level's logits: a factor of the decoder's state times log(1 + scale * sum)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def forward(self, h_MD: Tensor, sums_MK: Tensor) -> Tensor:
        added: Tensor = nf.softplus(self.factor(h_MD)) * torch.log1p(self.log_scale.exp() * sums_MK)
        return added
