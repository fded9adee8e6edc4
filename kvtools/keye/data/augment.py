"""Pictures and videos changed at each use, so that a few clips teach more: mirrored, turned over, darker, in other colours.

All that a conversation shows changes alike, since questions compare; and nothing that one shows which says `"as_is": true`, as
those of `quiz --task describe` do. Off unless asked for: a mirrored picture has its left and right exchanged, and its words do
not know. Legend: P patches, T frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kvtools.keye.data.packing import owners
from kvtools.keye.model.inputs import PackedRow


@dataclass(frozen=True)
class Augment:
    """flip, upend, recolour: shares of conversations that are mirrored, turned over, and have their colours exchanged
    (red, green and blue in any order, each turned into its negative or not). jitter: largest change of contrast, and of
    brightness (of 255)."""

    flip: float = 0.0
    jitter: float = 0.0
    upend: float = 0.0
    recolour: float = 0.0

    def __call__(
        self, row: PackedRow, visual_tokens: tuple[int, int], chance: Callable[[str], np.random.Generator]
    ) -> PackedRow:
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
        levels, order_C, levels_CL = np.arange(256), np.arange(3), None
        if self.jitter:
            gain, shift = 1 + self.jitter * (2 * gain - 1), 127.5 + 255 * self.jitter * (2 * shift - 1)
            levels = ((levels - 127.5) * gain + shift).round().clip(0, 255)
            levels_CL = np.stack([levels] * 3)
        if recolours < self.recolour:
            order_C = chance.permutation(3)
            levels_CL = np.where(chance.uniform(size=(3, 1)) < 0.5, levels[::-1], levels)
        return _Change(flips < self.flip, upends < self.upend, order_C, levels_CL)


@dataclass(frozen=True)
class _Change:
    """What one conversation's pictures go through. order_C: which channel each is made from; levels_CL: to what each of its 256
    levels goes, None where none does."""

    flips: bool
    upends: bool
    order_C: np.ndarray
    levels_CL: np.ndarray | None

    def __call__(self, pixels_P3HW: np.ndarray, grid: tuple[int, int, int]) -> None:
        if self.flips:
            pixels_P3HW[:] = mirrored(pixels_P3HW, grid)
        if self.upends:
            pixels_P3HW[:] = upended(pixels_P3HW, grid)
        if self.levels_CL is not None:
            old_CPHW = pixels_P3HW[:, self.order_C].swapaxes(0, 1)
            for channel, (levels, old_PHW) in enumerate(zip(self.levels_CL.astype(np.uint8), old_CPHW, strict=True)):
                pixels_P3HW[:, channel] = levels[old_PHW]


def mirrored(pixels_P3HW: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Patches of each frame with left and right exchanged."""
    return _reversed(pixels_P3HW, grid, (2, 5))


def upended(pixels_P3HW: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Patches of each frame with above and below exchanged."""
    return _reversed(pixels_P3HW, grid, (1, 4))


def _reversed(pixels_P3HW: np.ndarray, grid: tuple[int, int, int], axes: tuple[int, int]) -> np.ndarray:
    """axes: of patches, and of pixels within one, in an array of frames, rows, columns, channels, rows, columns."""
    patches = pixels_P3HW.reshape(*grid, *pixels_P3HW.shape[1:])
    return np.flip(patches, axes).reshape(pixels_P3HW.shape)
