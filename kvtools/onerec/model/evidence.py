"""What is added to the code logits of prefixes beside the decoder's own: neighbours to copy from, and the scores of items.

Legend: M prefixes, N neighbours, D width, K codes of a level.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from kvtools.onerec.model.copy_logits import CopyHead, CopySources
from kvtools.onerec.model.item_scores import Shares


@dataclass(frozen=True)
class Evidence:
    """The evidence for the next code of each of M prefixes; a part that the model lacks is None."""

    copying: tuple[CopyHead, CopySources] | None
    match_MN: Tensor | None  # bool, the neighbours that match each prefix
    shares: Shares | None

    def logits(self, level: int, normed_MD: Tensor) -> Tensor | None:
        """What is added to the logits of a level's codes, float32 (M, K). normed_MD: the decoder's normed states."""
        added = None if self.shares is None else self.shares.logits(level)
        if self.copying is not None and self.match_MN is not None:
            head, sources = self.copying
            copied = head.logits(sources, level, normed_MD, self.match_MN)
            added = copied if added is None else added + copied
        return added

    def follow(self, level: int, codes_M: Tensor) -> "Evidence":
        """The evidence when each prefix goes on with a code of this level."""
        match_MN = self.match_MN
        if self.copying is not None and match_MN is not None:
            match_MN = self.copying[1].follow(level, match_MN, codes_M)
        return replace(self, match_MN=match_MN, shares=self.shares and self.shares.follow(level, codes_M))

    def take(self, rows_M: Tensor) -> "Evidence":
        """That of some of the prefixes, int64 (M',): as many of each user, in the users' order."""
        match_MN = None if self.match_MN is None else self.match_MN[rows_M]
        return replace(self, match_MN=match_MN, shares=self.shares and self.shares.take(rows_M))
