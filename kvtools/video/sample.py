"""Which frames of a clip to take: how many, at which times, and which frame is nearest to each time.

Times are integers in the clip's own time base, so that no choice depends on rounding. `smart_nframes` and
`linspace_indices` are the rules of keye-vl-utils 1.0.0 (goldens in tests); `choose` applies them to real presentation times
and differs on purpose in two ways: a clip of one frame gives that frame, and where the frame rate varies the times are evenly
spread in time, not in frame numbers.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

FRAME_FACTOR = 2  # the reference's counts are even, though Keye merges no frame pairs
MIN_FRAMES, MAX_FRAMES = 4, 768


class Unfit(ValueError):
    """A clip that is sound, and does not have what the recipe asks for."""


def smart_nframes(
    n_total: int,
    video_fps: float,
    *,
    fps: float = 2.0,
    n_frames: int | None = None,
    min_frames: int = MIN_FRAMES,
    max_frames: int = MAX_FRAMES,
) -> int:
    """The number of frames that keye-vl-utils takes: even, 2 to n_total. Raises ValueError where there is only one frame."""
    if n_frames is not None:
        count = round(n_frames / FRAME_FACTOR) * FRAME_FACTOR
    else:
        lowest = math.ceil(min_frames / FRAME_FACTOR) * FRAME_FACTOR
        highest = min(max_frames, n_total) // FRAME_FACTOR * FRAME_FACTOR
        count = math.floor(min(max(n_total / video_fps * fps, lowest), highest, n_total) / FRAME_FACTOR) * FRAME_FACTOR
    if not FRAME_FACTOR <= count <= n_total:
        raise ValueError(f"{count} frames are to be taken, which is not between {FRAME_FACTOR} and {n_total}")
    return count


def linspace_indices(begin: int, end: int, n_frames: int) -> list[int]:
    """n_frames frame numbers spread evenly over [begin, end], both included; halves go to the even number."""
    if n_frames == 1:
        return [begin]
    return [round(Fraction(begin * (n_frames - 1 - i) + end * i, n_frames - 1)) for i in range(n_frames)]


@dataclass(frozen=True)
class FrameSampling:
    """Which frames to take of every clip: see the options of `tokenize-video` with the same names."""

    fps: float = 2.0
    n_frames: int | None = None
    min_frames: int = MIN_FRAMES
    max_frames: int = MAX_FRAMES
    start_s: float | None = None
    end_s: float | None = None


def count(n_total: int, span_s: float, sampling: FrameSampling) -> int:
    """How many of n_total frames of span_s seconds to take: 1 to n_total."""
    if n_total < FRAME_FACTOR:
        return n_total
    if sampling.n_frames is not None:
        return min(sampling.n_frames, n_total)
    # keye-vl-utils divides by a nominal rate; the span of the frames is right where the rate varies, too
    rate = n_total / span_s if span_s > 0 else sampling.fps
    return smart_nframes(
        n_total,
        rate,
        fps=sampling.fps,
        min_frames=min(sampling.min_frames, n_total),
        max_frames=max(FRAME_FACTOR, sampling.max_frames),
    )


def span_text(sampling: FrameSampling) -> str:
    """Where frames are taken from, in seconds after the first frame: `between 1 s and 2.5 s`."""
    if sampling.end_s is None:
        return f"from {sampling.start_s or 0:g} s on"
    return f"between {sampling.start_s or 0:g} s and {sampling.end_s:g} s"


def within(times: Sequence[int], time_base: Fraction, duration_s: float, sampling: FrameSampling) -> range:
    """Positions of the frames that are on screen from start to end, in seconds after the first frame.

    A frame is on screen until the next one, the last until the clip ends. Raises Unfit where the clip ends before the start.
    """
    origin = times[0]
    begin, end = 0, len(times)
    if sampling.start_s is not None:
        # a number of seconds means its decimal digits: the nearest binary fraction may be just before the frame meant
        start = Fraction(repr(sampling.start_s))
        if start >= duration_s and start > (times[-1] - origin) * time_base:
            text = span_text(sampling)
            raise Unfit(f"it has no frame {text}, because it is {duration_s:.3f} s long")
        begin = bisect_right(times, origin + math.floor(start / time_base)) - 1
    if sampling.end_s is not None:
        end = bisect_right(times, origin + math.floor(Fraction(repr(sampling.end_s)) / time_base))
    return range(begin, max(end, begin + 1))


def span_s(duration_s: float, sampling: FrameSampling) -> float:
    """Seconds of the clip between start and end."""
    end_s = duration_s if sampling.end_s is None else min(sampling.end_s, duration_s)
    return max(0.0, end_s - (sampling.start_s or 0.0))


def choose(times: Sequence[int], candidates: Sequence[int], n_frames: int) -> list[int]:
    """Positions of the candidates nearest to n_frames times, evenly spread from the first frame to the last.

    times: rising presentation times of all frames in the span. candidates: positions in times that may be taken. Ties go to the
    even position, as in keye-vl-utils. A candidate is taken once, so that fewer than n_frames may be returned.
    """
    if n_frames >= len(candidates):
        return list(candidates)
    first, last = times[0], times[-1]
    steps = max(1, n_frames - 1)
    chosen: dict[int, None] = {}
    shown = [times[c] * steps for c in candidates]
    for i in range(n_frames):
        wanted = first * (steps - i) + last * i
        right = min(bisect_left(shown, wanted), len(shown) - 1)
        left = max(0, right - 1)
        before, after = abs(wanted - shown[left]), abs(shown[right] - wanted)
        is_left = candidates[left] % 2 == 0 if before == after else before < after
        nearest = left if is_left else right
        chosen[candidates[nearest]] = None
    return list(chosen)
