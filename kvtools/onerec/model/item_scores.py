"""Scores of whole items inside the choice of codes: what the decoder's first state says of each item, told to every level.

The first state scores items by a product with their vectors and a bias. The softmax of these scores, summed over all items
below a prefix and the next code, is the share of that code, and its logarithm is added to the code's logit, in training and in
search alike. Without code logits the levels multiply to the softmax over items, so that a generator of codes is at least what
a model that ranks items is; with them it can correct that softmax where later codes depend on earlier ones. Our own; the
report knows items by their codes alone.

Of a large catalogue only the most popular items are scored. The others share one learnt score, so that every prefix that the
catalogue has keeps a share; those that it lacks have a small one that is fixed.

Scores learn their targets by heart sooner than codes do, and are then too sure of themselves. So a search weighs what they say
by a gain, below 1 as a rule, which training chooses on the validation set (`ItemScores.gain`).

Legend: J targets or B users, N scored items in the order of their IDs, S levels, K codes of a level, U distinct IDs, P prefixes
of a level, M prefixes asked about (M / B of each user), V children, W items below a first code at most, D width, I items.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from kvtools.onerec.model.layers import rms_norm
from kvtools.onerec.model.trie import Trie

_FLOOR = 1e-6  # the share of a code that no item has, added to all shares
_BLOCK = 1024  # items scored at a time in training: their scores stay in the cache


class _Catalogue:
    """The scored items in the order of their IDs, and the prefixes of all items, on one device."""

    def __init__(self, codes_IS: Tensor, scored_N: Tensor, n_codes: tuple[int, ...]) -> None:
        device = codes_IS.device
        self.n_codes, self.trie = n_codes, Trie(codes_IS.cpu().numpy())
        id_of_item = torch.from_numpy(self.trie.id_of_item)
        order = id_of_item[scored_N.cpu()].argsort(stable=True)
        items = scored_N.cpu()[order]
        is_rest = torch.ones(len(id_of_item)).index_fill_(0, items, 0.0)
        self.order_N, self.items_N = order.to(device), items.to(device)
        self.ids_N, self.codes_NS = id_of_item[items].to(device), codes_IS[self.items_N]
        rest = torch.zeros(self.trie.n_ids).index_add_(0, id_of_item, is_rest)  # items without a score
        self.parents: list[Tensor] = []  # int64 (P,) a level: the prefix of the level before
        for starts in self.trie.starts:
            self.parents.append(torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff()))
        self.rest = [rest]  # float32 (P,) a level: how many items without a score each prefix has
        for level in range(self.trie.n_levels - 1, 0, -1):
            n_parents = len(self.trie.codes[level - 1])
            self.rest.insert(0, torch.zeros(n_parents).index_add_(0, self.parents[level], self.rest[0]))
        self.has_rest = bool(rest.any())
        self.keys = [p * n + c for p, c, n in zip(self.parents, self.trie.codes, n_codes, strict=True)]
        count = torch.bincount(self.codes_NS[:, 0].cpu(), minlength=n_codes[0])
        self.first_K1 = torch.cat([count.new_zeros(1), count.cumsum(0)])  # where the items of each first code begin
        self.blocks = _blocks(self.first_K1.tolist())
        self.width = int(count.max())
        self.first_K1 = self.first_K1.to(device)
        self.trie = self.trie.to(str(device))
        self.parents, self.rest, self.keys = ([x.to(device) for x in part] for part in (self.parents, self.rest, self.keys))

    def child(self, level: int, prefix_M: Tensor, codes_M: Tensor) -> Tensor:
        """The prefix int64 (M,) of `level` that continues each of the level before by a code; -1 where no item has it."""
        keys, wanted_M = self.keys[level], prefix_M * self.n_codes[level] + codes_M
        found_M = torch.searchsorted(keys, wanted_M).clamp(max=len(keys) - 1)
        return torch.where((keys[found_M] == wanted_M) & (prefix_M >= 0), found_M, -1)

    def by_code(self, level: int, prefix_M: Tensor, value_PX: Tensor, column_M: Tensor, empty: float) -> Tensor:
        """Of each prefix's children the values (M, K) by their codes, `empty` where there is none: value_PX[child, column]."""
        child_MV, is_there = self.trie.children(level, prefix_M.clamp(min=0))
        is_there = is_there & (prefix_M >= 0).unsqueeze(1)
        n_codes = self.n_codes[level]
        # children that are not there go to a column that is dropped
        code_MV = torch.where(is_there, self.trie.codes[level][child_MV], n_codes)
        value_MV = value_PX.flatten()[child_MV * value_PX.shape[1] + column_M.unsqueeze(1)]
        return value_PX.new_full((len(prefix_M), n_codes + 1), empty).scatter(1, code_MV, value_MV)[:, :n_codes]


