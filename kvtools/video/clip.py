"""A clip to one `video` record: index it, choose frames, fit them to the budget, decode, resize, cut, encode.

Memory: one frame at a time, whatever the length of the clip; the record is yielded in pieces.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from kvtools.artifact import blob
from kvtools.video import decode, frame_index, patch, pictures, sample
from kvtools.video.frame_index import FrameIndex
from kvtools.video.recipe import VideoRecipe

Read = Callable[[Sequence[int]], Iterator[np.ndarray]]


def tokenize(
    path: str, key: str, recipe: VideoRecipe, *, n_threads: int = 1, by_decoding: bool = False
) -> Iterator[memoryview]:
    """The encoded `video` record of a video file or a folder of frames, in pieces: its header first, then a frame at a time.

    by_decoding: take the times of frames from the decoder, for containers whose packets do not tell them. Raises FramesMissing
    where that is needed, Unfit where the clip does not have what the recipe asks for, ValueError where it cannot be read.
    """
    if Path(path).is_dir():
        paths = pictures.list_frames(path)
        index = pictures.open_frames(paths, recipe.sampling.fps)
        n_pixels = recipe.budget.max_frame_tokens * patch.PIXELS_A_TOKEN
        return _encode(path, key, recipe, index, lambda positions: pictures.read_frames(paths, positions, n_pixels))
    index = frame_index.open_index(path, by_decoding=by_decoding)
    if recipe.decoder == "decord":
        return _encode(path, key, recipe, index, lambda positions: decode.read_decord(path, index, positions))
    return _encode(path, key, recipe, index, lambda positions: decode.read_pyav(path, index, positions, n_threads=n_threads))


def _encode(path: str, key: str, recipe: VideoRecipe, index: FrameIndex, read: Read) -> Iterator[memoryview]:
    positions, height, width = _plan(index, recipe, is_video=index.codec != "pictures")
    frames = read(positions)
    frame = next(frames)
    if (frame.shape[0] < frame.shape[1]) != (index.height < index.width) and index.height != index.width:
        height, width = width, height  # rotation metadata; the budget is the same for both
    seconds = np.array([index.seconds(position) for position in positions])
    grid = np.array([len(positions), height // patch.PATCH, width // patch.PATCH], np.int32)
    shape_P3HW = (int(grid.prod()), 3, patch.PATCH, patch.PATCH)
    specs = {
        "seconds": (seconds.dtype, seconds.shape),
        "grid": (grid.dtype, grid.shape),
        "pixels": (np.dtype(np.uint8), shape_P3HW),
    }
    head, order = blob.header(specs, {"kind": "video", "key": key, **_fields(path, index, seconds, recipe, frame.shape)})
    assert order == ["seconds", "grid", "pixels"], "pixels come last, so that frames can be sent as they are decoded"
    yield memoryview(head + seconds.tobytes() + grid.tobytes())
    n_given = 0
    for n_given, each in enumerate(chain([frame], frames), start=1):  # noqa: B007
        yield blob.bytes_of(patch.cut(patch.resize(each, height, width)))
    assert n_given == len(positions), "a reader gives every frame asked for, or raises"


def _plan(index: FrameIndex, recipe: VideoRecipe, *, is_video: bool) -> tuple[Sequence[int], int, int]:
    """Positions of the frames to take, and the size to give them."""
    span = sample.within(index.times, index.time_base, recipe.sampling)
    times = index.times[span.start : span.stop]
    candidates: Sequence[int] = range(len(span))
    if recipe.pick != "any" and is_video:
        allowed = index.keys if recipe.pick == "key" else index.references
        candidates = [position - span.start for position in allowed if position in span]
        if not candidates:
            span_named = sample.span_text(index.times, index.time_base, recipe.sampling)
            raise sample.Unfit(f"it has no {recipe.pick} frame {span_named}")
    if is_video or recipe.sampling.n_frames is not None:
        span_s = index.duration_s * len(span) / len(index.times)
        n_frames = sample.count(len(span), span_s, recipe.sampling)
    else:
        n_frames = len(span)  # the frames of a folder are sampled already
    n_frames = min(n_frames, recipe.sampling.max_frames, len(candidates))
    n_frames, height, width = recipe.budget.fit(n_frames, index.height, index.width)
    chosen = sample.choose(times, candidates, n_frames)
    return [position + span.start for position in chosen], height, width


def _fields(path: str, index: FrameIndex, seconds: np.ndarray, recipe: VideoRecipe, shape: tuple[int, ...]) -> dict[str, Any]:
    # the rate of the frames taken, not the one asked for: intervals over the time they span
    fps = (len(seconds) - 1) / (seconds[-1] - seconds[0]) if len(seconds) > 1 else recipe.sampling.fps
    source: dict[str, Any] = {
        "width": shape[1],
        "height": shape[0],
        "frames": len(index.times),
        "codec": index.codec,
    }
    if Path(path).is_file():
        with open(path, "rb") as file:
            source["digest"] = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            source["bytes"] = file.tell()
    return {"fps": float(fps), "duration": index.duration_s, "source": source}
