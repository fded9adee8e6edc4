"""Pictures and videos that conversations name, as patches: records of `video` streams by key, or files by path.

An item of a conversation says which frames it shows: `seconds` of a video (the nearest frames, in that order), `frames` or
`fps` (evenly spaced), `second` of a video for a picture of it, else all that the budget allows. Times are those at which the
frames were shown, from the record or the container. Two more fields serve generated questions: `shown` gives other times in
their place, and `size` [height, width] another size; a `video` may be a list of cuts, {"video", "seconds"} each, one after
another.

Files are decoded in a worker process with a time limit (video/pool.py); only pictures, and frames chosen by their seconds, are
decoded in this process. Records keep the size at which they were made; a budget takes frames from them, never pixels.
"""

import base64
import hashlib
import io
import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from kvtools.artifact import kinds
from kvtools.artifact.files import open_seekable
from kvtools.artifact.open import open_stream
from kvtools.artifact.stream import Record
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt, Fault, reason_of
from kvtools.keye.data.frames import as_kind, nearest, of_pictures, resized, spliced, take, with_times
from kvtools.keye.model.inputs import Visual
from kvtools.video import decode, frame_index, patch, pictures
from kvtools.video.container import FramesMissing
from kvtools.video.inputs import IMAGE_SUFFIXES
from kvtools.video.pool import Pool
from kvtools.video.recipe import VideoRecipe
from kvtools.video.sample import FrameSampling, linspace_indices

Item = Mapping[str, Any]

_MAX_NAME = 80  # characters of a name in a message: the name may be a picture in base64
_MAX_FRAMES = 768  # of a file
_TIMEOUT_S = 60.0  # of decoding a file
_MAX_POOLS = 4  # idle workers that are kept, one for each way of choosing frames


class Unreadable(ValueError):
    """A picture or video that cannot be read: `name` as the conversation has it, and why."""

    def __init__(self, name: str, why: str) -> None:
        self.name, self.why = name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…", why
        super().__init__(f"{self.name}: {why}")


@contextmanager
def raising_unreadable(remedy: str) -> Iterator[None]:
    """Raise Unreadable as Corrupt, with a sentence that says what to do, where nothing can be done without that file."""
    try:
        yield
    except Unreadable as fault:
        raise Corrupt(f"{fault}. {remedy}") from None


