"""Frames out of video files, each proved to be the one asked for: the only code that knows PyAV and decord.

Opening a clip indexes it: every presentation time, from the packets where they tell it, else from decoding once. Frames
are then asked for by position in that index and recognised by their presentation time, so a decoder that hands out
another frame cannot go unnoticed. What nobody needs is not decoded: pictures that no other picture refers to, and groups
of pictures without a wanted frame, left out only where the bitstream itself says that nothing depends on them. Errors
that FFmpeg logs and conceals make the clip bad.

Runs inside a worker process (pool.py): containers can hang or crash a decoder. Frames come upright (rotation metadata
applied). Not here: non-square pixels are left as stored, as the published pipelines do; audio; choosing frames.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import av
import av.logging
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kvtools.video.order import IMAGE_SUFFIXES, natural_order

START, LEADING, REFERENCE = 1, 2, 4  # what a packet is: a random access point; needs the group before; others need it

_INTRA_RESETS = {"vp8", "vp9", "mjpeg", "png", "rawvideo"}  # key frames after which nothing earlier is referred to
_UNTIMED_FORMATS = {"avi"}  # keeps the order of decoding only; the presentation times FFmpeg makes up for it are guesses
_RANDOM_ACCESS_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}


class FramesMissing(ValueError):
    """Frames asked for did not come out of the decoder; a slower way of asking may get them."""


@dataclass(frozen=True)
class Index:
    """What a clip holds: a rising time per frame, in units of time_base, and what may be left undecoded."""

    times: Sequence[int]
    time_base: Fraction
    width: int  # as stored; rotation may swap it with height
    height: int
    codec: str
    duration_s: float
    keys: Sequence[int]  # positions of frames that can be decoded alone
    references: Sequence[int]  # positions of frames that others refer to
    packets: Sequence[tuple[int, int]] | None = None  # (time, flags) in decoding order; None: frames count, times do not
    is_seekable: bool = False  # every key frame resets the decoder, and the container knows where they are

    def seconds(self, position: int) -> float:
        return float(self.times[position] * self.time_base)


def open_index(path: str, *, by_decoding: bool = False) -> Index:
    """Index a video file. Raises ValueError with a reason where it has no video, or is damaged."""
    with _open(path) as container:
        stream = _video_stream(container)
        index = None if by_decoding else _index_packets(container, stream)
        if index is not None:
            return index
    with _open(path) as container:
        return _index_frames(container, _video_stream(container))


def read_pyav(path: str, index: Index, positions: Sequence[int], *, n_threads: int, skip: bool = True) -> Iterator[np.ndarray]:
    """Upright RGB frames, uint8 (H, W, 3), at rising positions of the index, by PyAV.

    Raises FramesMissing where one did not come out, ValueError where FFmpeg found damage on the way.
    """
    with _open(path) as container, _FaultsInLog():
        stream = _video_stream(container)
        stream.codec_context.thread_count = n_threads
        if index.packets is None:
            frames: Any = enumerate(container.decode(stream))
            wanted = list(positions)
        else:
            feed = _needed(index, positions) if skip else None
            frames = ((frame.pts, frame) for frame in _decode_packets(container, stream, feed))
            wanted = [index.times[position] for position in positions]
        n_given, last = 0, None
        for name, frame in frames:
            if n_given == len(wanted):
                return
            if name is None or (last is not None and name <= last):
                raise FramesMissing("frames are shown in another order than their times tell")
            last = name
            if name == wanted[n_given]:
                yield _upright(frame)
                n_given += 1
        if n_given < len(wanted):
            raise FramesMissing(f"{len(wanted) - n_given} of {len(wanted)} frames did not come out of the decoder")


def read_decord(path: str, index: Index, positions: Sequence[int]) -> Iterator[np.ndarray]:
    """The same frames by decord, for comparison and for files FFmpeg's newer releases may refuse.

    Its random access is used only where the index says it can be believed (it gives other frames, silently, in AVI and
    HEVC files); elsewhere it reads in order. Raises ValueError where its frame count disagrees with the index.
    """
    import decord

    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        if len(reader) != len(index.times):
            raise ValueError(f"decord sees {len(reader)} frames, the container holds {len(index.times)}")
        wanted = set(positions)
        order = positions if index.is_seekable else range(positions[-1] + 1)
        for position in order:
            frame = reader[position] if index.is_seekable else reader.next()
            if position in wanted:
                yield _checked_shape(frame.asnumpy(), index)
    except (decord.DECORDError, RuntimeError) as error:
        raise ValueError(f"decord: {str(error).strip().splitlines()[-1]}") from None


def list_frames(directory: str) -> list[str]:
    """Paths of the pictures in a folder of frames, in the order of their names, numbers by value."""
    paths = [p for p in Path(directory).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    return [str(p) for p in sorted(paths, key=lambda p: natural_order(p.name))]


def open_frames(paths: Sequence[str], fps: float) -> Index:
    """Index a folder of frames taken `fps` times a second."""
    if not paths:
        raise ValueError("no picture in it; .jpg, .png, .webp or .bmp expected")
    with Image.open(paths[0]) as first:
        width, height = ImageOps.exif_transpose(first).size
    time_base = 1 / Fraction(fps).limit_denominator(1_000_000)
    everything = range(len(paths))
    return Index(everything, time_base, width, height, "pictures", float(len(paths) * time_base), everything, everything)


def read_frames(paths: Sequence[str], positions: Sequence[int]) -> Iterator[np.ndarray]:
    """Pictures as uint8 (H, W, 3), transparency laid on white."""
    for position in positions:
        yield read_picture(paths[position], Path(paths[position]).name)


def read_picture(source: str | BinaryIO, name: str) -> np.ndarray:
    """One picture as uint8 (H, W, 3), transparency laid on white. Raises ValueError, with the name, for what is none."""
    try:
        with Image.open(source) as image:
            picture = ImageOps.exif_transpose(image)
            if picture.has_transparency_data:
                rgba = picture.convert("RGBA")
                picture = Image.new("RGB", rgba.size, (255, 255, 255))
                picture.paste(rgba, mask=rgba.getchannel("A"))
            return np.asarray(picture.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"{name}: cannot identify it as a picture") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: {error}") from None


def _open(path: str) -> Any:
    # the log level stays at ERROR for the life of the worker: what FFmpeg logs there, it conceals from its callers
    av.logging.set_level(av.logging.ERROR)
    try:
        return av.open(path, metadata_errors="replace")
    except (FileNotFoundError, PermissionError):
        raise
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"not a readable video ({_reason(error)})") from None


def _video_stream(container: Any) -> Any:
    # the stream FFmpeg itself would choose: the largest picture, never a cover image where there is a film
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("no video stream in it")
    if stream.codec_context is None:
        raise ValueError("video of an unknown codec")
    return stream


class _FaultsInLog:
    """Turns FFmpeg's errors, raised or only logged, into ValueError; the first logged line says what began it."""

    def __enter__(self) -> None:
        self._capture = av.logging.Capture(local=False)  # decoder threads log too
        self._lines = self._capture.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._capture.__exit__(kind, error, trace)
        logged = [text.strip() for level, _, text in self._lines if level <= av.logging.ERROR]
        if isinstance(error, av.error.FFmpegError):
            raise ValueError(f"damaged ({logged[0] if logged else _reason(error)})") from None
        if logged and (kind is None or kind in (GeneratorExit, FramesMissing)):
            raise ValueError(f"damaged ({logged[0]})")


