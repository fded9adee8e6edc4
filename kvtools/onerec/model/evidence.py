"""Neighbours as evidence for codes: how much speaks for each code, given the codes before it.

Items that the training part puts beside a user's latest ones are known by their codes too. Each weighs by how alike it is, and
by how well it fits the decoder's state; the weights of those whose first codes agree with a prefix are summed by the next
code, and the logarithm of the sum is added to the code's logit. Our own, in the manner of pointer networks (See et al.
2017, arXiv 1704.04368), but in logits and not in probabilities. In training a target's evidence is left out now and then, so
that the generator learns to do without.

Legend: R rows (a target of a user each), W beams a row, M = R * W prefixes, N neighbours, S levels, K codes, D width,
X width of a key.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

_KEY = 32


@dataclass(frozen=True)
class Evidence:
    """codes_RNS: int64, the neighbours' IDs. log_alike_RN: float32. keys_RNX: what fits them. is_there_RN: bool."""

    codes_RNS: Tensor
    log_alike_RN: Tensor
    keys_RNX: Tensor
    is_there_RN: Tensor

    def start(self) -> Tensor:
        """Which neighbours agree with the empty prefix of each row: all there are, bool (R, N)."""
        return self.is_there_RN

    def follow(self, level: int, agree_MN: Tensor, codes_M: Tensor) -> Tensor:
        """Which still agree when each prefix goes on with a code of this level, bool (M, N)."""
        return agree_MN & (self._codes(level, len(codes_M)) == codes_M.unsqueeze(1))

    def _codes(self, level: int, n_prefixes: int) -> Tensor:
        codes_RN = self.codes_RNS[:, :, level]
        return codes_RN.repeat_interleave(n_prefixes // len(codes_RN), 0)

    def sums(self, level: int, agree_MN: Tensor, query_MX: Tensor, power: Tensor, n_codes: int) -> Tensor:
        """The weight of what speaks for each code of a level, float32 (M, K)."""
        n_rows, n_near, width = self.keys_RNX.shape
        fit_MN = (query_MX.view(n_rows, -1, width) @ self.keys_RNX.float().transpose(1, 2)).reshape(-1, n_near) / math.sqrt(
            width
        )
        log_MN = (power * self.log_alike_RN).repeat_interleave(len(query_MX) // n_rows, 0) + fit_MN
        weight_MN = log_MN.masked_fill(~agree_MN, -math.inf).exp()
        zeros_MK = weight_MN.new_zeros(len(query_MX), n_codes)
        return zeros_MK.scatter_add(1, self._codes(level, len(query_MX)), weight_MN)


class Neighbours(nn.Module):
    """Makes evidence of items, and weighs it: one for all levels' keys, a query and a trust each."""

    def __init__(self, width: int, n_items: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.codes = nn.ModuleList(nn.Embedding(n, _KEY) for n in sizes)
        self.items = nn.Embedding(n_items, _KEY)
        self.queries = nn.ModuleList(nn.Linear(width, _KEY, bias=False) for _ in sizes)
        self.trust = nn.ModuleList(nn.Linear(width, 1) for _ in sizes)
        self.power = nn.Parameter(torch.ones(len(sizes)))
        self.log_scale = nn.Parameter(torch.full((len(sizes),), math.log(20.0)))
        for table in (*self.codes, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def evidence(self, items_RN: Tensor, alike_RN: Tensor, codes_RNS: Tensor, dropout: float) -> Evidence:
        """items_RN: int64, negative where there is none. dropout: the share of rows whose evidence is left out."""
        keys_RNX = self.items(items_RN.clamp(min=0))
        for level, table in enumerate(self.codes):
            keys_RNX = keys_RNX + table(codes_RNS[:, :, level])
        is_there = items_RN >= 0
        if dropout:
            is_there = is_there & (torch.rand(len(items_RN), 1, device=items_RN.device) >= dropout)
        return Evidence(codes_RNS, alike_RN.clamp(min=1e-9).log(), keys_RNX, is_there)

    def added(self, evidence: Evidence, level: int, h_MD: Tensor, agree_MN: Tensor) -> Tensor:
        """What is added to the logits of a level, float32 (M, K). h_MD: the decoder's normed states."""
        table: Tensor = self.codes[level].weight  # type: ignore[assignment]
        # sums of exponentials want float32 whatever the rest is
        with torch.autocast(h_MD.device.type, enabled=False):
            h_MD = h_MD.to(table.dtype)
            query_MX = self.queries[level](h_MD).float()
            sums_MK = evidence.sums(level, agree_MN, query_MX, self.power[level].float(), len(table))
            trust_M1: Tensor = nf.softplus(self.trust[level](h_MD).float())
            return trust_M1 * torch.log1p(self.log_scale[level].float().exp() * sums_MK)
