"""A share of the probability that goes straight to neighbours: a mixture with the decoder's, inside the choice of codes.

P(item) = (1 - share) P(item by the decoder) + share P(item by its similarity among the neighbours), as in pointer-generator
networks (See et al. 2017, arXiv 1704.04368), where the share is learned; here training ends by choosing one on the validation
set. Code by code: of a prefix, the share is what the neighbours' part of its probability has come to, so that the levels
multiply to the mixture, and beams, bounds and exact rankings hold as they are. Copy logits (copy_logits.py), which multiply
instead, cannot say that an item counts although the decoder finds its codes improbable.

Legend: R rows (a target of a user each), M prefixes (M / R of each row), N neighbours, S levels, K codes of a level.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtools.onerec.model.copy_logits import CopySources


@dataclass
class Pointer:
    """The neighbours' part of the probability of each of M prefixes. match_MN: bool, the neighbours that match each.
    log_own_M1, log_near_M1: float32, the logarithms of the parts of a prefix's probability, which add up to 1."""

    sources: CopySources
    match_MN: Tensor
    log_own_M1: Tensor
    log_near_M1: Tensor
    _next: tuple[Tensor, Tensor] | None = None  # both parts, (M, K), of each prefix when a code follows

    @classmethod
    def of(cls, sources: CopySources, share: float) -> "Pointer":
        """At the empty prefix of each row; a row without neighbours leaves all to the decoder."""
        is_there_RN = sources.is_there_RN
        has_any_R1 = is_there_RN.any(1, keepdim=True)
        own, near = (torch.full(has_any_R1.shape, math.log(x), device=is_there_RN.device) for x in (1 - share, share))
        return cls(sources, is_there_RN, own.masked_fill(~has_any_R1, 0.0), near.masked_fill(~has_any_R1, -math.inf))

    def mixed(self, level: int, logits_MK: Tensor) -> Tensor:
        """Log-probabilities of the next codes, float32 (M, K), from the decoder's logits."""
        own_MK = self.log_own_M1 + logits_MK.log_softmax(1)
        near_MK = self.log_near_M1 + self.sources.portions(level, self.match_MN, logits_MK.shape[1]).log()
        mixed_MK = torch.logaddexp(own_MK, near_MK)
        self._next = own_MK - mixed_MK, near_MK - mixed_MK
        return mixed_MK

    def follow(self, level: int, codes_M: Tensor) -> "Pointer":
        """The same when each prefix goes on with a code of this level, which `mixed` has been asked about."""
        assert self._next is not None, "probabilities come first"
        own_M1, near_M1 = (part_MK.gather(1, codes_M.unsqueeze(1)) for part_MK in self._next)
        return Pointer(self.sources, self.sources.follow(level, self.match_MN, codes_M), own_M1, near_M1)

    def take(self, rows_M: Tensor) -> "Pointer":
        """That of some of the prefixes, int64 (M',): as many of each row, in the rows' order."""
        following = None if self._next is None else (self._next[0][rows_M], self._next[1][rows_M])
        return Pointer(self.sources, self.match_MN[rows_M], self.log_own_M1[rows_M], self.log_near_M1[rows_M], following)