def _index_packets(container: Any, stream: Any) -> Index | None:
    """The index from packet times alone; None where they do not tell each frame's time."""
    if container.format.name in _UNTIMED_FORMATS:
        return None
    packets: list[tuple[int, int]] = []
    nal = _Nal(stream.codec_context)
    codec = stream.codec_context.name
    with _FaultsInLog():
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.pts is None or packet.is_discard:
                return None
            packets.append((packet.pts, nal.flags(packet, codec)))
    by_time = sorted(packets)
    times = [time for time, _ in by_time]
    if any(a == b for a, b in pairwise(times)):
        return None
    if not times:
        raise ValueError("no frame in it")
    packets = nal.settle(packets)
    flags = dict(packets)
    keys = [i for i, time in enumerate(times) if flags[time] & START] or [0]
    references = [i for i, time in enumerate(times) if flags[time] & REFERENCE]
    n_key_packets = nal.n_key_packets
    return Index(
        times,
        stream.time_base,
        stream.codec_context.width,
        stream.codec_context.height,
        codec,
        _duration(stream, times),
        keys,
        references or range(len(times)),
        packets,
        # decord seeks to what the container calls a key frame: right only if each of them is a true reset
        container.format.name in _RANDOM_ACCESS_FORMATS and codec != "hevc" and len(keys) == n_key_packets,
    )


