"""Pictures and videos changed each time they are used, so that a few clips teach more: mirrored, upside down, in other colours.

All pictures of a conversation change alike, since questions compare them. Those of a conversation with `"as_is": true`, as
`quiz --task describe` makes, never change. Off by default: a mirrored picture has left and right exchanged, and the text does
not say so. Legend: P patches, T frames, C channels, L levels, H and W pixels of a patch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kvtools.keye.data.packing import conversation_indices
from kvtools.keye.model.inputs import PackedRow


@dataclass(frozen=True)
class Augment:
    """flip, upend, recolour: fractions of conversations that are mirrored, turned upside down, and recoloured (red, green and
    blue in any order, each inverted or not). jitter: largest change of contrast, and of brightness (of 255)."""

    flip: float = 0.0
    jitter: float = 0.0
    upend: float = 0.0
    recolour: float = 0.0

    def __call__(
        self, row: PackedRow, visual_tokens: tuple[int, int], rng_of: Callable[[str], np.random.Generator]
    ) -> PackedRow:
        """The row with changed pixels. rng_of: the random generator of a conversation, by its key."""
        if row.pixels is None or not any(vars(self).values()):
            return row
        conversations = conversation_indices(row, visual_tokens)
        changes = {n: self._draw(rng_of(row.keys[n])) for n in set(conversations) if row.keys[n] not in row.as_is}
        pixels, begin = row.pixels.copy(), 0
        for conversation, grid in zip(conversations, row.grid.tolist(), strict=True):
            end = begin + int(np.prod(grid))
            if conversation in changes:
                changes[conversation](pixels[begin:end], grid)
            begin = end
        return replace(row, pixels=pixels)

    def _draw(self, rng: np.random.Generator) -> "_Change":
        flips, gain, shift, upends, recolours = rng.uniform(size=5)
        levels, order_C, levels_CL = np.arange(256), np.arange(3), None
        if self.jitter:
            gain, shift = 1 + self.jitter * (2 * gain - 1), 127.5 + 255 * self.jitter * (2 * shift - 1)
            levels = ((levels - 127.5) * gain + shift).round().clip(0, 255)
            levels_CL = np.stack([levels] * 3)
        if recolours < self.recolour:
            order_C = rng.permutation(3)
            levels_CL = np.where(rng.uniform(size=(3, 1)) < 0.5, levels[::-1], levels)
        return _Change(flips < self.flip, upends < self.upend, order_C, levels_CL)


@dataclass(frozen=True)
class _Change:
    """What happens to one conversation's pictures. order_C: the channel that each new channel is made from; levels_CL: the new
    value of each of its 256 levels, None where no level changes."""

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
    """The patches with each frame mirrored: left and right exchanged. uint8 (P, 3, 14, 14); grid: frames, rows, columns."""
    return _reversed(pixels_P3HW, grid, (2, 5))


def upended(pixels_P3HW: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """The patches with each frame upside down: top and bottom exchanged. Arguments as for `mirrored`."""
    return _reversed(pixels_P3HW, grid, (1, 4))


def _reversed(pixels_P3HW: np.ndarray, grid: tuple[int, int, int], axes: tuple[int, int]) -> np.ndarray:
    # axes: of patches, and of the pixels within one, of (frames, rows, columns, channels, rows, columns)
    patches = pixels_P3HW.reshape(*grid, *pixels_P3HW.shape[1:])
    return np.flip(patches, axes).reshape(pixels_P3HW.shape)
