"""Frames out of video files, each proved to be the one asked for, by PyAV or decord.

Frames are asked for by position in the clip's index (frame_index.py) and recognised by their presentation time, so that a
decoder that returns another frame is noticed. What nobody needs is not decoded: pictures that no other picture refers to, and
groups of pictures without a wanted frame, left out only where the bitstream itself says that nothing depends on them. Errors
that FFmpeg logs and conceals make the clip bad where they reach a wanted frame (damage.py).

Runs inside a worker process (pool.py): containers can hang or crash a decoder. Frames come upright (upright.py). Not here:
non-square pixels are left as stored, as the published pipelines do; audio; choosing frames.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kvtools.video.container import (
    Damaged,
    FramesMissing,
    VideoLog,
    decode_packet,
    open_container,
    read_packets,
    video_stream,
)
from kvtools.video.damage import CORRUPT, DamageTrail
from kvtools.video.frame_index import FrameIndex, Tick, no_tick
from kvtools.video.nal import LEADING, REFERENCE, START
from kvtools.video.upright import Upright


def read_pyav(
    path: str, index: FrameIndex, positions: Sequence[int], *, n_threads: int, tick: Tick = no_tick
) -> Iterator[np.ndarray]:
    """Upright RGB frames, uint8 (H, W, 3), at rising positions of the index, by PyAV; what no wanted frame
    needs is not decoded.

    tick: called for every packet. Raises FramesMissing where a frame did not come out, Damaged where one is not whole.
    """
    upright = Upright()
    for _, frame, fault in _judged(path, index, positions, n_threads, tick):
        if fault is not None:
            raise Damaged(f"it is damaged ({fault})")
        yield upright(frame)


def whole(
    path: str, index: FrameIndex, positions: Sequence[int], *, n_threads: int, tick: Tick = no_tick
) -> tuple[list[int], list[str]]:
    """Of rising positions, those whose frame is whole, and what is wrong with each of the others."""
    judged = [(position, fault) for position, _, fault in _judged(path, index, positions, n_threads, tick)]
    return [position for position, fault in judged if fault is None], [fault for _, fault in judged if fault is not None]


def _judged(
    path: str, index: FrameIndex, positions: Sequence[int], n_threads: int, tick: Tick
) -> Iterator[tuple[int, Any, str | None]]:
    """Each position with its decoded frame, and why that is not whole; the frame is None where the fault kept it back."""
    with open_container(path) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = n_threads
        with VideoLog(container, stream) as log:
            if index.packets is None:
                faults: dict[int, str] = dict(index.damaged)
                frames: Iterator[tuple[int | None, Any]] = enumerate(_decode_all(container, stream, log, tick))
                wanted = list(positions)
            else:
                faults = {}  # grows as packets are decoded, and those of a frame before the frame comes out
                frames = _decode_needed(container, stream, log, index.packets, _needed(index, positions), faults, tick)
                wanted = [index.times[position] for position in positions]
            for position, (frame, fault) in zip(positions, _matched(frames, wanted, faults), strict=True):
                yield position, frame, fault


def _matched(
    frames: Iterator[tuple[int | None, Any]], wanted: Sequence[int], faults: Mapping[int, str]
) -> Iterator[tuple[Any, str | None]]:
    """The frame of each wanted name, and its fault. Raises FramesMissing where one that has no fault does not come."""
    n_given, last = 0, None

    def missing() -> tuple[None, str]:
        if wanted[n_given] not in faults:
            raise FramesMissing(f"{len(wanted) - n_given} of {len(wanted)} frames did not come out of the decoder")
        return None, faults[wanted[n_given]]

    for name, frame in frames:
        if name is None or (last is not None and name <= last):
            raise FramesMissing("the order of its frames is not that of their times")
        last = name
        while n_given < len(wanted) and wanted[n_given] < name:
            yield missing()
            n_given += 1
        if n_given < len(wanted) and wanted[n_given] == name:
            yield frame, faults.get(name, CORRUPT if frame.is_corrupt else None)
            n_given += 1
        if n_given == len(wanted):
            return
    while n_given < len(wanted):
        yield missing()
        n_given += 1


def read_decord(path: str, index: FrameIndex, positions: Sequence[int]) -> Iterator[np.ndarray]:
    """The same frames, uint8 (H, W, 3), by decord, for comparison and for files that newer FFmpeg may refuse.

    Its random access is used only where `is_seekable`, because it silently gives other frames in AVI and HEVC files; elsewhere
    it reads in order. Raises ValueError where its number of frames differs from the index.
    """
    import decord

    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        if len(reader) != len(index.times):
            raise ValueError(f"decord reads {len(reader)} frames, and the container has {len(index.times)}")
        wanted = set(positions)
        order = positions if index.is_seekable else range(positions[-1] + 1)
        for position in order:
            frame = reader[position] if index.is_seekable else reader.next()
            if position in wanted:
                yield _checked(frame.asnumpy(), index)
    except (decord.DECORDError, RuntimeError) as error:
        # each part of its message begins with the time and a place in its source
        text = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", str(error).strip().splitlines()[-1])
        raise ValueError(f"decord: {text.rstrip('.')}") from None


def _needed(index: FrameIndex, positions: Sequence[int]) -> bytearray:
    """1 for each packet, in decoding order, that must be decoded for these positions, 0 for the others."""
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
    is_needed = bytearray(len(index.packets))
    for number, (begin, _) in enumerate(groups):
        has_group_before = number > 0 and last_needed[number - 1] == begin - 1
        for i in range(begin, last_needed[number] + 1):
            time, flags = index.packets[i]
            if flags & LEADING and not has_group_before:
                continue
            is_needed[i] = time in wanted or bool(flags & REFERENCE)
    return is_needed


def _decode_needed(
    container: Any,
    stream: Any,
    log: VideoLog,
    packets: Sequence[tuple[int, int]],
    is_needed: bytearray,
    faults: dict[int, str],
    tick: Tick,
) -> Iterator[tuple[int | None, Any]]:
    """The frames that the needed packets give, each with its time; what is wrong with a frame is put into `faults` by its
    time."""
    trail, last = DamageTrail(), is_needed.rfind(1)
    for number, (packet, _) in enumerate(read_packets(container, stream, log)):
        if packet is None or number > last:
            break
        tick()
        time, flags = packets[number]
        frames, fault = decode_packet(stream.codec_context, packet, log) if is_needed[number] else ([], None)
        reaches = trail.step(time, flags, fault)
        if reaches is not None:
            faults[time] = reaches
        yield from ((frame.pts, frame) for frame in frames)
    yield from ((frame.pts, frame) for frame in decode_packet(stream.codec_context, None, log)[0])


def _decode_all(container: Any, stream: Any, log: VideoLog, tick: Tick) -> Iterator[Any]:
    for packet, _ in read_packets(container, stream, log):
        tick()
        yield from decode_packet(stream.codec_context, packet, log)[0]


def _checked(frame_HWC: np.ndarray, index: FrameIndex) -> np.ndarray:
    # decord gives rows of another length for pictures narrower than its alignment
    if sorted(frame_HWC.shape[:2]) != sorted((index.height, index.width)) or frame_HWC.shape[2] != 3:
        raise ValueError(f"decord gives a frame of shape {frame_HWC.shape}, and the video is {index.width}x{index.height}")
    return frame_HWC
