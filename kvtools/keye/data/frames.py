"""Frames as patches: what a picture or video is once it has been read, and how frames are chosen, joined and resized.

Arrays in, arrays out; nothing of files. Legend: P patches in raster order, T frames.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from kvtools.keye.model.inputs import Visual
from kvtools.video import patch


def nearest(times: np.ndarray, seconds: Sequence[float]) -> list[int]:
    """The place of the frame nearest to each second; ties go to the earlier."""
    if not len(seconds):
        raise ValueError("no seconds found, one at least expected")
    places = []
    for second in map(float, seconds):
        right = min(bisect_left(times, second), len(times) - 1)
        left = max(0, right - 1)
        places.append(left if second - times[left] <= times[right] - second else right)
    return places


def take(visual: Visual, frames: Sequence[int]) -> Visual:
    """Some frames, in the order given."""
    _, rows, cols = visual.grid.tolist()
    pixels = visual.pixels_P3HW.reshape(-1, rows * cols, *visual.pixels_P3HW.shape[1:])[frames]
    grid = np.array([len(frames), rows, cols], np.int32)
    return Visual(pixels.reshape(-1, *pixels.shape[2:]), grid, visual.seconds[list(frames)], visual.is_video)


def as_kind(kind: str, visual: Visual) -> Visual:
    """The same, as an "image" or a "video"."""
    return Visual(visual.pixels_P3HW, visual.grid, visual.seconds, kind == "video")


def resized(visual: Visual, height: int, width: int) -> Visual:
    """At another size in pixels, multiples of 28, by the bicubic filter. Raises ValueError for other sides."""
    n_frames, rows, cols = visual.grid.tolist()
    side = patch.PATCH
    if (height, width) == (rows * side, cols * side):
        return visual
    if height % patch.FACTOR or width % patch.FACTOR or min(height, width) <= 0:
        raise ValueError(f"size {height}x{width} found, multiples of {patch.FACTOR} expected")
    patches = visual.pixels_P3HW.reshape(n_frames, rows, cols, 3, side, side)
    frames_THWC = patches.transpose(0, 1, 4, 2, 5, 3).reshape(n_frames, rows * side, cols * side, 3)
    return of_pictures(list(frames_THWC), height, width, visual.seconds, is_video=visual.is_video)


def of_pictures(frames_HWC: Sequence[np.ndarray], height: int, width: int, seconds: np.ndarray, *, is_video: bool) -> Visual:
    """Pictures uint8 (H, W, 3) at one size, as patches."""
    pixels = np.concatenate([patch.cut(patch.resize(np.ascontiguousarray(f), height, width)) for f in frames_HWC])
    grid = np.array([len(frames_HWC), height // patch.PATCH, width // patch.PATCH], np.int32)
    return Visual(pixels, grid, np.asarray(seconds, np.float64), is_video)


def spliced(cuts: Sequence[Visual]) -> Visual:
    """Cuts one after another, at the size of the first; each begins half a second after the last frame of the one before."""
    if not cuts:
        raise ValueError("an empty list of cuts found")
    _, rows, cols = cuts[0].grid.tolist()
    alike = [resized(cut, rows * patch.PATCH, cols * patch.PATCH) for cut in cuts]
    times: list[np.ndarray] = []
    for cut in alike:
        begin = times[-1][-1] + 0.5 if times else cut.seconds[0]
        times.append(cut.seconds - cut.seconds[0] + begin)
    pixels = np.concatenate([cut.pixels_P3HW for cut in alike])
    grid = np.array([sum(map(len, times)), rows, cols], np.int32)
    return Visual(pixels, grid, np.concatenate(times), is_video=True)


def shown(visual: Visual, seconds: Sequence[float]) -> Visual:
    """With other times. Raises ValueError unless they are as many as the frames, finite, and never go back."""
    times = np.array(seconds, np.float64)
    if times.shape != visual.seconds.shape or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError(f"{len(times)} times shown for {len(visual.seconds)} frames, as many, finite and rising, expected")
    return Visual(visual.pixels_P3HW, visual.grid, times, visual.is_video)
