"""Pictures and videos that conversations name, as patches: records of `video` streams by key, or files by path.

An item of a conversation says which frames: `seconds` of a video (the nearest frames, in that order), `frames` or `fps`
(evenly), `second` of a video for a picture of it, else all that the budget allows. Times are those at which the frames were
shown, from the record or the container. Two more words serve self-made questions: `shown` tells other times in their place,
and `size` [height, width] another size; a `video` may be a list of cuts, {"video", "seconds"} each, shown one after another.

Files are decoded in a worker process with a time limit (video/pool.py); only frames asked for by their seconds are decoded in
this one, and pictures. Records come at the size at which they were made; a budget takes frames from them, never pixels.
"""

import base64
import hashlib
import io
import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from kvtools.artifact import blob, kinds
from kvtools.artifact.files import open_source
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt, Fault
from kvtools.keye.data.frames import as_kind, nearest, of_pictures, resized, shown, spliced, take
from kvtools.keye.model.inputs import Visual
from kvtools.video import decode, patch
from kvtools.video.order import IMAGE_SUFFIXES
from kvtools.video.pool import Pool
from kvtools.video.recipe import Recipe
from kvtools.video.sample import Want, linspace_indices

Item = Mapping[str, Any]

_NAMED = 80  # characters of a name that are told: it may be a picture written out
_POOLS = 4  # workers kept waiting, one for each way of choosing frames


class Unreadable(ValueError):
    """A picture or video that cannot be shown: `name` as the conversation has it, and why."""

    def __init__(self, name: str, why: str) -> None:
        self.name, self.why = name if len(name) <= _NAMED else f"{name[:_NAMED]}…", why
        super().__init__(f"{self.name}: {why}")


