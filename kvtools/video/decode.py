"""Frames out of video files, each proved to be the one asked for, by PyAV or decord.

Frames are asked for by position in the clip's index (frame_index.py) and recognised by their presentation time, so that a
decoder that returns another frame is noticed. What nobody needs is not decoded: pictures that no other picture refers to, and
groups of pictures without a wanted frame, left out only where the bitstream itself says that nothing depends on them. Errors
that FFmpeg logs and conceals make the clip bad.

Runs inside a worker process (pool.py): containers can hang or crash a decoder. Frames come upright (rotation metadata
applied). Not here: non-square pixels are left as stored, as the published pipelines do; audio; choosing frames.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kvtools.video.container import DecoderFaults, FramesMissing, open_container, video_stream
from kvtools.video.frame_index import FrameIndex
from kvtools.video.nal import LEADING, REFERENCE, START


def read_pyav(path: str, index: FrameIndex, positions: Sequence[int], *, n_threads: int) -> Iterator[np.ndarray]:
    """Upright RGB frames, uint8 (H, W, 3), at rising positions of the index, by PyAV; what no wanted frame
    needs is not decoded.

    Raises FramesMissing where a frame did not come out, ValueError for damage.
    """
    with open_container(path) as container, DecoderFaults():
        stream = video_stream(container)
        stream.codec_context.thread_count = n_threads
        if index.packets is None:
            frames: Any = enumerate(container.decode(stream))
            wanted = list(positions)
        else:
            decoded = _decode_packets(container, stream, _needed(index, positions))
            frames = ((frame.pts, frame) for frame in decoded)
            wanted = [index.times[position] for position in positions]
        n_given, last = 0, None
        for name, frame in frames:
            if n_given == len(wanted):
                return
            if name is None or (last is not None and name <= last):
                raise FramesMissing("the order of its frames is not that of their times")
            last = name
            if name == wanted[n_given]:
                yield _upright(frame)
                n_given += 1
        if n_given < len(wanted):
            raise FramesMissing(f"{len(wanted) - n_given} of {len(wanted)} frames did not come out of the decoder")


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
        raise ValueError(f"decord: {str(error).strip().splitlines()[-1]}") from None


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


def _decode_packets(container: Any, stream: Any, is_needed: bytearray) -> Iterator[Any]:
    number, last = -1, is_needed.rfind(1)
    for packet in container.demux(stream):
        if packet.size == 0:
            break
        number += 1
        if is_needed[number]:
            yield from stream.codec_context.decode(packet)
        if number == last:
            break
    yield from stream.codec_context.decode(None)


def _upright(frame: Any) -> np.ndarray:
    rgb: np.ndarray = frame.to_ndarray(format="rgb24")
    turns = frame.rotation / 90  # counter-clockwise; a broken display matrix gives other numbers, which are ignored
    if math.isfinite(turns) and turns == int(turns) and int(turns) % 4:
        return np.ascontiguousarray(np.rot90(rgb, int(turns)))
    return rgb


def _checked(frame_HWC: np.ndarray, index: FrameIndex) -> np.ndarray:
    # decord gives rows of another length for pictures narrower than its alignment
    if sorted(frame_HWC.shape[:2]) != sorted((index.height, index.width)) or frame_HWC.shape[2] != 3:
        raise ValueError(f"decord gives a frame of shape {frame_HWC.shape}, and the video is {index.width}x{index.height}")
    return frame_HWC
