"""Which frames of a clip to take: how many, at which times, and which decoded frame is nearest to each.

Times are integers in the clip's own time base throughout, so that a choice never hangs on rounding. `smart_nframes` and
`linspace_indices` are keye-vl-utils 1.0.0's rules as spec'd by their behaviour (goldens in tests); `choose` applies them to
real presentation times and differs on purpose in two ways: a clip of one frame gives that frame, and on clips of variable
frame rate the wanted times are spread evenly in time, not in frame numbers.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

FRAME_FACTOR = 2  # the reference's counts are even, though Keye merges no frame pairs
MIN_FRAMES, MAX_FRAMES = 4, 768


def smart_nframes(
    n_total: int,
    video_fps: float,
    *,
    fps: float = 2.0,
    n_frames: int | None = None,
    min_frames: int = MIN_FRAMES,
    max_frames: int = MAX_FRAMES,
) -> int:
    """The reference's number of frames: even, between 2 and n_total; ValueError where that cannot be (one frame)."""
    if n_frames is not None:
        count = round(n_frames / FRAME_FACTOR) * FRAME_FACTOR
    else:
        lowest = math.ceil(min_frames / FRAME_FACTOR) * FRAME_FACTOR
        highest = min(max_frames, n_total) // FRAME_FACTOR * FRAME_FACTOR
        count = math.floor(min(max(n_total / video_fps * fps, lowest), highest, n_total) / FRAME_FACTOR) * FRAME_FACTOR
    if not FRAME_FACTOR <= count <= n_total:
        raise ValueError(f"{count} frames found, {FRAME_FACTOR} to {n_total} expected")
    return count


def linspace_indices(begin: int, end: int, n_frames: int) -> list[int]:
    """n_frames frame numbers spread evenly over [begin, end], both included; halves go to the even number."""
    if n_frames == 1:
        return [begin]
    return [round(Fraction(begin * (n_frames - 1 - i) + end * i, n_frames - 1)) for i in range(n_frames)]


@dataclass(frozen=True)
class Want:
    """What the user asks of every clip: see the options of `tokenize-video` with the same names."""

    fps: float = 2.0
    n_frames: int | None = None
    min_frames: int = MIN_FRAMES
    max_frames: int = MAX_FRAMES
    start_s: float | None = None
    end_s: float | None = None


def count(n_total: int, span_s: float, want: Want) -> int:
    """How many of n_total frames covering span_s seconds to take; at least one, never more than there are."""
    if n_total < FRAME_FACTOR:
        return n_total
    if want.n_frames is not None:
        return min(want.n_frames, n_total)
    # the reference divides by a nominal rate; the frames' own span keeps it true where the rate varies
    rate = n_total / span_s if span_s > 0 else want.fps
    return smart_nframes(
        n_total, rate, fps=want.fps, min_frames=min(want.min_frames, n_total), max_frames=max(FRAME_FACTOR, want.max_frames)
    )


def within(times: Sequence[int], time_base: Fraction, want: Want) -> range:
    """Positions of the frames shown in [start, end] seconds after the first; ValueError where there is none."""
    origin = times[0]
    begin, end = 0, len(times)
    if want.start_s is not None:
        begin = bisect_left(times, origin + math.ceil(Fraction(want.start_s) / time_base))
    if want.end_s is not None:
        end = bisect_left(times, origin + math.floor(Fraction(want.end_s) / time_base) + 1)
    if begin >= end:
        last = float((times[-1] - origin) * time_base)
        upto = last if want.end_s is None else want.end_s
        raise ValueError(f"no frame between {want.start_s or 0:g} s and {upto:g} s; the last is at {last:.3f} s")
    return range(begin, end)


def choose(times: Sequence[int], candidates: Sequence[int], n_frames: int) -> list[int]:
    """Positions of the candidates nearest to n_frames moments spread evenly from the first time to the last.

    times: rising presentation times of all frames in the span. candidates: positions into times that may be taken. Ties
    go to the even position, as the reference's rounding does. A candidate is taken once, so fewer may come back.
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
