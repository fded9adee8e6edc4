"""What decides the next code of prefixes beside the decoder's own logits: neighbours to copy from, scores of items, and a
share of the probability that goes straight to neighbours.

Legend: M prefixes, N neighbours, D width, K codes of a level.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from kvtools.onerec.model.copy_logits import CopyHead, CopySources
from kvtools.onerec.model.item_scores import Shares
from kvtools.onerec.model.pointer import Pointer


@dataclass(frozen=True)
class Evidence:
    """The evidence for the next code of each of M prefixes; a part that the model lacks is None."""

    copying: tuple[CopyHead, CopySources] | None
    match_MN: Tensor | None  # bool, the neighbours that match each prefix
    shares: Shares | None
    pointer: Pointer | None = None

    def logits(self, level: int, normed_MD: Tensor) -> Tensor | None:
        """What is added to the logits of a level's codes, float32 (M, K). normed_MD: the decoder's normed states."""
        added = None if self.shares is None else self.shares.logits(level)
        if self.copying is not None and self.match_MN is not None:
            head, sources = self.copying
            copied = head.logits(sources, level, normed_MD, self.match_MN)
            added = copied if added is None else added + copied
        return added

    def mixed(self, level: int, logits_MK: Tensor) -> Tensor:
        """The logits of a level's codes, float32 (M, K), or log-probabilities where neighbours have a share of them."""
        return logits_MK if self.pointer is None else self.pointer.mixed(level, logits_MK)

    def follow(self, level: int, codes_M: Tensor) -> "Evidence":
        """The evidence when each prefix goes on with a code of this level."""
        match_MN = self.match_MN
        if self.copying is not None and match_MN is not None:
            match_MN = self.copying[1].follow(level, match_MN, codes_M)
        pointer = self.pointer and self.pointer.follow(level, codes_M)
        return replace(self, match_MN=match_MN, shares=self.shares and self.shares.follow(level, codes_M), pointer=pointer)

    def take(self, rows_M: Tensor) -> "Evidence":
        """That of some of the prefixes, int64 (M',): as many of each user, in the users' order."""
        match_MN = None if self.match_MN is None else self.match_MN[rows_M]
        pointer = self.pointer and self.pointer.take(rows_M)
        return replace(self, match_MN=match_MN, shares=self.shares and self.shares.take(rows_M), pointer=pointer)
