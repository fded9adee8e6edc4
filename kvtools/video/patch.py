"""Frame sizes under a token budget, and frames cut into patches.

A token is a square of 28 pixels: 2 x 2 patches of 14. `smart_resize` (keye-vl-utils 1.0.0) and `smart_resize_processor`
(the Keye image processor) are two published rules that differ on thin pictures; kvtools uses the first. `Budget` never exceeds
its cap; the published pipeline does, since it doubles the budget for a merging of frame pairs that Keye does not do.
Normalisation, (x / 255 - 0.5) / 0.5, is the model's first step: patches stay uint8, a quarter of the size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kvtools.video.sample import Unfit

PATCH = 14
FACTOR = 28  # pixels along a token
PIXELS_A_TOKEN = FACTOR * FACTOR
MIN_PIXELS, MAX_PIXELS = 4 * PIXELS_A_TOKEN, 16384 * PIXELS_A_TOKEN  # of an image
MAX_RATIO = 200


def smart_resize(height: int, width: int, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) in multiples of 28, near the given shape, within the pixel limits where the shape allows.

    Python's rounding: halves to even. Raises Unfit where the sides differ more than 200-fold.
    """
    _check_ratio(height, width)
    h, w = (max(FACTOR, round(side / FACTOR) * FACTOR) for side in (height, width))
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h, w = (max(FACTOR, math.floor(side / shrink / FACTOR) * FACTOR) for side in (height, width))
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * grow / FACTOR) * FACTOR for side in (height, width))
    return h, w


def smart_resize_processor(
    height: int, width: int, min_pixels: int = MIN_PIXELS, max_pixels: int = 1280 * PIXELS_A_TOKEN
) -> tuple[int, int]:
    """The image processor's rule: sides under 28 are first scaled up to 28, the other side with them."""
    if height < FACTOR:
        height, width = FACTOR, round(width * FACTOR / height)
    if width < FACTOR:
        height, width = round(height * FACTOR / width), FACTOR
    _check_ratio(height, width)
    h, w = (round(side / FACTOR) * FACTOR for side in (height, width))
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h, w = (math.floor(side / shrink / FACTOR) * FACTOR for side in (height, width))
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * grow / FACTOR) * FACTOR for side in (height, width))
    return h, w


@dataclass(frozen=True)
class Budget:
    """The most tokens of a clip, which are never exceeded, and the range of tokens that a frame should have."""

    max_tokens: int = 24_576
    min_frame_tokens: int = 128
    max_frame_tokens: int = 768

    def fit(self, n_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(frames, height, width) of a clip of n_frames pictures of the given shape.

        The resolution is reduced first, down to the lower end of the band, then the number of frames. Always frames * tokens a
        frame <= max_tokens; a frame may lie outside of the band where its shape or the cap leaves no choice. Raises Unfit
        where not one frame fits.
        """
        n_frames = min(n_frames, max(1, self.max_tokens // self.min_frame_tokens))
        most = min(self.max_frame_tokens, self.max_tokens // n_frames)
        h, w = self._size(height, width, most)
        tokens = h * w // PIXELS_A_TOKEN
        n_frames = min(n_frames, self.max_tokens // tokens)
        if n_frames == 0:
            raise Unfit(f"a frame of {width}x{height} costs {tokens} tokens or more, and the budget is {self.max_tokens}")
        return n_frames, h, w

    def _size(self, height: int, width: int, most: int) -> tuple[int, int]:
        # rounding up to the lower end may exceed the most tokens allowed; then the largest size below is taken
        for lowest in (self.min_frame_tokens, 1):
            h, w = smart_resize(height, width, min(lowest, most) * PIXELS_A_TOKEN, most * PIXELS_A_TOKEN)
            if h * w <= most * PIXELS_A_TOKEN:
                return h, w
        scale = math.sqrt(most * PIXELS_A_TOKEN / (height * width))
        return tuple(max(FACTOR, math.floor(side * scale / FACTOR) * FACTOR) for side in (height, width))  # type: ignore[return-value]


def resize(frame_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """The frame at another size, by Pillow's bicubic filter, to the bit what the Keye image processor gets.

    frame_HWC: uint8 (H, W, 3). Returns uint8 (height, width, 3).
    """
    if frame_HWC.shape[:2] == (height, width):
        return frame_HWC
    return np.asarray(Image.fromarray(frame_HWC).resize((width, height), Image.Resampling.BICUBIC))


Resize = Callable[[np.ndarray, int, int], np.ndarray]


def letterbox(frame_HWC: np.ndarray, height: int, width: int, resize: Resize = resize) -> np.ndarray:
    """The frame as large as it fits into another shape, with its own proportions, in the middle of black.

    frame_HWC: uint8 (H, W, 3). Returns uint8 (height, width, 3). resize: what gives the pixels of `resize`.
    """
    scale = min(height / frame_HWC.shape[0], width / frame_HWC.shape[1])
    h, w = (max(1, round(side * scale)) for side in frame_HWC.shape[:2])
    padded = np.zeros((height, width, 3), np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    padded[top : top + h, left : left + w] = resize(frame_HWC, h, w)
    return padded


def cut(frame_HWC: np.ndarray) -> np.ndarray:
    """A frame's patches in raster order: uint8 (rows * cols, 3, 14, 14) of a frame whose sides are multiples of 14."""
    rows, cols = frame_HWC.shape[0] // PATCH, frame_HWC.shape[1] // PATCH
    grid = frame_HWC.reshape(rows, PATCH, cols, PATCH, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(grid).reshape(rows * cols, 3, PATCH, PATCH)


def _check_ratio(height: int, width: int) -> None:
    if max(height, width) > MAX_RATIO * min(height, width):
        raise Unfit(f"it is {width}x{height}, and one side may be at most {MAX_RATIO} times the other")
