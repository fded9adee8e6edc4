"""The index of a clip: the time of every frame, what may be left undecoded, and where the file is damaged.

The times come from the packets where they tell them, else from decoding everything once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

from kvtools.video.container import VideoLog, decode_packet, open_container, read_packets, video_stream
from kvtools.video.damage import CORRUPT, DamageTrail
from kvtools.video.nal import HIDDEN, KEY, REFERENCE, START, NalHeaders

_UNTIMED_FORMATS = {"avi"}  # keeps the order of decoding only; the presentation times that FFmpeg gives for it are guesses
_RANDOM_ACCESS_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}

Tick = Callable[[], None]


def no_tick() -> None:
    """What is called as work proceeds, where nobody waits for it."""


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
    parser_fault: str | None = None  # what FFmpeg says of the pictures without decoding them, for decoders that say less
    gaps: Sequence[tuple[int | None, str]] = ()  # where the container is damaged: the latest time before, and what FFmpeg says
    damaged: Mapping[int, str] = field(default_factory=dict)  # positions whose frame is not whole, where packets is None

    def seconds(self, position: int) -> float:
        """The time of a frame in seconds."""
        return float(self.times[position] * self.time_base)


def open_index(path: str, *, by_decoding: bool = False, tick: Tick = no_tick) -> FrameIndex:
    """Index a video file. tick: called for every packet. Raises ValueError with a reason where it has no video."""
    with open_container(path) as container:
        stream = video_stream(container)
        index = None if by_decoding else _index_packets(container, stream, tick)
        if index is not None:
            return index
    with open_container(path) as container:
        return _index_frames(container, video_stream(container), tick)


def _index_packets(container: Any, stream: Any, tick: Tick) -> FrameIndex | None:
    """The index from the times of packets; None where they do not give the time of every frame, or the header no size."""
    if container.format.name in _UNTIMED_FORMATS:
        return None
    packets: list[tuple[int, int]] = []
    gaps: list[tuple[int | None, str]] = []
    nal = NalHeaders(stream.codec_context)
    codec = stream.codec_context.name
    latest, last_duration = None, 0
    with VideoLog(container, stream) as log:
        for packet, gap in read_packets(container, stream, log):
            tick()
            if gap is not None:
                gaps.append((latest, gap))
            if packet is None:
                break
            if packet.pts is None:
                return None
            packets.append((packet.pts, nal.flags(packet, codec)))
            if latest is None or packet.pts >= latest:
                latest, last_duration = packet.pts, packet.duration or 0
    packets = nal.settled(packets)
    times = sorted(time for time, flags in packets if not flags & HIDDEN)
    if any(a == b for a, b in pairwise(sorted(time for time, _ in packets))) or not stream.codec_context.width:
        return None
    if not times:
        raise ValueError(f"it is damaged ({gaps[0][1]})" if gaps else "it has no frame")
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
        _duration(container, stream, times, stream.time_base, last_duration),
        keys,
        references or range(len(times)),
        packets,
        # decord seeks to what the container calls a key frame: right only if each of them is a true reset
        container.format.name in _RANDOM_ACCESS_FORMATS
        and codec != "hevc"
        and len(keys) == n_key_packets
        and len(times) == len(packets),
        log.parser_fault,
        gaps,
    )


def _index_frames(container: Any, stream: Any, tick: Tick) -> FrameIndex:
    """The index from decoding everything once, for containers that do not time their packets."""
    context = stream.codec_context
    context.copy_opaque = True  # a frame brings the number of its packet
    is_untimed = container.format.name in _UNTIMED_FORMATS
    steps: list[tuple[int | None, int, str | None]] = []
    gaps: list[tuple[int | None, str]] = []
    frames: list[_Shown] = []
    with VideoLog(container, stream) as log:
        for packet, gap in read_packets(container, stream, log):
            tick()
            if gap is not None:
                gaps.append((len(frames) - 1 if frames else None, gap))
            if packet is not None:
                packet.opaque = len(steps)
            decoded, fault = decode_packet(context, packet, log)
            if packet is not None:
                steps.append((None if is_untimed else packet.pts, REFERENCE | (KEY if packet.is_keyframe else 0), fault))
            frames += [_Shown.of(frame) for frame in decoded]
    if not frames:
        faults = [text for _, text in gaps] + [fault for _, _, fault in steps if fault]
        raise ValueError(f"it is damaged ({faults[0]})" if faults else "it has no frame")
    # without times, or with times that contradict the order, only the nominal rate is left
    time_base = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
    times, last_duration = list(range(len(frames))), 1
    clocks = ([] if is_untimed else [[frame.pts for frame in frames]]) + [[frame.dts for frame in frames]]
    for clock in clocks:
        known = _complete(clock)
        if known is not None and all(a < b for a, b in pairwise(known)):
            times, time_base, last_duration = known, stream.time_base, frames[-1].duration
            break
    return FrameIndex(
        times,
        time_base,
        context.width,
        context.height,
        context.name,
        _duration(container, stream, times, time_base, last_duration),
        [position for position, frame in enumerate(frames) if frame.is_key] or [0],
        range(len(times)),
        gaps=[(None if position is None else times[position], text) for position, text in gaps],
        damaged=_damaged(frames, steps),
    )


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is kept of a frame that came out of the decoder."""

    packet: int | None
    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    is_corrupt: bool

    @staticmethod
    def of(frame: Any) -> "_Shown":
        return _Shown(frame.opaque, frame.pts, frame.dts, frame.duration or 0, frame.key_frame, frame.is_corrupt)


