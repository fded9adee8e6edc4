"""Frames at another size, by Pillow's bicubic filter: by Pillow, or the same to the bit by compiled passes (compiled.py).

The extra `fast` brings numba. To load it takes as long as Pillow needs for some hundred frames, so that it is loaded once so
many were resized.
"""

import math
import threading
from functools import lru_cache
from types import ModuleType

import numpy as np

from kvtools.video.patch import resize

_BITS = 22  # of a weight behind the point, as of Pillow's for pixels of eight bits
_PATIENCE = 300  # frames
_MOST_PIXELS = 10_000_000  # of a frame: larger ones are rare, and not worth their noise


class Resizer:
    """Resizes frames one after another; one for a process.

    Pillow's passes over columns and over rows follow each other in the order that it expects to be faster, which depends on the
    shapes and on its version. So the order is found once for each pair of shapes, on noise: the one that gives Pillow's pixels.
    Where neither does, Pillow resizes.
    """

    def __init__(self, patience: int = _PATIENCE) -> None:
        """patience: how many frames Pillow resizes before the compiled passes are loaded."""
        self._n_left = patience
        self._compiled: ModuleType | None = None
        self._axes: dict[tuple[int, ...], tuple[int, ...] | None] = {}

    def __call__(self, frame_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
        """The frame, uint8 (H, W, 3), at another size: uint8 (height, width, 3)."""
        if frame_HWC.shape[:2] == (height, width):
            return frame_HWC
        if self._n_left == 0:
            threading.Thread(target=self._load, daemon=True).start()
        self._n_left -= 1
        if self._compiled is None or frame_HWC[..., 0].size > _MOST_PIXELS:
            return resize(frame_HWC, height, width)
        shapes = (*frame_HWC.shape[:2], height, width)
        if shapes not in self._axes:
            self._axes[shapes] = _find_order(self._compiled, *shapes)
        axes = self._axes[shapes]
        if axes is None:
            return resize(frame_HWC, height, width)
        return _along(self._compiled, axes, frame_HWC, height, width)

    def _load(self) -> None:
        """Load the compiled passes, beside the work: the first time on a machine they are compiled, which takes seconds."""
        try:
            from kvtools.video import compiled
        except ImportError:  # not installed, or not for this numpy
            return
        _find_order(compiled, 4, 4, 8, 8)
        self._compiled = compiled


def _find_order(compiled: ModuleType, n_rows: int, n_columns: int, height: int, width: int) -> tuple[int, ...] | None:
    """The axes, 0 for rows and 1 for columns, in the order that gives Pillow's pixels; None where none does."""
    noise_HWC = np.random.default_rng(0).integers(0, 256, (n_rows, n_columns, 3), np.uint8)
    expected = resize(noise_HWC, height, width)
    for axes in ((1, 0), (0, 1)):
        if np.array_equal(_along(compiled, axes, noise_HWC, height, width), expected):
            return axes
    return None


def _along(compiled: ModuleType, axes: tuple[int, ...], frame_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """The frame resized along one axis after the other, rounded to bytes between them."""
    for axis in axes:
        frame_HWC = np.require(frame_HWC, requirements=("C", "W"))  # one kind of array, for which the passes are compiled
        n_rows, n_columns, _ = frame_HWC.shape
        if axis == 1 and n_columns != width:
            resized = np.empty((n_rows, width, 3), np.uint8)
            compiled.resize_columns(frame_HWC, *_weights(n_columns, width), resized)
            frame_HWC = resized
        elif axis == 0 and n_rows != height:
            resized = np.empty((height, n_columns, 3), np.uint8)
            rows_VU = resized.reshape(height, -1)
            compiled.resize_rows(frame_HWC.reshape(n_rows, -1), *_weights(n_rows, height), rows_VU)
            frame_HWC = resized
    return frame_HWC


@lru_cache(maxsize=64)
def _weights(n_old: int, n_new: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each new pixel along an axis, the first old one it is made of, int32 (n_new,), and weights, int32 (n_new, taps).

    Pillow's arithmetic in float64, in its order: the filter of Keys with a = -0.5, stretched where pixels become fewer, divided
    by its sum, then rounded to 22 bits behind the point. Windows that lie across an end are cut there.
    """
    scale = n_old / n_new
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    center = (np.arange(n_new) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    n_taps = np.minimum((center + support + 0.5).astype(np.int64), n_old) - first
    taps = np.arange(min(math.ceil(support) * 2 + 1, n_old))
    weights = _bicubic((taps + first[:, None] - center[:, None] + 0.5) * (1.0 / stretch))
    weights[taps >= n_taps[:, None]] = 0.0
    total = np.zeros(n_new)
    for k in taps:
        total += weights[:, k]
    weights /= total[:, None]
    rounded = np.trunc(np.where(weights < 0, -0.5, 0.5) + weights * (1 << _BITS)).astype(np.int32)
    # taps of no weight must lie within the axis, too
    shift = np.maximum(first + len(taps) - n_old, 0)
    moved = np.zeros_like(rounded)
    for row, by in enumerate(shift):
        moved[row, by:] = rounded[row, : len(taps) - by]
    return (first - shift).astype(np.int32), moved


def _bicubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5
    near, far = ((a + 2.0) * x - (a + 3.0)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
