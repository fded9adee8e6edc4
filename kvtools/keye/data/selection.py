"""Which frames of its source an item of a conversation shows, and at which size: what its words ask for.

Pixels are those of keye-vl-utils: `min_pixels` and `max_pixels` of a picture or a frame, `total_pixels` of a video,
`resized_height` and `resized_width` in their place. Words narrow the limits that the caller sets and never widen them upwards,
but for a smallest size. Not here: files and streams (media.py).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvtools.keye.data.frames import as_kind, nearest, resized, size_of, take, within
from kvtools.keye.model.inputs import Visual
from kvtools.video import patch
from kvtools.video.sample import FrameSampling, linspace_indices

Item = Mapping[str, Any]

_MAX_FRAMES = 768  # of a file


def names_its_frames(item: Item) -> bool:
    """Whether an item says which moments it shows, so that none of them may be left out."""
    return item["type"] == "image" or bool({"seconds", "shown"} & set(item)) or _has_cuts(item)


def sampling_of(item: Item, fps: float) -> FrameSampling:
    """The frames to take of a video file. fps: where the item gives none. Raises ValueError for words that make no sense."""
    rate = _number(item, "fps", fps)
    n_frames, least, most = (_count(item, name) for name in ("frames", "min_frames", "max_frames"))
    most = min(most or _MAX_FRAMES, _MAX_FRAMES)
    least = min(least or FrameSampling.min_frames, most)
    if n_frames is not None:
        n_frames = min(n_frames, most)
    start, end = (None if item.get(name) is None else _number(item, name, 0, 0) for name in ("video_start", "video_end"))
    if start is not None and end is not None and end < start:
        raise ValueError(f"video_end is {end:g} s, and must not be before video_start, {start:g} s")
    return FrameSampling(rate, n_frames, min_frames=least, max_frames=most, start_s=start, end_s=end)


def budget_of(item: Item, budget: patch.Budget, n_tokens: int | None) -> patch.Budget:
    """The budget of a video under the words of its item. n_tokens: the most it may have here, None for no other limit."""
    low, high, total = (_tokens_of(item, name) for name in ("min_pixels", "max_pixels", "total_pixels"))
    most = min(n for n in (budget.max_tokens, total, n_tokens) if n is not None)
    highest = budget.max_frame_tokens if high is None else min(high, budget.max_frame_tokens)
    lowest = budget.min_frame_tokens if low is None else low
    return patch.Budget(most, min(lowest, highest), highest)


def picture_pixels(item: Item, limits: tuple[int, int], n_tokens: int | None) -> tuple[int, int]:
    """The fewest and the most pixels of a picture; limits and n_tokens as of a video's budget."""
    low, high = (_tokens_of(item, name) for name in ("min_pixels", "max_pixels"))
    most = limits[1] if high is None else min(limits[1], high * patch.PIXELS_A_TOKEN)
    if n_tokens is not None:
        most = min(most, n_tokens * patch.PIXELS_A_TOKEN)
    least = limits[0] if low is None else low * patch.PIXELS_A_TOKEN
    return min(least, most), most


def fixed_size(item: Item) -> tuple[int, int] | None:
    """The height and width that an item fixes, in multiples of 28; None for none. Raises ValueError for half a size."""
    names = ("resized_height", "resized_width")
    height, width = (_count(item, name) for name in names)
    if height is None and width is None:
        return None
    if height is None or width is None:
        raise ValueError(f"{names[height is None]} is given alone, and {' and '.join(names)} belong together")
    return patch.smart_resize(height, width)


def at_size(visual: Visual, item: Item) -> Visual:
    """The frames at the size that the words of their item ask for. Frames of records have a size already, and change it only
    where they must."""
    if (size := fixed_size(item)) is not None:
        return resized(visual, *size)
    if not {"min_pixels", "max_pixels"} & set(item):
        return visual
    low, high = picture_pixels(item, (patch.PIXELS_A_TOKEN, patch.MAX_PIXELS), None)
    return resized(visual, *patch.smart_resize(*size_of(visual), low, high))


def select(clip: Visual, item: Item) -> Visual:
    """The frames of a clip that an item asks for, by default all; at most as many as its `fps` allows."""
    indices = frame_indices(clip.seconds, item)
    is_whole = indices == list(range(len(clip.seconds)))
    return as_kind(item["type"], clip if is_whole else take(clip, indices))


def frame_indices(times: np.ndarray, item: Item) -> list[int]:
    """The indices of the frames that an item asks for. times: float64 (T,), rising, at which the frames were shown."""
    if item["type"] == "image":
        return nearest(times, [item.get("second", times[0])])
    if "seconds" in item:
        return nearest(times, item["seconds"])
    sampling = sampling_of(item, 1.0)
    indices = within(times, sampling.start_s, sampling.end_s)
    n_wanted = len(indices)
    if sampling.n_frames is not None:
        n_wanted = sampling.n_frames
    elif "fps" in item:
        span = float(times[indices[-1]] - times[indices[0]])
        n_wanted = math.floor(sampling.fps * span + 1e-6) + 1
        n_wanted = max(n_wanted, sampling.min_frames if "min_frames" in item else 1)
    if "max_frames" in item:
        n_wanted = min(n_wanted, sampling.max_frames)
    chosen = linspace_indices(0, len(indices) - 1, n_wanted) if n_wanted < len(indices) else range(len(indices))
    return [indices[n] for n in chosen]


def _has_cuts(item: Item) -> bool:
    source = item.get("video")
    return isinstance(source, list) and bool(source) and isinstance(source[0], dict)


def _number(item: Item, name: str, default: float, least: float | None = None) -> float:
    value = item.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}, and must be a number")
    is_allowed = value > 0 if least is None else value >= least
    if value is not default and not (math.isfinite(value) and is_allowed):
        above = "above 0" if least is None else f"of {least:g} or more"
        raise ValueError(f"{name} is {value}, and must be a finite number {above}")
    return float(value)


def _count(item: Item, name: str) -> int | None:
    value = item.get(name)
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1
    ):
        raise ValueError(f"{name} is {value!r}, and must be a whole number of 1 or more")
    return None if value is None else int(value)


def _tokens_of(item: Item, name: str) -> int | None:
    """A number of pixels as tokens, at least one."""
    n_pixels = _count(item, name)
    return None if n_pixels is None else max(1, n_pixels // patch.PIXELS_A_TOKEN)