def _index_frames(container: Any, stream: Any) -> Index:
    """The index from decoding everything once, for containers that do not time their packets."""
    clocks: dict[str, list[int | None]] = {"pts": [], "dts": []}
    keys: list[int] = []
    with _FaultsInLog():
        for position, frame in enumerate(container.decode(stream)):
            if frame.key_frame:
                keys.append(position)
            clocks["pts"].append(frame.pts)
            clocks["dts"].append(frame.dts)
    if not clocks["pts"]:
        raise ValueError("no frame in it")
    if container.format.name in _UNTIMED_FORMATS:
        del clocks["pts"]
    # no time at all, or times that contradict the order: then the nominal rate is all there is to go by
    nominal = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
    times, time_base = list(range(len(clocks["dts"]))), nominal
    for clock in clocks.values():
        known = _complete(clock)
        if known is not None and all(a < b for a, b in pairwise(known)):
            times, time_base = known, stream.time_base
            break
    context = stream.codec_context
    everything = range(len(times))
    return Index(
        times,
        time_base,
        context.width,
        context.height,
        context.name,
        _duration(stream, times, time_base),
        keys or [0],
        everything,
    )


def _complete(clock: Sequence[int | None]) -> list[int] | None:
    """The clock with its end filled in, since frames that leave the decoder last may carry no time; None if more lacks."""
    known = [time for time in clock if time is not None]
    if not known or None in clock[: len(known)]:
        return None
    step = known[-1] - known[-2] if len(known) > 1 else 1
    return known + [known[-1] + step * (i + 1) for i in range(len(clock) - len(known))]


def _duration(stream: Any, times: Sequence[int], time_base: Fraction | None = None) -> float:
    """Seconds from the first frame's appearance to the last one's end, one mean interval after it."""
    base = time_base if time_base is not None else stream.time_base
    span = (times[-1] - times[0]) * base
    if len(times) > 1:
        return float(span * len(times) / (len(times) - 1))
    return float(stream.duration * stream.time_base) if stream.duration else float(1 / (stream.average_rate or 25))


def _needed(index: Index, positions: Sequence[int]) -> bytearray:
    """Which packets, in decoding order, must be decoded for these positions: 1 for those."""
    assert index.packets is not None
    wanted = {index.times[position] for position in positions}
    starts = [i for i, (_, flags) in enumerate(index.packets) if flags & START]
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    groups = list(zip(starts, [*starts[1:], len(index.packets)], strict=True))
    last_needed = [max((i for i in range(a, b) if index.packets[i][0] in wanted), default=-1) for a, b in groups]
    for number, (begin, end) in enumerate(groups[1:], start=1):
        if any(index.packets[i][0] in wanted and index.packets[i][1] & LEADING for i in range(begin, end)):
            last_needed[number - 1] = starts[number] - 1
    feed = bytearray(len(index.packets))
    for number, (begin, _) in enumerate(groups):
        has_group_before = number > 0 and last_needed[number - 1] == begin - 1
        for i in range(begin, last_needed[number] + 1):
            time, flags = index.packets[i]
            if flags & LEADING and not has_group_before:
                continue
            feed[i] = time in wanted or bool(flags & REFERENCE)
    return feed