class Media:
    """Where the pictures and videos of conversations are; use as a context manager, and `fetch` items.

    roots: folders in which relative paths are looked for, in order. streams: paths of `video` streams, looked in before the
    folders; of equal keys the first counts. budget: of a video. image_tokens: fewest and most of a picture. fps, max_frames:
    of files. cache_bytes: of sources kept decoded; what was used last is kept longest. Safe to use from many threads.
    """

    def __init__(
        self,
        roots: Sequence[str] = (),
        streams: Sequence[str] = (),
        *,
        budget: patch.Budget | None = None,
        image_tokens: tuple[int, int] = (4, 16_384),
        fps: float = 2.0,
        max_frames: int = 768,
        cache_bytes: int = 1 << 30,
        timeout_s: float = 60.0,
    ) -> None:
        self.roots = [*roots]
        self.budget = budget or patch.Budget()
        self._image_pixels = tuple(n * patch.PIXELS_A_TOKEN for n in image_tokens)
        self._fps, self._max_frames, self._timeout_s = fps, max_frames, timeout_s
        self._streams = [_open_stream(src) for src in streams]
        self._pools: OrderedDict[Recipe, Pool] = OrderedDict()
        self._kept: OrderedDict[tuple[Any, ...], Visual] = OrderedDict()
        self._cache_bytes, self._n_bytes = cache_bytes, 0
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for pool in self._pools.values():
            pool.__exit__()
        self._pools.clear()

    @property
    def digest(self) -> str:
        """A digest of the streams' content, for a run that must find the same when it is taken up again."""
        return hashlib.blake2b("".join(s.digest for s in self._streams).encode(), digest_size=8).hexdigest()

    def fetch(self, item: Item) -> Visual:
        """What an item shows. Raises Unreadable, with the item's name, where it is not there, damaged, or fits no budget."""
        kind = item["type"]
        source = item.get(kind)
        name = source if isinstance(source, str) else json.dumps(source, ensure_ascii=False)
        try:
            if kind == "video" and isinstance(source, list):
                cuts = [self._cut({"type": "video", **cut}) for cut in source]
                visual = spliced(cuts)
            elif not isinstance(source, str):
                raise ValueError("a path or a key expected")
            else:
                visual = self._cut(item)
            if "size" in item:
                visual = resized(visual, *item["size"])
            if "shown" in item:
                visual = shown(visual, item["shown"])
            return visual if kind == "image" else self._within_budget(visual)
        except Unreadable:
            raise
        except (ValueError, KeyError, TypeError, IndexError, OSError, MemoryError, Fault) as error:
            raise Unreadable(name, _why(error, name)) from None

    def _cut(self, item: Item) -> Visual:
        """The frames that an item of one source asks for."""
        name = item[item["type"]]
        stream = next((s for s in self._streams if name in s), None)
        if stream is not None:
            whole = self._keep(("record", name), lambda: _of_record(stream, name))
            return _of_frames(whole, item)
        if item["type"] == "image" and name.startswith("data:"):
            content = hashlib.blake2b(name.encode(), digest_size=16).digest()
            return self._keep(("written out", content), lambda: self._picture(_written_out(name)))
        path = self._find(name)
        if item["type"] == "image" and "second" not in item:
            return self._keep(("picture", path), lambda: self._picture(path))
        wanted = item.get("seconds", [item["second"]] if "second" in item else None)
        if wanted is not None and os.path.isfile(path):
            exact = ("frames", path, *wanted)
            return as_kind(item["type"], self._keep(exact, lambda: self._frames_at(path, wanted)))
        recipe = Recipe(self._want(item), self.budget)
        whole = self._keep(("file", path, recipe), lambda: self._decoded(name, path, recipe))
        return whole if wanted is None else _of_frames(whole, item)

    def _want(self, item: Item) -> Want:
        n_frames = item.get("frames")
        fps = float(item.get("fps", self._fps))
        if not (math.isfinite(fps) and fps > 0) or not (n_frames is None or (type(n_frames) is int and n_frames > 0)):
            raise ValueError(f"fps {fps} and frames {n_frames} found, more than 0 expected")
        return Want(fps, n_frames, max_frames=self._max_frames)

    def _within_budget(self, visual: Visual) -> Visual:
        n_frames, rows, cols = visual.grid.tolist()
        n_most = self.budget.max_tokens // (rows * cols // 4)
        if n_most == 0:
            raise ValueError(f"a frame costs {rows * cols // 4} tokens; {self.budget.max_tokens} allowed")
        return take(visual, linspace_indices(0, n_frames - 1, n_most)) if n_frames > n_most else visual

    def _find(self, name: str) -> str:
        if "://" in name or name.startswith("data:"):
            raise ValueError("an address found, a file, the key of a record, or a picture written out in base64 expected")
        for root in [""] if os.path.isabs(name) else [*self.roots, ""]:
            if os.path.exists(path := os.path.join(root, name)):
                return path
        where = ", ".join(dict.fromkeys(root or "the current folder" for root in self.roots or [""]))
        raise ValueError(f"no record of that key, and no such file in {where}")

    def _picture(self, source: str | BinaryIO) -> Visual:
        frame_HWC = decode.read_picture(source, Path(source).name if isinstance(source, str) else "the picture written out")
        height, width = patch.smart_resize(*frame_HWC.shape[:2], *self._image_pixels)
        return of_pictures([frame_HWC], height, width, np.zeros(1), is_video=False)

    def _frames_at(self, path: str, seconds: Sequence[float]) -> Visual:
        if Path(path).suffix.lower() in IMAGE_SUFFIXES:
            raise ValueError("a picture found, a video expected")
        try:
            return self._read_at(path, seconds, by_decoding=False)
        except decode.FramesMissing:
            return self._read_at(path, seconds, by_decoding=True)

    def _read_at(self, path: str, seconds: Sequence[float], *, by_decoding: bool) -> Visual:
        index = decode.open_index(path, by_decoding=by_decoding)
        places = nearest(np.array([float(t * index.time_base) for t in index.times]), seconds)
        rising = sorted(set(places))
        frames = dict(zip(rising, decode.read_pyav(path, index, rising, n_threads=1), strict=True))
        first = frames[places[0]]
        _, height, width = self.budget.fit(len(places), *first.shape[:2])
        times = np.array([index.seconds(position) for position in places])
        return of_pictures([frames[position] for position in places], height, width, times, is_video=True)

    def _decoded(self, name: str, path: str, recipe: Recipe) -> Visual:
        with self._lock:
            if recipe not in self._pools:
                if len(self._pools) >= _POOLS:
                    self._pools.popitem(last=False)[1].__exit__()
                self._pools[recipe] = Pool(recipe, n_jobs=1, n_threads=1, timeout_s=self._timeout_s)
            self._pools.move_to_end(recipe)
            (outcome,) = self._pools[recipe].run([(name, path)])
        if outcome.record is None:
            raise ValueError(outcome.fault)
        with outcome.record as record:
            tensors, _ = blob.decode(bytearray(b"".join(record)))
        return Visual(tensors["pixels"], tensors["grid"], tensors["seconds"], is_video=True)

    def _keep(self, key: tuple[Any, ...], make: Callable[[], Visual]) -> Visual:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        visual = make()
        with self._lock:
            if key not in self._kept and visual.pixels_P3HW.nbytes <= self._cache_bytes:
                self._kept[key] = visual
                self._n_bytes += visual.pixels_P3HW.nbytes
                while self._n_bytes > self._cache_bytes:
                    self._n_bytes -= self._kept.popitem(last=False)[1].pixels_P3HW.nbytes
        return visual


