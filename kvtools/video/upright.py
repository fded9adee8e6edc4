"""Decoded frames as upright RGB pictures: the display matrix applied, transparency on white."""

import math
import struct
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

WHITE = 255

Matrix = tuple[int, int, int, int]


class Upright:
    """Turns the decoded frames of one stream into pictures; keeps what they share."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        # by the rotation that is part of them: PyAV's frames refer to their side data and it to them, so that a frame whose
        # matrix is read stays in memory until the next collection of garbage
        self._matrices: dict[float, Matrix] = {}

    def __call__(self, frame: Any) -> np.ndarray:
        """A decoded frame of PyAV as uint8 (H, W, 3)."""
        rotation = frame.rotation if math.isfinite(frame.rotation) else 0.0
        matrix = self._matrices.get(rotation)
        if matrix is None:
            matrix = self._matrices[rotation] = _matrix(frame)
        if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
            return oriented(on_white(self._array(frame, "rgba")), matrix)
        return oriented(self._array(frame, "rgb24"), matrix)

    def _array(self, frame: Any, layout: str) -> np.ndarray:
        # FFmpeg starts threads for each frame unless it is told not to, which costs more than a small frame
        return self._reformatter.reformat(frame, format=layout, threads=1).to_ndarray()


def on_white(rgba_HW4: np.ndarray) -> np.ndarray:
    """Pictures with transparency, uint8 (H, W, 4), over white: uint8 (H, W, 3); halves are rounded up."""
    alpha = rgba_HW4[..., 3:].astype(np.uint32)
    if alpha.min(initial=WHITE) == WHITE:
        return np.ascontiguousarray(rgba_HW4[..., :3])
    mixed = rgba_HW4[..., :3] * alpha + WHITE * (WHITE - alpha)
    return ((mixed + WHITE // 2) // WHITE).astype(np.uint8)


def oriented(picture_HWC: np.ndarray, matrix: Matrix) -> np.ndarray:
    """A stored picture as it is to be shown.

    matrix: (a, b, c, d) of a point's place when shown, x' = ax + cy and y' = bx + dy. Turns by quarters and mirrors are
    applied; other matrices are those of damaged files, and are ignored.
    """
    a, b, c, d = ((entry > 0) - (entry < 0) for entry in matrix)
    if (b, c) == (0, 0) and a and d:
        return np.ascontiguousarray(picture_HWC[::d, ::a])
    if (a, d) == (0, 0) and b and c:
        return np.ascontiguousarray(picture_HWC.transpose(1, 0, 2)[::b, ::c])
    return picture_HWC


def _matrix(frame: Any) -> Matrix:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    return a, b, c, d
