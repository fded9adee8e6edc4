"""The bytes of one part of a stream, HEAD to END (layout in stream.py): its head, its records, and what its end must say.

Every fault raises Torn with the record's number in the whole stream. Not here: parts one after the other (stream.py), random
access (stream_index.py).
"""

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from zlib_ng.zlib_ng import crc32

from kvtools import __version__
from kvtools.artifact import blob, zstd_frame
from kvtools.artifact.json_text import read_json

_TAG = b"kvs1"
MARK_BODY = struct.Struct("<QQQI")
MARK_PREFIX = zstd_frame.skippable(zstd_frame.MARK, bytes(MARK_BODY.size + 4))[: zstd_frame.PREFIX_BYTES]
_MAX_HEAD_BYTES = 16 << 20


@dataclass(frozen=True)
class Head:
    """The head of a stream: the kind of its records, the commands that led to it, and the recipe it was made with."""

    kind: str
    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    schema: int = 1

    def encode(self) -> bytes:
        """The HEAD frame."""
        payload = _TAG + blob.canonical(vars(self))
        return zstd_frame.skippable(zstd_frame.HEAD, payload + checksum(payload))


@dataclass(frozen=True)
class Record:
    """One record of a stream."""

    number: int  # in the whole stream, from 0
    key: str
    tensors: dict[str, np.ndarray]  # views of raw
    fields: dict[str, Any]  # the JSON of its `kvtools` key
    raw: memoryview  # the safetensors blob


class Torn(ValueError):
    """A fault in the bytes of a part; the message has the number of the record, and ends with what to do."""

    def __init__(self, fault: str, remedy: str = "Make it again.") -> None:
        super().__init__(f"{fault}. {remedy}")