class Media:
    """Where the pictures and videos of conversations are; use as a context manager, and `fetch` items.

    sources: `video` streams, of whose equal keys the first counts, and folders. roots: further folders. Relative paths are
    looked up in the folders in order, after the streams. budget: tokens of a video. image_tokens: fewest and most of a picture.
    fps: of files. cache_bytes: of decoded sources that are kept; what was used last is kept longest. Safe to use from many
    threads. Raises Missing and Corrupt for streams as Index does, and for streams of another kind.
    """

    def __init__(
        self, sources: Sequence[str] = (), *, roots: Sequence[str] = (), budget: patch.Budget | None = None,
        image_tokens: tuple[int, int] = (4, 16_384), fps: float = 2.0, cache_bytes: int = 1 << 30,
    ) -> None:  # fmt: skip
        self.folders = [src for src in sources if os.path.isdir(src)]
        self._roots = [*dict.fromkeys([*self.folders, *roots])]
        self._streams = [_open_stream(src) for src in sources if src not in self.folders]
        self.budget, self._fps, self._cache_bytes = budget or patch.Budget(), fps, cache_bytes
        self._image_pixels = tuple(n * patch.PIXELS_A_TOKEN for n in image_tokens)
        self._pools: OrderedDict[VideoRecipe, Pool] = OrderedDict()
        self._cache: OrderedDict[tuple[Any, ...], Visual] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        for pool in self._pools.values():
            pool.__exit__()
        self._pools.clear()

    @property
    def digest(self) -> str:
        """A digest of the streams' content, by which a resumed run knows that it is the same."""
        return hashlib.blake2b("".join(s.digest for s in self._streams).encode(), digest_size=8).hexdigest()

    def fetch(self, item: Item) -> Visual:
        """The patches of an item. Raises Unreadable, with the item's name, where it is missing, damaged, or over the budget."""
        kind = item["type"]
        source = item.get(kind)
        name = source if isinstance(source, str) else json.dumps(source, ensure_ascii=False)
        try:
            if kind == "video" and isinstance(source, list):
                visual = spliced([self._frames_of({"type": "video", **cut}) for cut in source])
            elif not isinstance(source, str):
                raise ValueError("the source is not a string, and a path or a key is needed")
            else:
                visual = self._frames_of(item)
            if "size" in item:
                visual = resized(visual, *item["size"])
            if "shown" in item:
                visual = with_times(visual, item["shown"])
            return visual if kind == "image" else self._within_budget(visual)
        except Unreadable:
            raise
        except (ValueError, KeyError, TypeError, IndexError, OSError, MemoryError, Fault) as error:
            raise Unreadable(name, reason_of(error).removeprefix(f"{name}: ")) from None

    def locate(self, name: str) -> Record | str:
        """The record of that key, else the path of the file or folder of that name.

        Raises ValueError where there is neither, Corrupt where the record is damaged.
        """
        stream = next((stream for stream in self._streams if name in stream), None)
        return self._find(name) if stream is None else stream.fetch(name)

    def file_of(self, item: Item) -> bytes:
        """The bytes of a picture's file, undecoded. Raises Unreadable where there is no file of it."""
        name = str(item[item["type"]])
        try:
            if name.startswith("data:"):
                return _decode_data_url(name).read()
            return Path(self._find(name)).read_bytes()
        except (ValueError, OSError) as error:
            raise Unreadable(name, reason_of(error).removeprefix(f"{name}: ")) from None

    def _frames_of(self, item: Item) -> Visual:
        """The frames that an item of one source asks for."""
        name = item[item["type"]]
        stream = next((stream for stream in self._streams if name in stream), None)
        if stream is not None:
            return _select(self._cached(("record", name), lambda: visual_of_record(stream.fetch(name))), item)
        if item["type"] == "image" and name.startswith("data:"):
            content = hashlib.blake2b(name.encode(), digest_size=16).digest()
            return self._cached(("base64", content), lambda: self._picture(_decode_data_url(name)))
        path = self._find(name)
        if item["type"] == "image" and "second" not in item:
            return self._cached(("picture", path), lambda: self._picture(path))
        seconds = item.get("seconds", [item["second"]] if "second" in item else None)
        if seconds is not None and os.path.isfile(path):
            return as_kind(item["type"], self._cached(("frames", path, *seconds), lambda: self._frames_at(path, seconds)))
        recipe = VideoRecipe(self._want(item), self.budget)
        whole = self._cached(("file", path, recipe), lambda: self._decoded(name, path, recipe))
        return whole if seconds is None else _select(whole, item)

    def _want(self, item: Item) -> FrameSampling:
        n_frames = item.get("frames")
        fps = float(item.get("fps", self._fps))
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps is {fps}, and must be a finite number above 0")
        if n_frames is not None and (type(n_frames) is not int or n_frames < 1):
            raise ValueError(f"frames is {n_frames!r}, and must be a whole number of 1 or more")
        return FrameSampling(fps, n_frames, max_frames=_MAX_FRAMES)

    def _within_budget(self, visual: Visual) -> Visual:
        n_frames, rows, cols = visual.grid.tolist()
        n_most = self.budget.max_tokens // (rows * cols // 4)
        if n_most == 0:
            raise ValueError(f"a frame costs {rows * cols // 4} tokens, and at most {self.budget.max_tokens} are allowed")
        return take(visual, linspace_indices(0, n_frames - 1, n_most)) if n_frames > n_most else visual

    def _find(self, name: str) -> str:
        if "://" in name or name.startswith("data:"):
            raise ValueError("web addresses and videos in base64 are not read; give a file, a key, or a picture in base64")
        for root in [""] if os.path.isabs(name) else [*self._roots, ""]:
            if os.path.exists(path := os.path.join(root, name)):
                return path
        where = ", ".join(dict.fromkeys(root or "the current folder" for root in self._roots or [""]))
        raise ValueError(f"no record of that key, and no such file in {where}")

    def _picture(self, source: str | BinaryIO) -> Visual:
        frame_HWC = pictures.read_picture(source, "it" if isinstance(source, str) else "the base64 picture")
        height, width = patch.smart_resize(*frame_HWC.shape[:2], *self._image_pixels)
        return of_pictures([frame_HWC], height, width, np.zeros(1), is_video=False)

    def _frames_at(self, path: str, seconds: Sequence[float]) -> Visual:
        if Path(path).suffix.lower() in IMAGE_SUFFIXES:
            raise ValueError("this is a picture, and a video is needed")
        try:
            return self._read_at(path, seconds, by_decoding=False)
        except FramesMissing:
            return self._read_at(path, seconds, by_decoding=True)

    def _read_at(self, path: str, seconds: Sequence[float], *, by_decoding: bool) -> Visual:
        index = frame_index.open_index(path, by_decoding=by_decoding)
        indices = nearest(np.array([float(t * index.time_base) for t in index.times]), seconds)
        rising = sorted(set(indices))
        frames = dict(zip(rising, decode.read_pyav(path, index, rising, n_threads=1), strict=True))
        _, height, width = self.budget.fit(len(indices), *frames[indices[0]].shape[:2])
        times = np.array([index.seconds(frame) for frame in indices])
        return of_pictures([frames[frame] for frame in indices], height, width, times, is_video=True)

    def _decoded(self, name: str, path: str, recipe: VideoRecipe) -> Visual:
        with self._lock:
            if recipe not in self._pools:
                if len(self._pools) >= _MAX_POOLS:
                    self._pools.popitem(last=False)[1].__exit__()
                self._pools[recipe] = Pool(recipe, n_jobs=1, n_threads=1, timeout_s=_TIMEOUT_S)
            self._pools.move_to_end(recipe)
            (outcome,) = self._pools[recipe].run([(name, path)])
        if outcome.record is None:
            raise ValueError(outcome.fault)
        tensors, _ = outcome.decoded()
        return Visual(tensors["pixels"], tensors["grid"], tensors["seconds"], is_video=True)

    def _cached(self, key: tuple[Any, ...], read: Callable[[], Visual]) -> Visual:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        visual = read()
        with self._lock:
            if key not in self._cache and visual.pixels_P3HW.nbytes <= self._cache_bytes:
                self._cache[key] = visual
                self._n_bytes += visual.pixels_P3HW.nbytes
                while self._n_bytes > self._cache_bytes:
                    self._n_bytes -= self._cache.popitem(last=False)[1].pixels_P3HW.nbytes
        return visual


