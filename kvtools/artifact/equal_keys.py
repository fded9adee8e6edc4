"""Records of equal keys: one record that comes twice is fine, two different ones are refused, with the names of both.

Only kinds whose records are looked up by key are held to this (kinds.py, `is_looked_up`): elsewhere keys may be mere counters.
What counts is what the tensors hold, not the JSON beside them, such as where a clip came from.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from zlib_ng.zlib_ng import crc32

from kvtools.artifact.blob import bytes_of
from kvtools.artifact.kinds import KINDS
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt


class KeysSoFar:
    """The keys of the records read so far, each with a checksum of its content."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, int]] = {}

    def add(self, where: str, key: str, tensors: Mapping[str, np.ndarray]) -> None:
        """Take in a record. where: it is, for messages. Raises Corrupt where another one has its key."""
        digest = _digest(tensors)
        other, known = self._found.setdefault(key, (where, digest))
        if known != digest:
            raise different(where, other, key)


def different(where: str, other: str, key: str) -> Corrupt:
    """The refusal of two records of one key."""
    return Corrupt(
        f"{where} and {other} are both named {key!r}, and differ. Leave one out, or join "
        "their streams with kvtools cat --prefix."
    )


def refuse_different(streams: Sequence[Index]) -> None:
    """Raise Corrupt where two records of these streams have one key and differ. Only records of equal keys are read."""
    first: dict[str, tuple[Index, int]] = {}
    for stream in streams:
        for key, number in stream.named:
            other, its = first.setdefault(key, (stream, number))
            if (other, its) == (stream, number) or other.stored(its) == stream.stored(number):
                continue
            if _digest(other.fetch(its).tensors) != _digest(stream.fetch(number).tensors):
                raise different(f"{stream.name}: record {number}", f"{other.name}: record {its}", key)


def is_looked_up(kind: str) -> bool:
    """Whether records of a kind are looked up by their keys."""
    return kind in KINDS and KINDS[kind].is_looked_up


def _digest(tensors: Mapping[str, np.ndarray]) -> int:
    crc = 0  # a checksum is enough, and costs less than reading the record: nobody forges clips against their own keys
    for name, array in sorted(tensors.items()):
        crc = crc32(bytes_of(array), crc32(f"{name} {array.dtype} {array.shape}".encode(), crc))
    return crc