class Part:
    """One HEAD … END of a stream, read forwards."""

    def __init__(self, file: BinaryIO, first: int, *, head: Head | None = None, is_partial: bool = False) -> None:
        """file: buffered, at a head, or at a record where head is given. first: number of its first record in the whole stream.
        is_partial: the file of a stopped run, of which the records may be followed by anything."""
        self._file = file
        self._first = first
        self._is_partial = is_partial
        self.index = PartIndex()
        self.head = head if head is not None else self._read_head()

    def records(self) -> Iterator[Record]:
        """The records in order; after the last, KEYS and END have been checked against them."""
        number = 0
        while True:
            magic = self._read_magic(number)
            if magic == zstd_frame.MARK:
                record, _ = self._read_record(number)
                number += 1
                yield record
            elif magic == zstd_frame.KEYS and not self._is_partial:
                self._read_keys(number)
                self._read_end(number, self._read_magic(number))
                return
            elif magic == zstd_frame.SEEK and not self._is_partial:
                self._read_end(number, magic)
                return
            else:
                raise Torn(f"{self._after(number)}: unknown frame 0x{magic:08X}")

    def one_record(self, number: int) -> tuple[Record, int]:
        """The next record, whose number in this part is given, and the crc32 of its stored bytes."""
        if self._read_magic(number) != zstd_frame.MARK:
            raise Torn(f"record {self._first + number}: the seek table points at something else")
        return self._read_record(number)

    def _read_head(self) -> Head:
        prefix = self._file.read(zstd_frame.PREFIX_BYTES)
        if not prefix:
            raise Torn("closed before any record arrived", "Look at the stage before this one.")
        n_bytes = int.from_bytes(prefix[4:], "little")
        if int.from_bytes(prefix[:4], "little") != zstd_frame.HEAD or len(prefix) != 8 or not 8 < n_bytes <= _MAX_HEAD_BYTES:
            raise Torn("this is not a kvtools stream: it has no head", "See kvtools convert for other files.")
        payload = self._file.read(n_bytes)
        if len(payload) != n_bytes or payload[-4:] != checksum(payload[:-4]):
            raise Torn("the head is cut short or damaged")
        # a head with the right crc32 is as it was written; what is wrong with it now is its version, not damage
        fields = _json_object(payload[4:-4])
        if payload[:4] != _TAG or fields.get("schema") != 1 or not isinstance(fields.get("kind"), str):
            raise Torn(
                f"the head has tag {payload[:4]!r} and schema {fields.get('schema')!r}, and kvtools {__version__} reads "
                f"{_TAG!r} and 1"
            )
        self.index.add_head(zstd_frame.PREFIX_BYTES + n_bytes)
        return Head(fields["kind"], fields.get("history", []), fields.get("config", {}))

    def _read_magic(self, number: int) -> int:
        magic = self._file.read(4)
        if len(magic) < 4:
            raise Torn(f"stream ends {self._after(number)} without its end mark; the producer died or the disk filled")
        return int.from_bytes(magic, "little")

    def _after(self, number: int) -> str:
        return f"after record {self._first + number - 1}" if self._first + number else "before its first record"

    def _read_record(self, number: int) -> tuple[Record, int]:
        where = f"record {self._first + number}"
        rest = self._file.read(len(MARK_PREFIX) - 4 + MARK_BODY.size + 4)
        if len(rest) != len(MARK_PREFIX) + MARK_BODY.size or rest[:4] != MARK_PREFIX[4:]:
            raise Torn(f"{where}: its mark is cut short or damaged")
        mark = rest[4:-4]
        found, n_stored, n_raw, raw_crc = MARK_BODY.unpack(mark)
        if rest[-4:] != checksum(mark) or not zstd_frame.is_plausible(n_stored, n_raw):
            raise Torn(f"{where}: its mark is damaged")
        if found != number:
            raise Torn(f"{where}: its mark has number {found} in place of {number}; records are lost or out of order")
        try:
            data, stored_crc = zstd_frame.read(self._file, n_stored, n_raw)
            raw = data.data
            if crc32(raw) != raw_crc:
                raise ValueError("the content differs from its crc32")
            tensors, fields = blob.decode(raw)
            if not isinstance(fields.get("key"), str):
                raise ValueError("it has no key")
        except EOFError:
            raise Torn(f"stream ends within {where}; the producer died or the disk filled") from None
        except ValueError as fault:
            raise Torn(f"{where}: {fault}") from None
        self.index.add_record(fields["key"], n_stored, n_raw, stored_crc)
        return Record(self._first + number, fields["key"], tensors, fields, raw), stored_crc

    def _read_keys(self, number: int) -> None:
        n_bytes = int.from_bytes(self._file.read(4), "little")
        expected = self.index.keys_frame()
        # the length is known from the records, so nothing is allocated by a length that may be damaged
        rest = (
            self._file.read(len(expected) - zstd_frame.PREFIX_BYTES)
            if n_bytes == len(expected) - zstd_frame.PREFIX_BYTES
            else b""
        )
        if rest != expected[zstd_frame.PREFIX_BYTES :]:
            raise Torn(self._difference(rest, number))
        self.index.add_keys()

    def _difference(self, rest: bytes, number: int) -> str:
        """Which record the key index disagrees with, or that its own crc32 fails."""
        try:
            crcs, _ = parse_keys(zstd_frame.skippable(zstd_frame.KEYS, rest))
        except Torn:
            return f"{self._after(number)}: the key index is cut short or damaged"
        changed = [i for i, (a, b) in enumerate(zip(crcs, self.index.crcs, strict=False)) if a != b]
        if changed:
            return f"record {self._first + changed[0]}: its stored bytes changed since they were written"
        return f"{self._after(number)}: the key index does not describe the records before it"

    def _read_end(self, number: int, magic: int) -> None:
        expected = zstd_frame.seek_table(self.index.sizes())[4:]
        if magic != zstd_frame.SEEK or self._file.read(len(expected)) != expected:
            raise Torn(f"the end mark {self._after(number)} is damaged, or does not describe the records before it")
        self.index.n_bytes += 4 + len(expected)


