"""Pictures and videos that conversations name, as patches: records of `video` streams by key, or files by path.

An item of a conversation says which frames it shows: `seconds` of a video (the nearest frames, in that order), `frames` or
`fps` (evenly spaced), `second` of a video for a picture of it, else all that the budget allows; selection.py has all words.
Times are those at which the frames were shown, from the record or the container. Two more fields serve generated questions:
`shown` gives other times in their place, and `size` [height, width] another size. A `video` may be a list of pictures, its
frames, two a second unless `fps` or `seconds` say otherwise; or of cuts, {"video", "seconds"} each, one after another.

Files are decoded in a worker process with a time limit (video/pool.py); only pictures, and frames chosen by their seconds, are
decoded in this process. Records keep the size at which they were made unless words ask for another; a budget takes frames from
them, or pixels where the item names its frames.
"""

import base64
import filecmp
import hashlib
import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from kvtools.artifact import kinds
from kvtools.artifact.equal_keys import refuse_different
from kvtools.artifact.files import open_seekable
from kvtools.artifact.open import open_stream
from kvtools.artifact.stream import Record
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt, Fault, reason_of
from kvtools.keye.data.frames import as_kind, nearest, of_pictures, resized, size_of, spliced, with_times, within_tokens
from kvtools.keye.data.selection import (
    Item,
    at_size,
    budget_of,
    fixed_size,
    frame_indices,
    names_its_frames,
    picture_pixels,
    sampling_of,
    select,
)  # fmt: skip
from kvtools.keye.model.inputs import Visual
from kvtools.video import decode, frame_index, patch, pictures
from kvtools.video.container import FramesMissing
from kvtools.video.inputs import IMAGE_SUFFIXES, Clip
from kvtools.video.pool import Pool
from kvtools.video.recipe import VideoRecipe
from kvtools.video.sample import linspace_indices

