"""Copying from neighbours: how much a user's neighbours add to the logit of each code, given the codes before it.

The neighbours, items that the training part counts beside a user's latest ones, are known by their codes too. The weight of a
neighbour is its similarity times how well it fits the decoder's state; the weights of those whose first codes match a prefix
are summed by the next code, and the logarithm of the sum is added to the code's logit. Our own, in the manner of pointer
networks (See et al. 2017, arXiv 1704.04368), but in logits and not in probabilities. In training the neighbours of a target
are dropped now and then, so that the model learns to do without.

Legend: R rows (a target of a user each), W beams a row, M = R * W prefixes, N neighbours, S levels, K codes, D width,
X width of a key.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.onerec.model.cpu_training import Table, sum_of_rows

_KEY_WIDTH = 32


@dataclass(frozen=True)
class CopySources:
    """The neighbours of each row, ready to be copied from."""

    codes_RNS: Tensor  # int64: the neighbours' IDs
    log_similarity_RN: Tensor  # float32
    keys_RNX: Tensor
    is_there_RN: Tensor  # bool

    def follow(self, level: int, match_MN: Tensor, codes_M: Tensor) -> Tensor:
        """Which neighbours still match when each prefix goes on with a code of this level, bool (M, N)."""
        return match_MN & (self._codes(level, len(codes_M)) == codes_M.unsqueeze(1))

    def portions(self, level: int, match_MN: Tensor, n_codes: int) -> Tensor:
        """How the similarity of the matching neighbours is divided among the codes of a level, float32 (M, K), sums of 1; all 0
        where none matches."""
        similarity_MN = self.log_similarity_RN.exp().repeat_interleave(len(match_MN) // len(self.codes_RNS), 0)
        weight_MN = similarity_MN.masked_fill(~match_MN, 0.0)
        sums_MK = weight_MN.new_zeros(len(match_MN), n_codes).scatter_add(1, self._codes(level, len(match_MN)), weight_MN)
        return sums_MK / sums_MK.sum(1, keepdim=True).clamp(min=1e-30)

    def _codes(self, level: int, n_prefixes: int) -> Tensor:
        codes_RN = self.codes_RNS[:, :, level]
        return codes_RN.repeat_interleave(n_prefixes // len(codes_RN), 0)

    def sums(self, level: int, match_MN: Tensor, query_MX: Tensor, power: Tensor, n_codes: int) -> Tensor:
        """The summed weight of the neighbours that have each code of a level, float32 (M, K)."""
        n_rows, n_neighbours, width = self.keys_RNX.shape
        fit_MN = query_MX.view(n_rows, -1, width) @ self.keys_RNX.float().transpose(1, 2)
        fit_MN = fit_MN.reshape(-1, n_neighbours) / math.sqrt(width)
        log_MN = (power * self.log_similarity_RN).repeat_interleave(len(query_MX) // n_rows, 0) + fit_MN
        weight_MN = log_MN.masked_fill(~match_MN, -math.inf).exp()
        zeros_MK = weight_MN.new_zeros(len(query_MX), n_codes)
        return zeros_MK.scatter_add(1, self._codes(level, len(query_MX)), weight_MN)


class CopyHead(nn.Module):
    """Scores neighbours and turns them into logits: keys for all levels, a query and a trust for each level."""

    def __init__(self, width: int, n_items: int, n_codes: tuple[int, ...]) -> None:
        super().__init__()
        self.codes = nn.ModuleList(Table(n, _KEY_WIDTH) for n in n_codes)
        self.items = Table(n_items, _KEY_WIDTH)
        self.queries = nn.ModuleList(nn.Linear(width, _KEY_WIDTH, bias=False) for _ in n_codes)
        self.trust = nn.ModuleList(nn.Linear(width, 1) for _ in n_codes)
        self.power = nn.Parameter(torch.ones(len(n_codes)))
        self.log_scale = nn.Parameter(torch.full((len(n_codes),), math.log(20.0)))
        for table in (*self.codes, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def sources(self, items_RN: Tensor, similarity_RN: Tensor, codes_RNS: Tensor, dropout: float) -> CopySources:
        """The neighbours as sources. items_RN: int64, negative where there is none; similarity_RN: float32; codes_RNS: int64.
        dropout: the fraction of rows whose neighbours are left out."""
        keys_RNX = sum_of_rows([self.items, *self.codes], [items_RN.clamp(min=0), *codes_RNS.unbind(2)])
        is_there = items_RN >= 0
        if dropout:
            is_there = is_there & (torch.rand(len(items_RN), 1, device=items_RN.device) >= dropout)
        return CopySources(codes_RNS, similarity_RN.clamp(min=1e-9).log(), keys_RNX, is_there)

    def logits(self, sources: CopySources, level: int, h_MD: Tensor, match_MN: Tensor) -> Tensor:
        """What the neighbours add to the logits of a level, float32 (M, K). h_MD: the decoder's normed states. match_MN: bool,
        which neighbours match each prefix."""
        table: Tensor = self.codes[level].weight  # type: ignore[assignment]
        # sums of exponentials need float32 whatever the other dtypes are
        with torch.autocast(h_MD.device.type, enabled=False):
            h_MD = h_MD.to(table.dtype)
            query_MX = self.queries[level](h_MD).float()
            sums_MK = sources.sums(level, match_MN, query_MX, self.power[level].float(), len(table))
            trust_M1: Tensor = nf.softplus(self.trust[level](h_MD).float())
            return trust_M1 * torch.log1p(self.log_scale[level].float().exp() * sums_MK)
