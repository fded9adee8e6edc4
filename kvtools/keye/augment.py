"""Pictures and videos changed a little at each use, so that a few clips teach more: mirrored, or darker, lighter, flatter.

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
    """flip: share of conversations that are mirrored. jitter: largest change of contrast, and of brightness (of 255)."""

    flip: float = 0.0
    jitter: float = 0.0

    def __call__(self, row: Row, visual_tokens: tuple[int, int], chance: Callable[[str], np.random.Generator]) -> Row:
        """The row with other pixels. chance: a generator for each key of a conversation."""
        if row.pixels is None or not (self.flip or self.jitter):
            return row
        sizes = row.grid.astype(np.int64).prod(1)
        whose = owners(row, visual_tokens)
        pixels, begin = row.pixels.copy(), 0
        drawn = {n: chance(row.keys[n]).uniform(size=3) for n in set(whose) if row.keys[n] not in row.as_is}
        for owner, grid, size in zip(whose, row.grid.tolist(), sizes.tolist(), strict=True):
            part = pixels[begin : begin + size]
            begin += size
            if owner not in drawn:
                continue
            flips, gain, shift = drawn[owner]
            if flips < self.flip:
                part[:] = mirrored(part, grid)
            if self.jitter:
                gain, shift = 1 + self.jitter * (2 * gain - 1), 127.5 + 255 * self.jitter * (2 * shift - 1)
                levels = (np.arange(256) - 127.5) * gain + shift
                part[:] = levels.round().clip(0, 255).astype(np.uint8)[part]
        return replace(row, pixels=pixels)


def mirrored(pixels_P3HW: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Patches of the mirror image of each frame."""
    n_frames, rows, columns = grid
    patches = pixels_P3HW.reshape(n_frames, rows, columns, *pixels_P3HW.shape[1:])
    return patches[:, :, ::-1, :, :, ::-1].reshape(pixels_P3HW.shape)
