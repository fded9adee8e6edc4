"""One clip into one `video` record: index it, choose frames, fit them to the budget, decode, resize, cut, encode.

Memory: one frame at a time, whatever the clip's length; the record leaves in pieces.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from kvtools.artifact import blob
from kvtools.video import decode, patch, sample
from kvtools.video.recipe import Recipe

Read = Callable[[Sequence[int]], Iterator[np.ndarray]]


def tokenize(path: str, key: str, recipe: Recipe, *, n_threads: int = 1, by_decoding: bool = False) -> Iterator[memoryview]:
    """The encoded `video` record of a video file or a folder of frames, in pieces: its header first, then a frame at a time.

    by_decoding: learn the frames' times by decoding them, for the containers whose packets do not tell. Raises
    decode.FramesMissing where that is called for, ValueError where the record cannot be made right.
    """
    if Path(path).is_dir():
        pictures = decode.list_frames(path)
        index = decode.open_frames(pictures, recipe.want.fps)
        return _encode(path, key, recipe, index, lambda positions: decode.read_frames(pictures, positions))
    index = decode.open_index(path, by_decoding=by_decoding)
    if recipe.decoder == "decord":
        return _encode(path, key, recipe, index, lambda positions: decode.read_decord(path, index, positions))
    return _encode(path, key, recipe, index, lambda positions: decode.read_pyav(path, index, positions, n_threads=n_threads))


def _encode(path: str, key: str, recipe: Recipe, index: decode.Index, read: Read) -> Iterator[memoryview]:
    positions, height, width = _plan(index, recipe, is_video=index.codec != "pictures")
    frames = read(positions)
    frame = next(frames)
    if (frame.shape[0] < frame.shape[1]) != (index.height < index.width) and index.height != index.width:
        height, width = width, height  # rotation metadata; the budget does not care which side is which
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


def _plan(index: decode.Index, recipe: Recipe, *, is_video: bool) -> tuple[Sequence[int], int, int]:
    """Positions of the frames to take, and the size to give them."""
    span = sample.within(index.times, index.time_base, recipe.want)
    times = index.times[span.start : span.stop]
    candidates: Sequence[int] = range(len(span))
    if recipe.pick != "any" and is_video:
        allowed = index.keys if recipe.pick == "key" else index.references
        candidates = [position - span.start for position in allowed if position in span]
        if not candidates:
            raise ValueError(f"no {recipe.pick} frame in the span asked for; --pick any takes any frame")
    if is_video or recipe.want.n_frames is not None:
        span_s = index.duration_s * len(span) / len(index.times)
        n_frames = sample.count(len(span), span_s, recipe.want)
    else:
        n_frames = len(span)  # a folder of frames was sampled by whoever made it
    n_frames = min(n_frames, recipe.want.max_frames, len(candidates))
    n_frames, height, width = recipe.budget.fit(n_frames, index.height, index.width)
    chosen = sample.choose(times, candidates, n_frames)
    return [position + span.start for position in chosen], height, width


def _fields(path: str, index: decode.Index, seconds: np.ndarray, recipe: Recipe, shape: tuple[int, ...]) -> dict[str, Any]:
    # the rate that was got, not the one asked for: intervals over the time they span
    fps = (len(seconds) - 1) / (seconds[-1] - seconds[0]) if len(seconds) > 1 else recipe.want.fps
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
