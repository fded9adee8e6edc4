"""Pictures and videos changed at each use, so that a few clips teach more: mirrored, upside down, darker, in other colours.

All that a conversation shows changes alike, since questions compare; and nothing that one shows which says `"as_is": true`, as
those of `quiz --task describe` do. Off unless asked for: a mirrored picture has its left and right exchanged, and its words do
not know. Legend: P patches, T frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kvtools.keye.rows import Row, owners


@dataclass(frozen=True)
class Augment:
    """flip, upend, recolour: shares of conversations that are mirrored, stood on their head, and have their colours exchanged
    (red, green and blue in any order, each turned into its negative or not). jitter: largest change of contrast, and of
    brightness (of 255)."""

    flip: float = 0.0
    jitter: float = 0.0
    upend: float = 0.0
    recolour: float = 0.0

    def __call__(self, row: Row, visual_tokens: tuple[int, int], chance: Callable[[str], np.random.Generator]) -> Row:
        """The row with other pixels. chance: a generator for each key of a conversation."""
        if row.pixels is None or not any(vars(self).values()):
            return row
        sizes = row.grid.astype(np.int64).prod(1)
        whose = owners(row, visual_tokens)
        pixels, begin = row.pixels.copy(), 0
        drawn = {n: self._draw(chance(row.keys[n])) for n in set(whose) if row.keys[n] not in row.as_is}
        for owner, grid, size in zip(whose, row.grid.tolist(), sizes.tolist(), strict=True):
            part = pixels[begin : begin + size]
            begin += size
            if owner in drawn:
                drawn[owner](part, grid)
        return replace(row, pixels=pixels)

    def _draw(self, chance: np.random.Generator) -> "_Change":
        flips, gain, shift, upends, recolours = chance.uniform(size=5)
        order, is_negative = np.arange(3), np.zeros(3, bool)
        if recolours < self.recolour:
            order, is_negative = chance.permutation(3), chance.uniform(size=3) < 0.5
        levels = np.arange(256)
        if self.jitter:
            gain, shift = 1 + self.jitter * (2 * gain - 1), 127.5 + 255 * self.jitter * (2 * shift - 1)
            levels = ((levels - 127.5) * gain + shift).round().clip(0, 255)
        return _Change(flips < self.flip, upends < self.upend, order, is_negative, levels.astype(np.uint8))


@dataclass(frozen=True)
class _Change:
    """What one conversation's pictures go through. order int (3,), is_negative bool (3,), levels uint8 (256,)."""

    flips: bool
    upends: bool
    order: np.ndarray
    is_negative: np.ndarray
    levels: np.ndarray

    def __call__(self, pixels_P3HW: np.ndarray, grid: tuple[int, int, int]) -> None:
        if self.flips:
            pixels_P3HW[:] = mirrored(pixels_P3HW, grid)
        if self.upends:
            pixels_P3HW[:] = upended(pixels_P3HW, grid)
        inverted = self.levels[::-1]
        for channel, old_PHW in enumerate(pixels_P3HW[:, self.order].swapaxes(0, 1)):
            pixels_P3HW[:, channel] = (inverted if self.is_negative[channel] else self.levels)[old_PHW]


def mirrored(pixels_P3HW: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Patches of the mirror image of each frame."""
    n_frames, rows, columns = grid
    patches = pixels_P3HW.reshape(n_frames, rows, columns, *pixels_P3HW.shape[1:])
    return patches[:, :, ::-1, :, :, ::-1].reshape(pixels_P3HW.shape)


def upended(pixels_P3HW: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Patches of each frame stood on its head: what was at the top is at the bottom."""
    n_frames, rows, columns = grid
    patches = pixels_P3HW.reshape(n_frames, rows, columns, *pixels_P3HW.shape[1:])
    return patches[:, ::-1, :, :, ::-1].reshape(pixels_P3HW.shape)