def _decode_data_url(url: str) -> BinaryIO:
    """The bytes of a `data:image/png;base64,…` URL, as OpenAI's messages have pictures."""
    head, _, text = url.partition(",")
    if not head.endswith(";base64"):
        raise ValueError("this data URL has no ;base64, and a picture in base64 is needed")
    return io.BytesIO(base64.b64decode(text, validate=True))


def _open_stream(src: str) -> Index:
    if src == "-":
        raise Corrupt("stdin: records of a pipe cannot be looked up by key. Write them to a file.")
    file = open_seekable(src)
    begin = file.tell()
    open_stream(src, "video", made_by="kvtools tokenize-video", file=file)
    file.seek(begin)
    return Index(file, src)


def visual_of_record(record: Record) -> Visual:
    """The patches that a `video` record holds. Raises ValueError where it is none."""
    kinds.check("video", "stream", record.tensors, record.fields)
    pixels, grid, seconds = (record.tensors[name] for name in ("pixels", "grid", "seconds"))
    if not len(pixels) or (grid[1:] % 2).any():
        raise ValueError(f"the grid is {grid.tolist()}, and its rows and columns must be even")
    return Visual(pixels, grid, seconds, is_video=True)


def _select(clip: Visual, item: Item) -> Visual:
    """The frames of a clip that an item asks for, by default all; at most as many as its `fps` allows."""
    n_frames = len(clip.seconds)
    if item["type"] == "image":
        return as_kind("image", take(clip, nearest(clip.seconds, [item.get("second", clip.seconds[0])])))
    if "seconds" in item:
        return take(clip, nearest(clip.seconds, item["seconds"]))
    n_wanted = item.get("frames", n_frames)
    if "frames" not in item and "fps" in item:
        span = float(clip.seconds[-1] - clip.seconds[0])
        n_wanted = min(n_frames, math.floor(float(item["fps"]) * span + 1e-6) + 1)
    if type(n_wanted) is not int or n_wanted < 1:
        raise ValueError(f"frames is {n_wanted!r}, and must be a whole number of 1 or more")
    return take(clip, linspace_indices(0, n_frames - 1, n_wanted)) if n_wanted < n_frames else clip