class PartIndex:
    """Keys, checksums and lengths of the frames of one part so far: what its KEYS and END are written from, or checked with."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.crcs = array("I")
        self.n_bytes = 0
        self._sizes = array("I")  # frame bytes, raw bytes, alternating

    def add_head(self, n_bytes: int) -> None:
        """Count a HEAD of n_bytes."""
        self._add(n_bytes, 0)

    def add_record(self, key: str, n_stored: int, n_raw: int, stored_crc: int) -> None:
        """Count a record: bytes of its stored frame and of its blob, and the crc32 of the former."""
        self._add(len(MARK_PREFIX) + MARK_BODY.size + 4, 0)
        self._add(n_stored, n_raw)
        self.keys.append(key)
        self.crcs.append(stored_crc)

    def drop_last(self) -> None:
        """Forget the last record."""
        self.n_bytes -= self._sizes[-2] + self._sizes[-4]
        del self._sizes[-4:], self.keys[-1], self.crcs[-1]

    def add_keys(self) -> None:
        """Count KEYS."""
        self._add(len(self.keys_frame()), 0)

    def keys_frame(self) -> bytes:
        """The KEYS frame of the records so far."""
        payload = _keys_payload(self.keys, self.crcs)
        return zstd_frame.skippable(zstd_frame.KEYS, payload + checksum(payload))

    def sizes(self) -> Iterator[tuple[int, int]]:
        """(frame bytes, raw bytes) of every frame so far."""
        return zip(self._sizes[0::2], self._sizes[1::2], strict=True)

    def _add(self, n_bytes: int, n_raw: int) -> None:
        self._sizes.extend((n_bytes, n_raw))
        self.n_bytes += n_bytes


def _keys_payload(keys: Sequence[str], crcs: Sequence[int]) -> bytes:
    """The count u64; crc32 of each record's stored frame u32 (count); then in sorted order of the keys' UTF-8 bytes:
    record number u64 (count), where each key ends u64 (count), the keys themselves."""
    names = [key.encode("utf-8") for key in keys]
    order = sorted(range(len(names)), key=lambda i: (names[i], i))
    ends = np.cumsum([len(names[i]) for i in order], dtype="<u8")
    return b"".join(
        [
            len(names).to_bytes(8, "little"),
            np.asarray(crcs, "<u4").tobytes(),
            np.asarray(order, "<u8").tobytes(),
            ends.tobytes(),
            *(names[i] for i in order),
        ]
    )


def parse_keys(keys_frame: bytes) -> tuple[list[int], list[tuple[str, int]]]:
    """The crc32 of every record in record order, and (key, record number) in key order. Raises Torn for damage."""
    payload, crc = keys_frame[zstd_frame.PREFIX_BYTES : -4], keys_frame[-4:]
    expected = zstd_frame.skippable(zstd_frame.KEYS, payload + crc)
    if keys_frame != expected or crc != checksum(payload):
        raise Torn("the key index is cut short or damaged")
    n = int.from_bytes(payload[:8], "little")
    crcs = np.frombuffer(payload, "<u4", n, 8)
    numbers = np.frombuffer(payload, "<u8", n, 8 + 4 * n)
    ends = np.frombuffer(payload, "<u8", n, 8 + 12 * n)
    names = payload[8 + 20 * n :]
    begins = [0, *ends[:-1].tolist()] if n else []
    keys = [names[begin:end].decode("utf-8") for begin, end in zip(begins, ends.tolist(), strict=True)]
    return crcs.tolist(), list(zip(keys, numbers.tolist(), strict=True))


def checksum(payload: bytes) -> bytes:
    """The crc32 of the payload, little-endian."""
    return crc32(payload).to_bytes(4, "little")


def _json_object(text: bytes) -> Mapping[str, Any]:
    try:
        value = read_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