def _decode_packets(container: Any, stream: Any, feed: bytearray | None) -> Iterator[Any]:
    number = -1
    last = len(feed) if feed is None else feed.rfind(1)  # type: ignore[arg-type]
    for packet in container.demux(stream):
        if packet.size == 0:
            break
        number += 1
        if feed is None or feed[number]:
            yield from stream.codec_context.decode(packet)
        if number == last:
            break
    yield from stream.codec_context.decode(None)


class _Nal:
    """What H.264 and H.265 packets say of themselves in their first slice's header (ITU-T H.264 7.4.1, H.265 7.4.2)."""

    def __init__(self, context: Any) -> None:
        extradata = bytes(context.extradata or b"")
        # avcC and hvcC begin with version 1 and tell how long the length before each NAL unit is; Annex B has start codes
        is_sized = (len(extradata) > 22 and extradata[0] == 1) or (len(extradata) > 6 and extradata[0] == 1)
        position = 4 if context.name == "h264" else 21
        self._length_bytes = (extradata[position] & 3) + 1 if is_sized and len(extradata) > position else 0
        self._layers: list[int] = []
        self.n_key_packets = 0

    def flags(self, packet: Any, codec: str) -> int:
        self.n_key_packets += packet.is_keyframe
        self._layers.append(0)
        if codec == "h264":
            return self._h264(packet)
        if codec == "hevc":
            return self._hevc(packet)
        return REFERENCE | (START if packet.is_keyframe and codec in _INTRA_RESETS else 0)

    def settle(self, packets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """H.265 pictures are free of references only within their temporal layer: below the highest, all are kept."""
        highest = max(self._layers, default=0)
        return [
            (time, flags | (REFERENCE if layer < highest else 0))
            for (time, flags), layer in zip(packets, self._layers, strict=True)
        ]

    def _h264(self, packet: Any) -> int:
        for first in self._first_bytes(packet):
            if first[0] & 31 in (1, 2, 5):
                return (REFERENCE if first[0] & 0x60 else 0) | (START if first[0] & 31 == 5 else 0)
        return REFERENCE

    def _hevc(self, packet: Any) -> int:
        for first in self._first_bytes(packet):
            kind = first[0] >> 1 & 63
            if kind < 32:
                self._layers[-1] = (first[1] & 7) - 1
                is_free = kind < 16 and kind % 2 == 0
                return (0 if is_free else REFERENCE) | (START if 16 <= kind <= 21 else 0) | (LEADING if kind in (8, 9) else 0)
        return REFERENCE

    def _first_bytes(self, packet: Any) -> Iterator[bytes]:
        """The first two bytes of each NAL unit."""
        data = memoryview(packet)
        at = 0
        if self._length_bytes:
            while at + self._length_bytes + 2 <= len(data):
                begin = at + self._length_bytes
                yield bytes(data[begin : begin + 2])
                at = begin + int.from_bytes(data[at:begin], "big")
            return
        stream = bytes(data)
        while (at := stream.find(b"\0\0\1", at)) >= 0 and at + 5 <= len(stream):
            yield stream[at + 3 : at + 5]
            at += 3


def _upright(frame: Any) -> np.ndarray:
    rgb: np.ndarray = frame.to_ndarray(format="rgb24")
    turns = frame.rotation / 90  # counter-clockwise; a broken display matrix gives nonsense, which is left alone
    if math.isfinite(turns) and turns == int(turns) and int(turns) % 4:
        return np.ascontiguousarray(np.rot90(rgb, int(turns)))
    return rgb


def _checked_shape(frame_HWC: np.ndarray, index: Index) -> np.ndarray:
    # decord hands out rows of another length for pictures narrower than its alignment
    if sorted(frame_HWC.shape[:2]) != sorted((index.height, index.width)) or frame_HWC.shape[2] != 3:
        raise ValueError(f"decord gives a picture of shape {frame_HWC.shape}, {index.width}x{index.height} expected")
    return frame_HWC


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).lower()