def _written_out(address: str) -> BinaryIO:
    """The bytes of a `data:image/png;base64,…`, as OpenAI's messages have pictures."""
    head, _, text = address.partition(",")
    if not head.endswith(";base64"):
        raise ValueError("data without ;base64 found, a picture written out in base64 expected")
    return io.BytesIO(base64.b64decode(text, validate=True))


def _open_stream(src: str) -> Index:
    if src == "-":
        raise Corrupt("stdin: a pipe cannot be looked into by key. Write the records to a file.")
    index = Index(open_source(src), src)
    kind = index.heads[0].kind
    if kind != "video":
        raise Corrupt(f"{src}: {kind} records found, video expected.")
    return index


def _of_record(stream: Index, key: str) -> Visual:
    record = stream.fetch(key)
    kinds.check("video", "stream", record.tensors, record.fields)
    tensors = record.tensors
    if not len(tensors["pixels"]) or (tensors["grid"][1:] % 2).any():
        raise ValueError(f"a grid of {tensors['grid'].tolist()} found, sides of two patches or a multiple expected")
    return Visual(tensors["pixels"], tensors["grid"], tensors["seconds"], is_video=True)


def _of_frames(whole: Visual, item: Item) -> Visual:
    """Those frames of a clip that an item asks for, all where it does not; `fps` is the most there may be."""
    n_found = len(whole.seconds)
    if item["type"] == "image":
        return as_kind("image", take(whole, nearest(whole.seconds, [item.get("second", whole.seconds[0])])))
    if "seconds" in item:
        return take(whole, nearest(whole.seconds, item["seconds"]))
    n_wanted = item.get("frames", n_found)
    if "frames" not in item and "fps" in item:
        span = float(whole.seconds[-1] - whole.seconds[0])
        n_wanted = min(n_found, math.floor(float(item["fps"]) * span + 1e-6) + 1)
    if type(n_wanted) is not int or n_wanted < 1:
        raise ValueError(f"frames {n_wanted!r} found, 1 at least expected")
    return take(whole, linspace_indices(0, n_found - 1, n_wanted)) if n_wanted < n_found else whole


def _why(error: BaseException, name: str) -> str:
    words = " ".join((str(getattr(error, "strerror", None) or error) or type(error).__name__).split()).rstrip(".")
    return words.removeprefix(f"{name}: ")