@dataclass(frozen=True)
class Shares:
    """What item scores say of the next code of each of M prefixes. log_share: float32 (P, B) a level, of each prefix within the
    one that it continues."""

    catalogue: _Catalogue
    log_share: list[Tensor]
    prefix_M: Tensor  # int64, -1 where no item has it

    def logits(self, level: int) -> Tensor:
        """What is added to the logits of a level's codes, float32 (M, K)."""
        n_users = self.log_share[0].shape[1]
        user_M = torch.arange(n_users, device=self.prefix_M.device).repeat_interleave(len(self.prefix_M) // n_users)
        return self.catalogue.by_code(level, self.prefix_M, self.log_share[level], user_M, torch.tensor(_FLOOR).log().item())

    def follow(self, level: int, codes_M: Tensor) -> "Shares":
        """The same when each prefix goes on with a code of this level."""
        return replace(self, prefix_M=self.catalogue.child(level, self.prefix_M, codes_M))

    def take(self, rows_M: Tensor) -> "Shares":
        """Those of some of the prefixes, int64 (M',): as many of each user, in the users' order."""
        return replace(self, prefix_M=self.prefix_M[rows_M])


class ItemScores(nn.Module):
    """Scores of items, and shares of codes by them. n_codes: of each level. n_scored: items to score."""

    scored: Tensor
    gain: Tensor

    def __init__(self, width: int, n_codes: tuple[int, ...], n_scored: int) -> None:
        super().__init__()
        self.n_codes = n_codes
        self.norm = rms_norm(width)
        self.bias = nn.Parameter(torch.zeros(n_scored))
        self.rest = nn.Parameter(torch.zeros(1))  # the score of each of the other items
        self.register_buffer("scored", torch.arange(n_scored))
        self.register_buffer("gain", torch.ones(()))
        self._catalogue: _Catalogue | None = None

    def score_popular(self, popularity_I: np.ndarray) -> None:
        """Score the most popular items, int (I,), and no others; of equal ones the first."""
        best = np.sort(np.argsort(-popularity_I, kind="stable")[: len(self.scored)])
        self.scored.copy_(torch.from_numpy(best))
        self._catalogue = None

    def catalogue(self, codes_IS: Tensor) -> _Catalogue:
        """The scored items among all those of codes int64 (I, S), made once for each device."""
        if self._catalogue is None or self._catalogue.items_N.device != codes_IS.device:
            with torch.inference_mode(mode=False):  # a search may be the first to ask, and training must be able to use it
                self._catalogue = _Catalogue(codes_IS, self.scored, self.n_codes)
        return self._catalogue

    def _query(self, h_JD: Tensor, recent_JD: Tensor | None) -> Tensor:
        """What items are scored by, (J, D)."""
        normed_JD: Tensor = self.norm(h_JD)
        return normed_JD if recent_JD is None else normed_JD + recent_JD

    def shares(self, catalogue: _Catalogue, h_BD: Tensor, vectors_ND: Tensor, recent_BD: Tensor | None = None) -> Shares:
        """The shares for search, at the empty prefix. h_BD: the decoder's first states. vectors_ND: of catalogue.items_N.
        recent_BD: what the latest items say, as RecentItems tells it."""
        trie = catalogue.trie
        query_BD, bias_N = self._query(h_BD, recent_BD).float(), self.bias[catalogue.order_N].float()
        scores_NB = vectors_ND.float() @ query_BD.T + bias_N.unsqueeze(1)
        top_B = scores_NB.detach().amax(0)
        if catalogue.has_rest:
            top_B = torch.maximum(top_B, self.rest.detach().float())
        mass_PB = scores_NB.new_zeros(trie.n_ids, len(top_B)).index_add(0, catalogue.ids_N, (scores_NB - top_B).exp())
        if catalogue.has_rest:
            mass_PB = mass_PB + catalogue.rest[-1].unsqueeze(1) * (self.rest.float() - top_B).exp()
        log_share: list[Tensor] = []
        for level in range(trie.n_levels - 1, -1, -1):
            parents = catalogue.parents[level]
            n_above = len(trie.codes[level - 1]) if level else 1
            above_PB = mass_PB.new_zeros(n_above, len(top_B)).index_add(0, parents, mass_PB)
            share_PB = mass_PB / above_PB.clamp(min=1e-30)[parents]
            log_share.insert(0, self.gain * (share_PB + _FLOOR).log())
            mass_PB = above_PB
        return Shares(catalogue, log_share, torch.zeros(len(h_BD), dtype=torch.long, device=h_BD.device))

    def of_targets(
        self, catalogue: _Catalogue, h_JD: Tensor, vectors_ND: Tensor, codes_JS: Tensor, recent_JD: Tensor | None = None
    ) -> list[Tensor]:
        """What is added to each level's logits of targets whose IDs, int64 (J, S), are known: float32 (J, K) a level.

        As `shares`, but below the first level only what lies below each target's first code is looked at.
        """
        first_J = codes_JS[:, 0]
        begin_J, end_J = catalogue.first_K1[first_J], catalogue.first_K1[first_J + 1]
        at_JW = begin_J.unsqueeze(1) + torch.arange(catalogue.width, device=h_JD.device)
        is_there_JW = at_JW < end_J.unsqueeze(1)
        at_JW = at_JW.clamp(max=len(catalogue.items_N) - 1)
        bias_N = self.bias[catalogue.order_N]
        log_JK, own_JW, top_J1 = cast(
            "tuple[Tensor, Tensor, Tensor]",
            _FirstMasses.apply(self._query(h_JD, recent_JD), vectors_ND, bias_N, at_JW, first_J, catalogue),  # type: ignore[no-untyped-call]
        )
        most_J1 = log_JK.detach().amax(1, keepdim=True)
        if catalogue.has_rest:
            most_J1 = torch.maximum(most_J1, self.rest.detach())
        mass_JK = (log_JK - most_J1).exp()
        weight_JW = torch.where(is_there_JW, own_JW * (top_J1 - most_J1).exp(), 0.0)
        prefix_J, levels = torch.zeros_like(first_J), []
        for level, n_codes in enumerate(self.n_codes):
            if level:
                codes_JW = catalogue.codes_NS[:, level][at_JW]
                mass_JK = weight_JW.new_zeros(len(h_JD), n_codes).scatter_add(1, codes_JW, weight_JW)
            if catalogue.has_rest:
                rest_P1 = catalogue.rest[level].unsqueeze(1)
                rest_JK = catalogue.by_code(level, prefix_J, rest_P1, torch.zeros_like(prefix_J), 0.0)
                mass_JK = mass_JK + rest_JK * (self.rest - most_J1).exp()
                prefix_J = catalogue.child(level, prefix_J, codes_JS[:, level])
            levels.append((mass_JK / mass_JK.sum(1, keepdim=True).clamp(min=1e-30) + _FLOOR).log())
            if level:
                weight_JW = weight_JW * (codes_JW == codes_JS[:, level : level + 1])
        return levels


class _FirstMasses(torch.autograd.Function):
    """log sums of exp(score) over the items of each first code, (J, K); of some items of each target exp(score - top), (J, W);
    and top, (J, 1), which takes no part in gradients. The items of a target are those of its first code.

    Blocks of items that fit into the cache, and gradients by hand: torch's own would hold several copies of all scores.
    """

    @staticmethod
    def forward(
        ctx: Any, h_JD: Tensor, vectors_ND: Tensor, bias_N: Tensor, at_JW: Tensor, first_J: Tensor, catalogue: _Catalogue
    ) -> tuple[Tensor, Tensor, Tensor]:
        code_N, h_DJ = catalogue.codes_NS[:, 0], h_JD.T.contiguous()
        weight_NJ = vectors_ND.new_empty(len(vectors_ND), len(h_JD))  # exp(score - the most of the block)
        sum_KJ = vectors_ND.new_zeros(len(catalogue.first_K1) - 1, len(h_JD))
        top_KJ = torch.zeros_like(sum_KJ)
        for begin, end, first, last in catalogue.blocks:
            part = torch.addmm(bias_N[begin:end, None], vectors_ND[begin:end], h_DJ, out=weight_NJ[begin:end])
            top_J = part.amax(0)
            top_KJ[first:last] = top_J
            sum_KJ[first:last].index_add_(0, code_N[begin:end] - first, part.sub_(top_J).exp_())
        own_WJ = weight_NJ.gather(0, at_JW.T)
        ctx.save_for_backward(h_JD, vectors_ND, weight_NJ, sum_KJ, at_JW, own_WJ)
        ctx.catalogue = catalogue
        top_1J = top_KJ.gather(0, first_J.unsqueeze(0))
        ctx.mark_non_differentiable(top_1J)
        return sum_KJ.log().add_(top_KJ).T, own_WJ.T, top_1J.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        h_JD, vectors_ND, weight_NJ, sum_KJ, at_JW, own_WJ = ctx.saved_tensors
        code_N = ctx.catalogue.codes_NS[:, 0]
        slope_KJ = gradients[0].T / sum_KJ.clamp(min=1e-38)
        slope_NJ = torch.empty_like(weight_NJ)
        for begin, end, first, last in ctx.catalogue.blocks:
            torch.mul(weight_NJ[begin:end], slope_KJ[first:last][code_N[begin:end] - first], out=slope_NJ[begin:end])
        slope_NJ.scatter_add_(0, at_JW.T, gradients[1].T * own_WJ)
        return slope_NJ.T @ vectors_ND, slope_NJ @ h_JD, slope_NJ.sum(1), None, None, None


def _blocks(first: list[int]) -> list[tuple[int, int, int, int]]:
    """Ranges of items and of the first codes that they have, (begin, end, first, last), about _BLOCK items each. first: where
    the items of each code begin, and their number."""
    blocks, code = [], 0
    while code < len(first) - 1:
        last = code + 1
        while last < len(first) - 1 and first[last + 1] - first[code] <= _BLOCK:
            last += 1
        if first[last] > first[code]:
            blocks.append((first[code], first[last], code, last))
        code = last
    return blocks
