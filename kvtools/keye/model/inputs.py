"""What a model reads: one picture or video as patches, one conversation, and a packed row of conversations.

Not here: how conversations and media become these (kvtools.keye.data). Legend: S tokens, V visual items, T frames of all of
them, P patches, G conversations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvtools.keye.model.config import MERGE


@dataclass(frozen=True)
class Visual:
    """pixels uint8 (P, 3, 14, 14) in raster order, grid int32 (3,) = frames, rows and columns, seconds float64 (T,)."""

    pixels_P3HW: np.ndarray
    grid: np.ndarray
    seconds: np.ndarray
    is_video: bool

    @property
    def n_tokens(self) -> int:
        """Visual tokens in the language model: one for MERGE x MERGE patches."""
        return len(self.pixels_P3HW) // MERGE**2


@dataclass(frozen=True)
class Example:
    """One conversation: tokens int32 (S,), targets uint8 (S,), positions int32 (3, S), and its pictures and videos."""

    key: str
    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    visuals: tuple[Visual, ...] = ()
    as_is: bool = False  # the text would be wrong about changed pictures, such as mirrored ones

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PackedRow:
    """Conversations one after another.

    tokens int32 (S,), targets uint8 (S,), segments int32 (G,) first tokens, positions int32 (3, S), pixels uint8
    (P, 3, 14, 14) or None, grid int32 (V, 3), seconds float64 (T,), keys of the conversations, and keys of those whose pictures
    must not be changed. references: what the V pictures and videos are read from (data/references.py), in place of pixels.
    prompts: int32 (G,), for rows of answers, whose prompts stand there once for several of them: the segment that each segment
    continues, -1 for none; None: none of them does.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    pixels: np.ndarray | None
    grid: np.ndarray
    seconds: np.ndarray
    keys: tuple[str, ...]
    as_is: frozenset[str] = frozenset()
    references: tuple[Mapping[str, Any], ...] = ()
    prompts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def before(self) -> np.ndarray:
        """The token before each, by index, int64 (S,); -1 at the first of a conversation."""
        before_S = np.arange(len(self)) - 1
        ends = [*self.segments[1:].tolist(), len(self)]
        prompts = [-1] * len(ends) if self.prompts is None else self.prompts.tolist()
        before_S[self.segments] = [-1 if prompt < 0 else ends[prompt] - 1 for prompt in prompts]
        return before_S

    @property
    def lengths(self) -> list[int]:
        """Tokens of each conversation."""
        return np.diff([*self.segments.tolist(), len(self.tokens)]).tolist()  # type: ignore[no-any-return]
