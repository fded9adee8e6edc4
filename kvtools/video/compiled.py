"""Pillow's bicubic passes for numba to compile: whole numbers throughout, so that the pixels are Pillow's to the bit.

Legend: H rows, W columns, C three colours of a frame; V and U rows and columns of the result; K taps of a filter.
"""

import numpy as np
from numba import njit

from kvtools.machine_code import compiled

_BITS = 22  # of a weight behind the point
_HALF = np.int32(1 << (_BITS - 1))
_LANES = 16  # rows of the frame that are resized together, so that their bytes lie side by side
_WIDTH = 3 * _LANES


@njit(inline="always")
def _rounded(total: np.int32) -> np.uint8:
    return np.uint8(np.minimum(np.maximum(total >> _BITS, 0), 255))


@compiled()
def resize_columns(frame_HWC: np.ndarray, first_U: np.ndarray, weights_UK: np.ndarray, out_HUC: np.ndarray) -> None:
    """The frame, uint8, with other columns. first_U int32: of each, the first old column that it is made of; weights int32."""
    n_rows, n_old, _ = frame_HWC.shape
    n_new, n_taps = weights_UK.shape
    old = np.zeros((n_old, _WIDTH), np.uint8)
    total, new = np.empty(_WIDTH, np.int32), np.empty(_WIDTH, np.uint8)
    for begin in range(0, n_rows, _LANES):
        n = min(_LANES, n_rows - begin)
        for x in range(n_old):
            for row in range(n):
                old[x, 3 * row] = frame_HWC[begin + row, x, 0]
                old[x, 3 * row + 1] = frame_HWC[begin + row, x, 1]
                old[x, 3 * row + 2] = frame_HWC[begin + row, x, 2]
        for u in range(n_new):
            total[:] = _HALF
            for k in range(n_taps):
                weight, x = weights_UK[u, k], first_U[u] + k
                for i in range(_WIDTH):
                    total[i] += np.int32(np.int32(old[x, i]) * weight)
            for i in range(_WIDTH):
                new[i] = _rounded(total[i])
            for row in range(n):
                out_HUC[begin + row, u, 0] = new[3 * row]
                out_HUC[begin + row, u, 1] = new[3 * row + 1]
                out_HUC[begin + row, u, 2] = new[3 * row + 2]


@compiled()
def resize_rows(frame_HU: np.ndarray, first_V: np.ndarray, weights_VK: np.ndarray, out_VU: np.ndarray) -> None:
    """Rows of bytes, uint8, made into other rows, as the columns are."""
    n_bytes = frame_HU.shape[1]
    n_new, n_taps = weights_VK.shape
    total = np.empty(n_bytes, np.int32)
    for v in range(n_new):
        total[:] = _HALF
        for k in range(n_taps):
            weight, y = weights_VK[v, k], first_V[v] + k
            for i in range(n_bytes):
                total[i] += np.int32(np.int32(frame_HU[y, i]) * weight)
        for i in range(n_bytes):
            out_VU[v, i] = _rounded(total[i])