def _damaged(frames: Sequence[_Shown], steps: list[tuple[int | None, int, str | None]]) -> dict[int, str]:
    """The positions of frames that are not whole, each with the reason."""
    trail = DamageTrail()
    if steps and not any(flags & KEY for _, flags, _ in steps):
        steps[0] = (steps[0][0], steps[0][1] | KEY, steps[0][2])
    leading, before = _leading(steps, {frame.packet for frame in frames})
    reached = [
        trail.step(before if number in leading else time, flags, fault) for number, (time, flags, fault) in enumerate(steps)
    ]
    damaged = {}
    for position, frame in enumerate(frames):
        fault = None if frame.packet is None else reached[frame.packet]
        if fault or frame.is_corrupt:
            damaged[position] = fault or CORRUPT
    return damaged


def _leading(steps: Sequence[tuple[int | None, int, str | None]], shown: set[int | None]) -> tuple[range, int]:
    """Packets right after the first key frame that have no time and give no frame, and a time before the key frame.

    They are leading pictures that a cut left without their references: some muxers write no time for what is shown before 0.
    shown: packets that give a frame.
    """
    first = next((number for number, (_, flags, _) in enumerate(steps) if flags & KEY), 0)
    end = first + 1
    key_time = steps[first][0] if steps else None
    if key_time is None:
        return range(0), 0
    while end < len(steps) and steps[end][0] is None and end not in shown:
        end += 1
    return range(first + 1, end), key_time - 1


def _complete(clock: Sequence[int | None]) -> list[int] | None:
    """The clock with its end filled in, because the last frames out of a decoder may have no time; None if others lack it."""
    known = [time for time in clock if time is not None]
    if not known or None in clock[: len(known)]:
        return None
    step = known[-1] - known[-2] if len(known) > 1 else 1
    return known + [known[-1] + step * (i + 1) for i in range(len(clock) - len(known))]


def _duration(container: Any, stream: Any, times: Sequence[int], time_base: Fraction, last_duration: int) -> float:
    """Seconds from the first frame to the end of the last, which the last packet tells, or the stream, or the container.

    Where none does, the last frame is taken to last for the mean interval.
    """
    span = times[-1] - times[0]
    if last_duration > 0:
        return float((span + last_duration) * time_base)
    shown_s = float(span * time_base)
    for length, base, start in (
        (stream.duration, stream.time_base, stream.start_time),
        (container.duration, Fraction(1, 1_000_000), container.start_time),
    ):
        if length:
            end_s = float(((start or 0) + length) * base - times[0] * time_base)
            if end_s > shown_s:
                return end_s
    if len(times) > 1:
        return float(span * len(times) * time_base / (len(times) - 1))
    return float(1 / (stream.average_rate or 25))