_MAX_NAME = 80  # characters of a name in a message: the name may be a picture in base64
_LISTED_FPS = 2.0  # of frames in a list, as in keye-vl-utils
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

    sources: `video` streams, whose clips of equal keys must be equal, and folders. roots: further folders. Relative paths are
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
        refuse_different(self._streams)
        self.budget, self._fps, self._cache_bytes = budget or patch.Budget(), fps, cache_bytes
        self._image_pixels = image_tokens[0] * patch.PIXELS_A_TOKEN, image_tokens[1] * patch.PIXELS_A_TOKEN
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

    def fetch(self, item: Item, *, max_tokens: int | None = None) -> Visual:
        """The patches of an item. max_tokens: below what the budget gives it, for one that shares the room with others.

        Raises Unreadable, with the item's name, where it is missing, damaged, or over the budget.
        """
        source = item.get(item["type"])
        name = source if isinstance(source, str) else json.dumps(source, ensure_ascii=False)
        try:
            visual = self._source(item, source, max_tokens)
            if "size" in item:
                visual = resized(visual, *item["size"])
            if "shown" in item:
                visual = with_times(visual, item["shown"])
            if item["type"] == "video":
                visual = self._within_budget(visual, item)
            return visual if max_tokens is None else within_tokens(visual, max_tokens, is_whole=not names_its_frames(item))
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

    def _source(self, item: Item, source: Any, n_tokens: int | None) -> Visual:
        """The frames that an item asks for, of a source, of a list of frames, or of cuts."""
        if isinstance(source, str):
            return self._frames_of(item, source, n_tokens)
        if item["type"] != "video" or not isinstance(source, list):
            raise ValueError("the source is not a string, and a path or a key is needed")
        if source and all(isinstance(frame, str) for frame in source):
            return self._listed_frames(item, source, n_tokens)
        if not all(isinstance(cut, dict) for cut in source):
            raise ValueError("its list holds frames and cuts, and must hold one or the other")
        return spliced([self._frames_of({"type": "video", **cut}, cut["video"], n_tokens) for cut in source])

    def _frames_of(self, item: Item, name: str, n_tokens: int | None) -> Visual:
        """The frames that an item of one source asks for."""
        stream = next((stream for stream in self._streams if name in stream), None)
        if stream is not None:
            return at_size(select(self._cached(("record", name), lambda: visual_of_record(stream.fetch(name))), item), item)
        path = None if item["type"] == "image" and name.startswith("data:") else self._find(name)
        if item["type"] == "image" and "second" not in item:
            return self._picture(name if path is None else path, item, n_tokens)
        assert path is not None, "only pictures are written out"
        seconds = item.get("seconds", [item["second"]] if "second" in item else None)
        if seconds is not None and os.path.isfile(path):
            at_seconds = self._cached(("frames", path, *seconds), lambda: self._frames_at(path, seconds))
            return at_size(as_kind(item["type"], at_seconds), item)
        recipe = VideoRecipe(sampling_of(item, self._fps), budget_of(item, self.budget, n_tokens))
        whole = self._cached(("file", path, recipe), lambda: self._decoded(name, path, recipe))
        shown = whole if seconds is None else select(whole, item)
        return shown if fixed_size(item) is None else at_size(shown, item)

    def _listed_frames(self, item: Item, sources: Sequence[str], n_tokens: int | None) -> Visual:
        """The frames of a video that is a list of pictures, with their times."""
        times = np.array(item.get("seconds", np.arange(len(sources)) / sampling_of(item, _LISTED_FPS).fps), np.float64)
        if times.shape != (len(sources),) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise ValueError(f"seconds has {times.size} times for {len(sources)} frames, and needs one for each, never falling")
        indices = frame_indices(times, {name: value for name, value in item.items() if name not in ("seconds", "fps")})
        names = [source if source.startswith("data:") else self._find(source) for source in sources]
        first_HWC = _read_picture(names[indices[0]], None)
        n_frames, height, width = budget_of(item, self.budget, n_tokens).fit(len(indices), *first_HWC.shape[:2])
        height, width = fixed_size(item) or (height, width)
        if "seconds" not in item:
            indices = [indices[n] for n in linspace_indices(0, len(indices) - 1, n_frames)]
        frames = (_read_picture(names[index], height * width) for index in indices)
        return of_pictures(frames, height, width, times[indices], is_video=True)

    def _within_budget(self, visual: Visual, item: Item) -> Visual:
        height, width = size_of(visual)
        a_frame = height * width // patch.PIXELS_A_TOKEN
        if a_frame > self.budget.max_tokens:
            raise ValueError(f"a frame costs {a_frame} tokens, and at most {self.budget.max_tokens} are allowed")
        return within_tokens(visual, self.budget.max_tokens, is_whole=not names_its_frames(item))

    def _find(self, name: str) -> str:
        if "://" in name or name.startswith("data:"):
            raise ValueError("web addresses and videos in base64 are not read; give a file, a key, or a picture in base64")
        for root in [""] if os.path.isabs(name) else [*self._roots, ""]:
            if os.path.exists(path := os.path.join(root, name)):
                if root in self.folders:
                    _refuse_another(path, [os.path.join(folder, name) for folder in self.folders if folder != root])
                return path
        where = ", ".join(dict.fromkeys(root or "the current folder" for root in self._roots or [""]))
        raise ValueError(f"no record of that key, and no such file in {where}")

    def _picture(self, source: str, item: Item, n_tokens: int | None) -> Visual:
        """A picture of a path or a data: URL."""
        low, high = picture_pixels(item, self._image_pixels, n_tokens)
        name = hashlib.blake2b(source.encode(), digest_size=16).hexdigest() if source.startswith("data:") else source

        def read() -> Visual:
            frame_HWC = _read_picture(source, high)
            height, width = fixed_size(item) or patch.smart_resize(frame_HWC.shape[0], frame_HWC.shape[1], low, high)
            return of_pictures([frame_HWC], height, width, np.zeros(1), is_video=False)

        return self._cached(("picture", name, low, high, fixed_size(item)), read)

    def _frames_at(self, path: str, seconds: Sequence[float]) -> Visual:
        if Path(path).suffix.lower() in IMAGE_SUFFIXES:
            raise ValueError("this is a picture, and a video is needed")
        try:
            return self._read_at(path, seconds, by_decoding=False)
        except FramesMissing:
            return self._read_at(path, seconds, by_decoding=True)

    def _read_at(self, path: str, seconds: Sequence[float], *, by_decoding: bool) -> Visual:
        index = frame_index.open_index(path, by_decoding=by_decoding)
        if index.gaps:
            raise ValueError(f"it is damaged ({index.gaps[0][1]})")
        times = np.array([float(t * index.time_base) for t in index.times])
        indices = nearest(times, seconds, end_s=times[0] + index.duration_s)
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
            (outcome,) = self._pools[recipe].run([Clip(name, path)])
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


def _refuse_another(path: str, others: Sequence[str]) -> None:
    """Raise ValueError where another folder has a file of that name and other content."""
    for other in others:
        if os.path.isfile(path) and os.path.isfile(other) and not filecmp.cmp(path, other, shallow=False):
            raise ValueError(f"{path} and {other} differ; name it from a folder above both")


def _read_picture(source: str, n_pixels: int | None) -> np.ndarray:
    """The picture of a path or a data: URL, uint8 (H, W, 3). n_pixels: to which it will be reduced."""
    if source.startswith("data:"):
        return pictures.read_picture(_decode_data_url(source), "the base64 picture", n_pixels)
    return pictures.read_picture(source, "it", n_pixels)


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
