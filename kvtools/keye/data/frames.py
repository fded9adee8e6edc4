"""Frames as patches: how the frames of a picture or video are chosen, joined and resized once it has been read.

Not here: files (media.py). Legend: P patches in raster order, T frames, H and W pixels.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from kvtools.keye.model.inputs import Visual
from kvtools.video import patch
from kvtools.video.sample import linspace_indices

_ROUNDING = 1e-6  # seconds


def nearest(times: np.ndarray, seconds: Sequence[float], *, end_s: float | None = None) -> list[int]:
    """The index of the frame nearest to each second; ties go to the earlier frame.

    times: float64 (T,), rising. end_s: when the last frame ends, by default when it begins. Raises ValueError where there are
    no seconds, and for a second that is more than half a frame outside of the clip.
    """
    if not len(seconds):
        raise ValueError("seconds is empty, and needs at least one")
    half_s = (times[-1] - times[0]) / (len(times) - 1) / 2 if len(times) > 1 else 0.5
    first_s, last_s = times[0] - half_s, (times[-1] if end_s is None else end_s) + half_s
    indices = []
    for second in map(float, seconds):
        if not first_s - _ROUNDING <= second <= last_s + _ROUNDING:
            raise ValueError(f"second {second:g} is outside of the clip, whose frames are at {times[0]:g} to {times[-1]:g} s")
        right = min(bisect_left(times, second), len(times) - 1)
        left = max(0, right - 1)
        indices.append(left if second - times[left] <= times[right] - second else right)
    return indices


def within(times: np.ndarray, start_s: float | None, end_s: float | None) -> list[int]:
    """The indices of the frames from start to end in seconds, None for no limit. times: float64 (T,). Raises ValueError where
    there is none."""
    found = [n for n, t in enumerate(times) if (start_s is None or t >= start_s) and (end_s is None or t <= end_s)]
    if not found:
        span = f"{times[0] if start_s is None else start_s:g} s and {times[-1] if end_s is None else end_s:g} s"
        raise ValueError(f"it has no frame between {span}, and its frames are at {times[0]:g} to {times[-1]:g} s")
    return found


def take(visual: Visual, frames: Sequence[int]) -> Visual:
    """The frames with these indices, in this order."""
    _, rows, cols = visual.grid.tolist()
    pixels = visual.pixels_P3HW.reshape(-1, rows * cols, *visual.pixels_P3HW.shape[1:])[frames]
    grid = np.array([len(frames), rows, cols], np.int32)
    return Visual(pixels.reshape(-1, *pixels.shape[2:]), grid, visual.seconds[list(frames)], visual.is_video)


def as_kind(kind: str, visual: Visual) -> Visual:
    """The same frames, as an "image" or a "video"."""
    return replace(visual, is_video=kind == "video")


def resized(visual: Visual, height: int, width: int) -> Visual:
    """The frames at another size in pixels, by the bicubic filter. Raises ValueError for sides that are no multiples of 28."""
    _, rows, cols = visual.grid.tolist()
    side = patch.PATCH
    if (height, width) == (rows * side, cols * side):
        return visual
    if height % patch.FACTOR or width % patch.FACTOR or min(height, width) <= 0:
        raise ValueError(f"size is {height}x{width}, and both must be multiples of {patch.FACTOR} above 0")
    return of_pictures(list(frames_of(visual)), height, width, visual.seconds, is_video=visual.is_video)


def frames_of(visual: Visual) -> np.ndarray:
    """The frames as pictures, uint8 (T, rows * 14, columns * 14, 3)."""
    n_frames, rows, cols = visual.grid.tolist()
    patches = visual.pixels_P3HW.reshape(n_frames, rows, cols, 3, patch.PATCH, patch.PATCH)
    return patches.transpose(0, 1, 4, 2, 5, 3).reshape(n_frames, rows * patch.PATCH, cols * patch.PATCH, 3)


def of_pictures(frames_HWC: Iterable[np.ndarray], height: int, width: int, seconds: np.ndarray, *, is_video: bool) -> Visual:
    """Pictures uint8 (H, W, 3), resized to height and width, as patches. seconds: float64 (T,), the time of each."""
    pixels = np.concatenate([patch.cut(patch.resize(np.ascontiguousarray(frame), height, width)) for frame in frames_HWC])
    grid = np.array([len(seconds), height // patch.PATCH, width // patch.PATCH], np.int32)
    return Visual(pixels, grid, np.asarray(seconds, np.float64), is_video)


def size_of(visual: Visual) -> tuple[int, int]:
    """The height and width of its frames in pixels."""
    return int(visual.grid[1]) * patch.PATCH, int(visual.grid[2]) * patch.PATCH


def within_tokens(visual: Visual, n_tokens: int, *, is_whole: bool) -> Visual:
    """At most so many tokens of it, where its shape allows. is_whole: frames may go, evenly; else every frame gets smaller."""
    n_frames, rows, cols = visual.grid.tolist()
    a_frame = rows * cols // 4
    if n_frames * a_frame <= n_tokens:
        return visual
    if is_whole and n_frames > 1 and n_tokens >= a_frame:
        return take(visual, linspace_indices(0, n_frames - 1, n_tokens // a_frame))
    most = max(1, n_tokens // n_frames) * patch.PIXELS_A_TOKEN
    return resized(visual, *patch.smart_resize(*size_of(visual), min(most, patch.MIN_PIXELS), most))


def spliced(cuts: Sequence[Visual]) -> Visual:
    """Cuts one after another, at the size of the first; each begins half a second after the last frame of the one before.

    Raises ValueError for an empty list.
    """
    if not cuts:
        raise ValueError("the list of cuts is empty")
    _, rows, cols = cuts[0].grid.tolist()
    same_size = [resized(cut, rows * patch.PATCH, cols * patch.PATCH) for cut in cuts]
    times: list[np.ndarray] = []
    for cut in same_size:
        begin = times[-1][-1] + 0.5 if times else cut.seconds[0]
        times.append(cut.seconds - cut.seconds[0] + begin)
    pixels = np.concatenate([cut.pixels_P3HW for cut in same_size])
    grid = np.array([sum(map(len, times)), rows, cols], np.int32)
    return Visual(pixels, grid, np.concatenate(times), is_video=True)


def with_times(visual: Visual, seconds: Sequence[float]) -> Visual:
    """The same frames with other times. Raises ValueError unless there is one for each frame, finite, and none goes back."""
    times = np.array(seconds, np.float64)
    if times.shape != visual.seconds.shape or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError(
            f"shown has {len(times)} times for {len(visual.seconds)} frames, and needs one for each, finite and never falling"
        )
    return replace(visual, seconds=times)
