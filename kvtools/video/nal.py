"""What a decoder may leave out, from the packets themselves: random access points, and pictures that no other refers to."""

from collections.abc import Iterator, Sequence
from typing import Any

# flags of a packet: nothing after it needs what is before it; needs the group before; others need it; a key frame of the
# container; decoded and not shown, because the file was cut without re-encoding
START, LEADING, REFERENCE, KEY, HIDDEN = 1, 2, 4, 8, 16

_INTRA_RESETS = {
    "vp8",
    "vp9",
    "mjpeg",
    "png",
    "rawvideo",
}  # codecs in which nothing after a key frame refers to what is before it


class NalHeaders:
    """Flags of packets, for H.264 and H.265 from the header of their first slice (ITU-T H.264 7.4.1, H.265 7.4.2).

    n_key_packets: packets so far that the container calls key frames.
    """

    def __init__(self, context: Any) -> None:
        extradata = bytes(context.extradata or b"")
        # avcC and hvcC begin with version 1 and hold the width of the length before each NAL unit; Annex B has start codes
        is_sized = (len(extradata) > 22 and extradata[0] == 1) or (len(extradata) > 6 and extradata[0] == 1)
        position = 4 if context.name == "h264" else 21
        self._length_bytes = (extradata[position] & 3) + 1 if is_sized and len(extradata) > position else 0
        self._layers: list[int] = []
        self.n_key_packets = 0

    def flags(self, packet: Any, codec: str) -> int:
        """The flags of the next packet."""
        self.n_key_packets += packet.is_keyframe
        self._layers.append(0)
        shown = (KEY if packet.is_keyframe else 0) | (HIDDEN if packet.is_discard else 0)
        return shown | self._references(packet, codec)

    def _references(self, packet: Any, codec: str) -> int:
        if codec == "h264":
            return self._h264(packet)
        if codec == "hevc":
            return self._hevc(packet)
        return REFERENCE | (START if packet.is_keyframe and codec in _INTRA_RESETS else 0)

    def settled(self, packets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """(time, flags) of all packets, with what only all of them tell.

        REFERENCE is added below the highest temporal layer of H.265: only in their own layer are pictures without references
        free. The leading pictures of the first group have nothing to refer to and are hidden. The first packet is a key frame
        where the container names none.
        """
        highest = max(self._layers, default=0)
        starts = [number for number, (_, flags) in enumerate(packets) if flags & START][:2]
        first_group = range(starts[0], [*starts, len(packets)][1]) if starts else range(0)
        has_keys = self.n_key_packets > 0
        return [
            (
                time,
                flags
                | (REFERENCE if layer < highest else 0)
                | (HIDDEN if flags & LEADING and number in first_group else 0)
                | (0 if has_keys or number else KEY),
            )
            for number, ((time, flags), layer) in enumerate(zip(packets, self._layers, strict=True))
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
