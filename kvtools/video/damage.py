"""Which frames a fault of the decoder reaches.

A fault is damage only where it touches a frame that is wanted: files that were cut without re-encoding begin with pictures that
nobody sees and no decoder can make.
"""

from kvtools.video.nal import KEY, REFERENCE

CORRUPT = "the decoder marks the picture as corrupt"


class DamageTrail:
    """Follows the packets of a stream in decoding order, each with its fault, if it has one.

    A fault reaches the frame of its own packet. Where other frames refer to that, it also reaches all that are decoded later,
    up to the next key frame, and the leading frames of that: they are shown before it and may refer to what is before it. What
    is wrong before the first key frame reaches nothing, since decoders show none of that.
    """

    def __init__(self) -> None:
        self._key_time: int | None = None
        self._has_key = False
        self._leading: str | None = None  # the fault that reaches the leading frames of the latest key frame
        self._trailing: str | None = None  # the fault that reaches the other frames since

    def step(self, time: int | None, flags: int, fault: str | None) -> str | None:
        """The fault that reaches the frame of the next packet. time: when it is shown; None where that is not known."""
        if flags & KEY:
            self._has_key = True
            self._leading, self._trailing, self._key_time = self._trailing, fault, time
            self._leading = self._leading or fault
            return fault
        if not self._has_key:
            return None
        is_leading = time is not None and self._key_time is not None and time < self._key_time
        earlier = self._leading if is_leading else self._trailing
        found = earlier or fault
        if flags & REFERENCE and is_leading:
            self._leading = found
        elif flags & REFERENCE:
            self._trailing = found
        return found
