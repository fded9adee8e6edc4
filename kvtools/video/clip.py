"""A clip to one `video` record: index it, choose frames, fit them to the budget, decode, resize, cut, encode.

Memory: one frame at a time, whatever the length of the clip; the record is yielded in pieces.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from kvtools.artifact import blob
from kvtools.video import decode, frame_index, patch, pictures, sample
from kvtools.video.container import Damaged
from kvtools.video.digest import digest_of
from kvtools.video.frame_index import FrameIndex, Tick, no_tick
from kvtools.video.recipe import VideoRecipe

Read = Callable[[Sequence[int]], Iterator[np.ndarray]]
Whole = Callable[[Sequence[int]], tuple[list[int], list[str]]]


@dataclass(frozen=True)
class Attempt:
    """How a clip is read: `tokenize` says when to try another way.

    by_decoding: take the times of frames from the decoder, for containers whose packets do not tell them. salvage: leave out
    the frames that are not whole. resize: gives the pixels of `patch.resize`.
    """

    by_decoding: bool = False
    salvage: bool = False
    n_threads: int = 1
    tick: Tick = no_tick
    resize: patch.Resize = patch.resize


class Mixed(sample.Unfit):
    """A clip with frames of several shapes."""


def tokenize(
    path: str, key: str, recipe: VideoRecipe, attempt: Attempt | None = None, fields: Mapping[str, Any] | None = None
) -> Iterator[memoryview]:
    """The encoded `video` record of a video file or a folder of frames, in pieces: its header first, then a frame at a time.

    fields: more JSON fields for the record. Raises FramesMissing where the times must be taken by decoding, Damaged where a
    frame that is wanted is not whole, Unfit where the clip does not have what the recipe asks for, ValueError where it cannot
    be read.
    """
    attempt = attempt or Attempt()
    source = _open(path, recipe, attempt)
    plan = _plan(source, recipe)
    frames = source.read(plan.positions)
    frame = next(frames)
    if sorted(frame.shape[:2]) != sorted((source.index.height, source.index.width)):
        # the stream changes its size, and its header tells another
        source = replace(source, index=replace(source.index, height=frame.shape[0], width=frame.shape[1]))
        plan = _plan(source, recipe)
        frames = source.read(plan.positions)
        frame = next(frames)
    yield from _encode(source, plan, key, recipe, chain([frame], frames), frame.shape, fields or {}, attempt.resize)


@dataclass(frozen=True)
class _Source:
    """A clip that is open: its index, and how its frames are read."""

    path: str
    index: FrameIndex
    read: Read
    whole: Whole | None = None  # of the positions, those whose frame is whole, where others are to be left out


@dataclass(frozen=True)
class _Plan:
    positions: Sequence[int]
    height: int
    width: int
    missing: dict[str, Any] = field(default_factory=dict)  # what was left out, of a damaged clip


def _open(path: str, recipe: VideoRecipe, attempt: Attempt) -> _Source:
    if Path(path).is_dir():
        paths = pictures.list_frames(path)
        index = pictures.open_frames(paths, recipe.sampling.fps)
        n_pixels = recipe.budget.max_frame_tokens * patch.PIXELS_A_TOKEN
        return _Source(path, index, lambda positions: pictures.read_frames(paths, positions, n_pixels))
    if pictures.is_animation(path):
        return _Source(path, pictures.open_animation(path), lambda positions: pictures.read_animation(path, positions))
    index = frame_index.open_index(path, by_decoding=attempt.by_decoding, tick=attempt.tick)
    if recipe.decoder == "decord":
        if index.parser_fault is not None:
            raise Damaged(f"it is damaged ({index.parser_fault})")
        return _Source(path, index, lambda positions: decode.read_decord(path, index, positions))
    n_threads, tick = attempt.n_threads, attempt.tick
    return _Source(
        path,
        index,
        lambda positions: decode.read_pyav(path, index, positions, n_threads=n_threads, tick=tick),
        (lambda positions: decode.whole(path, index, positions, n_threads=n_threads, tick=tick)) if attempt.salvage else None,
    )


def _plan(source: _Source, recipe: VideoRecipe) -> _Plan:
    """Which frames to take, and the size to give them. Raises Damaged where the container is damaged among them."""
    index, sampling = source.index, recipe.sampling
    is_video = index.codec != "pictures"
    span = sample.within(index.times, index.time_base, index.duration_s, sampling)
    gaps = _gaps(index, span, sampling)
    if gaps and source.whole is None:
        raise Damaged(f"it is damaged ({gaps[0][1]})")
    times = index.times[span.start : span.stop]
    candidates: Sequence[int] = range(len(span))
    if recipe.pick != "any" and is_video:
        allowed = index.keys if recipe.pick == "key" else index.references
        candidates = [position - span.start for position in allowed if position in span]
        if not candidates:
            span_named = sample.span_text(sampling)
            raise sample.Unfit(f"it has no {recipe.pick} frame {span_named}")
    if is_video or sampling.n_frames is not None:
        n_frames = sample.count(len(span), sample.span_s(index.duration_s, sampling), sampling)
    else:
        n_frames = len(span)  # the frames of a folder are sampled already
    n_frames = min(n_frames, sampling.max_frames, len(candidates))
    n_frames, height, width = recipe.budget.fit(n_frames, index.height, index.width)
    positions = [position + span.start for position in sample.choose(times, candidates, n_frames)]
    if source.whole is None:
        return _Plan(positions, height, width)
    whole, faults = source.whole(positions)
    if not whole:
        raise Damaged(f"it is damaged ({faults[0]}), and no frame of it is whole")
    missing = {
        "frames": len(faults),
        "reasons": list(dict.fromkeys([*faults, *(text for _, text in gaps)]))[:3],
        "damaged_after_s": [seconds for seconds, _ in gaps],
    }
    return _Plan(whole, height, width, missing)


def _gaps(index: FrameIndex, span: range, sampling: sample.FrameSampling) -> list[tuple[float, str]]:
    """Where the container is damaged among the frames of a span: seconds after the first frame, and what FFmpeg says."""
    origin = index.times[0]
    # what is lost between a key frame and the span may be needed to decode the span
    begin = max((index.times[key] for key in index.keys if key <= span.start), default=origin)
    gaps = [(origin if time is None else time, text) for time, text in index.gaps]
    seconds = [(float((time - origin) * index.time_base), text) for time, text in gaps if time >= begin]
    return [(at, text) for at, text in seconds if sampling.end_s is None or at < sampling.end_s]


def _encode(
    source: _Source,
    plan: _Plan,
    key: str,
    recipe: VideoRecipe,
    frames: Iterator[np.ndarray],
    shape: tuple[int, ...],
    fields: Mapping[str, Any],
    resize: patch.Resize,
) -> Iterator[memoryview]:
    index, height, width = source.index, plan.height, plan.width
    if (shape[0] < shape[1]) != (index.height < index.width) and index.height != index.width:
        height, width = width, height  # rotation metadata; the budget is the same for both
    seconds = np.array([index.seconds(position) for position in plan.positions])
    grid = np.array([len(plan.positions), height // patch.PATCH, width // patch.PATCH], np.int32)
    shape_P3HW = (int(grid.prod()), 3, patch.PATCH, patch.PATCH)
    specs = {
        "seconds": (seconds.dtype, seconds.shape),
        "grid": (grid.dtype, grid.shape),
        "pixels": (np.dtype(np.uint8), shape_P3HW),
    }
    described = {**_fields(source, seconds, recipe, shape), **({"missing": plan.missing} if plan.missing else {})}
    head, order = blob.header(specs, {**fields, "kind": "video", "key": key, **described})
    assert order == ["seconds", "grid", "pixels"], "pixels come last, so that frames can be sent as they are decoded"
    yield memoryview(head + seconds.tobytes() + grid.tobytes())
    n_given = 0
    for n_given, each in enumerate(frames, start=1):
        if each.shape == shape:
            sized = resize(each, height, width)
        elif recipe.mixed == "pad":
            sized = patch.letterbox(each, height, width, resize)
        else:
            number = plan.positions[n_given - 1]
            raise Mixed(f"its frame {number} is {each.shape[1]}x{each.shape[0]}, and its first is {shape[1]}x{shape[0]}")
        yield blob.bytes_of(patch.cut(sized))
    assert n_given == len(plan.positions), "a reader gives every frame asked for, or raises"


def _fields(source: _Source, seconds: np.ndarray, recipe: VideoRecipe, shape: tuple[int, ...]) -> dict[str, Any]:
    # the rate of the frames taken, not the one asked for: intervals over the time they span
    fps = (len(seconds) - 1) / (seconds[-1] - seconds[0]) if len(seconds) > 1 else recipe.sampling.fps
    index, path = source.index, source.path
    described: dict[str, Any] = {
        "width": shape[1],
        "height": shape[0],
        "frames": len(index.times),
        "codec": index.codec,
    }
    if Path(path).is_file():
        described["digest"] = digest_of(path)
        described["bytes"] = Path(path).stat().st_size
    return {"fps": float(fps), "duration": index.duration_s, "source": described}
