"""The index of a clip: the time of every frame, and what may be left undecoded.

The times come from the packets where they tell them, else from decoding everything once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from kvtools.video.container import DecoderFaults, open_container, video_stream
from kvtools.video.nal import REFERENCE, START, NalHeaders

_UNTIMED_FORMATS = {"avi"}  # keeps the order of decoding only; the presentation times that FFmpeg gives for it are guesses
_RANDOM_ACCESS_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a clip: a rising time of each, in units of time_base, and what may be left undecoded."""

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
        """The time of a frame in seconds."""
        return float(self.times[position] * self.time_base)


def open_index(path: str, *, by_decoding: bool = False) -> FrameIndex:
    """Index a video file. Raises ValueError with a reason where it has no video, or is damaged."""
    with open_container(path) as container:
        stream = video_stream(container)
        index = None if by_decoding else _index_packets(container, stream)
        if index is not None:
            return index
    with open_container(path) as container:
        return _index_frames(container, video_stream(container))


def _index_packets(container: Any, stream: Any) -> FrameIndex | None:
    """The index from the times of packets; None where they do not give the time of every frame, or the header no size."""
    if container.format.name in _UNTIMED_FORMATS:
        return None
    packets: list[tuple[int, int]] = []
    nal = NalHeaders(stream.codec_context)
    codec = stream.codec_context.name
    with DecoderFaults():
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.pts is None or packet.is_discard:
                return None
            packets.append((packet.pts, nal.flags(packet, codec)))
    by_time = sorted(packets)
    times = [time for time, _ in by_time]
    if any(a == b for a, b in pairwise(times)) or not stream.codec_context.width:
        return None
    if not times:
        raise ValueError("it has no frame")
    packets = nal.with_layers(packets)
    flags = dict(packets)
    keys = [i for i, time in enumerate(times) if flags[time] & START] or [0]
    references = [i for i, time in enumerate(times) if flags[time] & REFERENCE]
    n_key_packets = nal.n_key_packets
    return FrameIndex(
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


def _index_frames(container: Any, stream: Any) -> FrameIndex:
    """The index from decoding everything once, for containers that do not time their packets."""
    clocks: dict[str, list[int | None]] = {"pts": [], "dts": []}
    keys: list[int] = []
    with DecoderFaults():
        for position, frame in enumerate(container.decode(stream)):
            if frame.key_frame:
                keys.append(position)
            clocks["pts"].append(frame.pts)
            clocks["dts"].append(frame.dts)
    if not clocks["pts"]:
        raise ValueError("it has no frame")
    if container.format.name in _UNTIMED_FORMATS:
        del clocks["pts"]
    # without times, or with times that contradict the order, only the nominal rate is left
    nominal = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
    times, time_base = list(range(len(clocks["dts"]))), nominal
    for clock in clocks.values():
        known = _complete(clock)
        if known is not None and all(a < b for a, b in pairwise(known)):
            times, time_base = known, stream.time_base
            break
    context = stream.codec_context
    everything = range(len(times))
    return FrameIndex(
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
    """The clock with its end filled in, because the last frames out of a decoder may have no time; None if others lack it."""
    known = [time for time in clock if time is not None]
    if not known or None in clock[: len(known)]:
        return None
    step = known[-1] - known[-2] if len(known) > 1 else 1
    return known + [known[-1] + step * (i + 1) for i in range(len(clock) - len(known))]


def _duration(stream: Any, times: Sequence[int], time_base: Fraction | None = None) -> float:
    """Seconds from the first frame to one mean interval after the last."""
    base = time_base if time_base is not None else stream.time_base
    span = (times[-1] - times[0]) * base
    if len(times) > 1:
        return float(span * len(times) / (len(times) - 1))
    return float(stream.duration * stream.time_base) if stream.duration else float(1 / (stream.average_rate or 25))
