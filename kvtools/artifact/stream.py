"""A stream, `.kvs`: many records of one kind, in one order, that cannot be lost or changed without notice.

    HEAD  skippable 0x184D2A50  b"kvs1" + canonical JSON {kind, schema, history, config} + crc32
    REC*  MARK skippable 0x184D2A52: record number u64, stored length u64, raw length u64, crc32 of the raw bytes u32,
          crc32 of the mark itself u32; then one zstd frame around one safetensors blob (frame.py, blob.py)
    KEYS  skippable 0x184D2A51  see `_keys_payload`: sorted keys to record numbers, crc32 of each stored frame, crc32
    END   skippable 0x184D2A5E  the standard zstd seek table over all frames before it

All integers are little-endian. The invariant: a reader that reaches the end without an error has seen exactly the
records the writer closed over. A stream without END is refused always; after END only another HEAD or the end of the
file may come, so that `cat a.kvs b.kvs` is a stream. A crc32 of the stored bytes stands in KEYS because a compressed
frame has bits that no decoder looks at (padding of its entropy tables); all other bits are covered sooner.

Cost: the reader holds one record and 20 bytes for each record seen. Not here: files and pipes (files.py), meaning of
the tensors (kinds.py).
"""

import hashlib
import io
import json
import os
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
from zlib_ng.zlib_ng import crc32

from kvtools.artifact import blob, frame
from kvtools.artifact.files import Sink, Spool
from kvtools.errors import Corrupt, Missing, Usage

_T = TypeVar("_T")
_TAG = b"kvs1"
_MARK = struct.Struct("<QQQI")
_MARK_PREFIX = frame.skippable(frame.MARK, bytes(_MARK.size + 4))[: frame.PREFIX_BYTES]
_MAX_HEAD_BYTES = 16 << 20
_BATCH = 32  # buffers handed to the system at once: 2 MiB of blocks


@dataclass(frozen=True)
class Head:
    """What a stream says of itself before its first record."""

    kind: str
    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    schema: int = 1

    def encode(self) -> bytes:
        payload = _TAG + blob.canonical(vars(self))
        return frame.skippable(frame.HEAD, payload + _crc(payload))


@dataclass(frozen=True)
class Record:
    """One record: its place in the stream, its name, its tensors (views of one buffer), and its own JSON fields."""

    number: int
    key: str
    tensors: dict[str, np.ndarray]
    fields: dict[str, Any]
    raw: memoryview


class Writer:
    """Writes a stream to a Sink; use as a context manager. Leaving it normally writes KEYS and END; leaving it by an
    exception leaves the stream without END, which no reader accepts, and abandons the sink."""

    def __init__(self, sink: Sink, head: Head, *, level: int | None = None) -> None:
        self._sink = sink
        self._head = head
        self._level = (1 if sink.is_file else 0) if level is None else level
        self._ledger = _Ledger()
        self._begun = False

    @property
    def n_records(self) -> int:
        """Records in the stream so far, those of a resumed run included."""
        return len(self._ledger.keys)

    def resume(self, *, start_over: bool = False) -> set[str]:
        """Take up what an earlier run left in the sink: keys of the whole records found, which are kept.

        A partial file with another head (other options, other version) raises Usage, or is dropped if `start_over`.
        What follows the last whole record is cut off.
        """
        partial = self._sink.partial()
        if partial is None:
            return set()
        with partial:
            try:
                part = _Part(partial, 0, keep_going=True)
                if part.head != self._head and not start_over:
                    raise Usage(
                        f"{self._sink.dst}: an unfinished run with other options lies beside it. "
                        "Run again with the same options to resume it, or give --force to start over."
                    )
                if part.head == self._head:
                    self._ledger = part.ledger  # filled as the records go by
                    for _ in part.records():
                        pass
            except _Torn:
                pass  # the first byte that is not of a whole record is where the earlier run was stopped
        self._sink.resume_at(self._ledger.n_bytes)
        self._begun = self._ledger.n_bytes > 0
        return set(self._ledger.keys)

    def write(self, key: str, tensors: blob.Tensors, **fields: Any) -> None:
        """Append a record named `key`. Contiguous tensors reach the pipe without being copied."""
        self.write_pieces(key, blob.encode(tensors, {"kind": self._head.kind, "key": key, **fields}))

    def write_pieces(self, key: str, pieces: Iterable[memoryview]) -> None:
        """Append a record already encoded (blob.encode, Spool), whose fields name it `key`; pieces are gone through
        twice. Raises ValueError where they exceed a record's limit."""
        n_raw = raw_crc = 0
        for piece in pieces:
            n_raw, raw_crc = n_raw + len(piece), crc32(piece, raw_crc)
        if not 0 < n_raw <= frame.MAX_RAW_BYTES:
            raise ValueError(f"{key}: a record of {n_raw} bytes found, at most {frame.MAX_RAW_BYTES} expected")
        with Spool() as compressed:
            if self._level == 0:
                buffers, n_stored = frame.store(pieces, n_raw), frame.stored_length(n_raw)
            else:
                for part in frame.compress(pieces, n_raw, self._level):
                    compressed.append(part)
                buffers, n_stored = iter(compressed), len(compressed)
            self._begin()
            mark = _MARK.pack(self.n_records, n_stored, n_raw, raw_crc)
            self._sink.write([_MARK_PREFIX + mark + _crc(mark)])
            stored_crc = 0
            while batch := list(islice(buffers, _BATCH)):
                for buffer in batch:
                    stored_crc = crc32(buffer, stored_crc)
                self._sink.write(batch)
        self._ledger.add_record(key, n_stored, n_raw, stored_crc)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is not None:
            self._sink.abandon()
            return
        try:
            self._begin()
            self._sink.write([self._ledger.keys_frame()])
            self._ledger.add_keys()
            self._sink.write([frame.seek_table(self._ledger.sizes())])
        except BaseException:
            self._sink.abandon()
            raise
        self._sink.commit()

    def _begin(self) -> None:
        # the head waits for the first record: a stage that fails at once sends nothing, and the next one says so
        if not self._begun:
            head = self._head.encode()
            self._sink.write([head])
            self._ledger.add_head(len(head))
            self._begun = True


class Reader:
    """Reads a stream from its beginning, pipe or file; iterate for the records. Every fault raises Corrupt."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._part = self._refused(_Part, file, 0)
        self.head = self._part.head
        self.heads = [self.head]
        self.n_bytes = 0

    def __iter__(self) -> Iterator[Record]:
        number = 0
        while True:
            records = self._part.records()
            while (record := self._refused(next, records, None)) is not None:
                yield record
                number += 1
            self.n_bytes += self._part.ledger.n_bytes
            if not self._file.peek(1):  # type: ignore[attr-defined]
                return
            self._part = self._refused(_Part, self._file, number)
            if self._part.head.kind != self.head.kind:
                raise Corrupt(
                    f"{self._name}: {self._part.head.kind} records follow {self.head.kind} records; one kind expected."
                )
            self.heads.append(self._part.head)

    def _refused(self, read: Callable[..., _T], *arguments: Any) -> _T:
        try:
            return read(*arguments)
        except _Torn as fault:
            raise Corrupt(f"{self._name}: {fault}") from None


class Index:
    """Random access to a stream in a seekable file, by record number or key; safe to use from many threads.

    Reads KEYS and END only, each record where a part has no KEYS; a record is verified when it is fetched. Raises
    Corrupt where they disagree.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file  # kept open as long as the index is
        self._fd = file.fileno()
        self._name = name
        self._places: list[tuple[int, int, int, int | None]] = []  # mark offset, number in its part, stored length, crc32
        self._numbers: dict[str, int] = {}
        self.heads: list[Head] = []
        self._digest = hashlib.blake2b(digest_size=8)
        end = os.fstat(self._fd).st_size
        parts = []
        try:
            if end == 0:
                raise _Torn("empty. Make it again.")
            while end > 0:  # parts of a concatenated file are found from the last to the first
                parts.append(self._locate(end))
                end = parts[-1][0]
            for start, sizes in reversed(parts):
                self._add(start, sizes)
        except (_Torn, ValueError, struct.error) as fault:
            raise Corrupt(f"{self._name}: {fault}") from None

    @property
    def name(self) -> str:
        """What the stream is called in messages."""
        return self._name

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._numbers

    @property
    def keys(self) -> list[str]:
        """All keys, sorted."""
        return sorted(self._numbers)

    @property
    def digest(self) -> str:
        """A digest of the content in order, at the price of the index: KEYS holds a crc32 of every record."""
        return self._digest.hexdigest()

    def fetch(self, key_or_number: str | int) -> Record:
        """The record of that key or number. Raises Missing where there is none; of equal keys the first is meant."""
        number = self._numbers.get(key_or_number) if isinstance(key_or_number, str) else key_or_number
        if number is None or not 0 <= number < len(self._places):
            raise Missing(f"{self._name}: no record {key_or_number!r} among {len(self._places)}.")
        offset, in_part, n_stored, crc = self._places[number]
        data = self._pread(offset, len(_MARK_PREFIX) + _MARK.size + 4 + n_stored)
        try:
            part = _Part(io.BufferedReader(io.BytesIO(data)), number - in_part, head=self.heads[0])
            record, stored_crc = part.one_record(in_part)
        except _Torn as fault:
            raise Corrupt(f"{self._name}: {fault}") from None
        if crc is not None and stored_crc != crc:
            raise Corrupt(f"{self._name}: record {number}: stored bytes changed since they were written")
        return record

    def _pread(self, offset: int, n_bytes: int) -> bytes:
        data = os.pread(self._fd, n_bytes, offset)
        if len(data) != n_bytes:
            raise Corrupt(f"{self._name}: {len(data)} bytes found at {offset}, {n_bytes} expected.")
        return data

    def _locate(self, end: int) -> tuple[int, np.ndarray]:
        footer = self._pread(max(0, end - 9), min(9, end))
        n_frames = int.from_bytes(footer[:4], "little")
        n_bytes = frame.PREFIX_BYTES + 8 * n_frames + 9
        if int.from_bytes(footer[-4:], "little") != frame.SEEK_MAGIC or n_bytes > end or n_frames < 2:
            raise _Torn("no end mark; the producer died or the disk filled. Make it again.")
        table = self._pread(end - n_bytes, n_bytes)
        sizes = np.frombuffer(table[frame.PREFIX_BYTES : -9], "<u4").reshape(-1, 2).astype(np.int64)
        start = end - n_bytes - int(sizes[:, 0].sum())
        if start < 0 or table != frame.seek_table(map(tuple, sizes)):
            raise _Torn("end mark does not describe this file")
        return start, sizes

    def _add(self, start: int, sizes: np.ndarray) -> None:
        offsets = start + np.concatenate([[0], np.cumsum(sizes[:, 0])])
        head = _Part(io.BufferedReader(io.BytesIO(self._pread(start, int(sizes[0, 0])))), 0).head
        first, n_records = len(self._places), (len(sizes) - 1) // 2
        has_keys = len(sizes) % 2 == 0  # HEAD, then two frames a record, then perhaps KEYS
        crcs: Sequence[int | None] = [None] * n_records
        if has_keys:
            keys = self._pread(int(offsets[-2]), int(sizes[-1, 0]))
            self._digest.update(keys)
            crcs, named = _parse_keys(keys)
            if len(crcs) != n_records:
                raise _Torn(f"{len(crcs)} keys found for {n_records} records")
        for number, crc in enumerate(crcs):
            self._places.append((int(offsets[1 + 2 * number]), number, int(sizes[2 + 2 * number, 0]), crc))
        self.heads.append(head)
        if not has_keys:
            named = [(self.fetch(first + number).key, number) for number in range(n_records)]
        for key, number in named:
            self._numbers.setdefault(key, first + number)


class _Torn(ValueError):
    """A fault in the bytes of a part, told with the record's number."""


class _Part:
    """One HEAD … END of a stream, read forwards. `first` is the number of its first record in the whole stream."""

    def __init__(self, file: BinaryIO, first: int, *, head: Head | None = None, keep_going: bool = False) -> None:
        self._file = file
        self._first = first
        self._keep_going = keep_going  # a partial file: what lies after the last whole record is no fault
        self.ledger = _Ledger()
        self.head = head if head is not None else self._read_head()

    def records(self) -> Iterator[Record]:
        number = 0
        while True:
            magic = self._read_magic(number)
            if magic == frame.MARK:
                record, _ = self._read_record(number)
                number += 1
                yield record
            elif magic == frame.KEYS and not self._keep_going:
                self._read_keys(number)
                self._read_end(number, self._read_magic(number))
                return
            elif magic == frame.SEEK and not self._keep_going:
                self._read_end(number, magic)
                return
            else:
                raise _Torn(f"{self._after(number)}: unknown frame 0x{magic:08X}")

    def one_record(self, number: int) -> tuple[Record, int]:
        """The record that the file stands before, with the crc32 of its stored bytes."""
        if self._read_magic(number) != frame.MARK:
            raise _Torn(f"record {self._first + number}: no mark where the seek table promises one")
        return self._read_record(number)

    def _read_head(self) -> Head:
        prefix = self._file.read(frame.PREFIX_BYTES)
        if not prefix:
            raise _Torn("closed before any record arrived; look at the stage before this one.")
        n_bytes = int.from_bytes(prefix[4:], "little")
        if int.from_bytes(prefix[:4], "little") != frame.HEAD or len(prefix) != 8 or not 8 < n_bytes <= _MAX_HEAD_BYTES:
            raise _Torn("not a kvtools stream (no head)")
        payload = self._file.read(n_bytes)
        if len(payload) != n_bytes or payload[-4:] != _crc(payload[:-4]):
            raise _Torn("the head is cut short or damaged")
        # past its crc32 the head is what a writer wrote; what is wrong with it now is a version, not an accident
        words = _json_object(payload[4:-4])
        if payload[:4] != _TAG or words.get("schema") != 1 or not isinstance(words.get("kind"), str):
            raise _Torn(f"head {payload[:4]!r}, schema {words.get('schema')!r} found, b'kvs1' and 1 expected")
        self.ledger.add_head(frame.PREFIX_BYTES + n_bytes)
        return Head(words["kind"], words.get("history", []), words.get("config", {}))

    def _read_magic(self, number: int) -> int:
        magic = self._file.read(4)
        if len(magic) < 4:
            raise _Torn(
                f"stream ends {self._after(number)} without its end mark; the producer died or the disk filled. Make it again."
            )
        return int.from_bytes(magic, "little")

    def _after(self, number: int) -> str:
        return f"after record {self._first + number - 1}" if self._first + number else "before its first record"

    def _read_record(self, number: int) -> tuple[Record, int]:
        where = f"record {self._first + number}"
        rest = self._file.read(len(_MARK_PREFIX) - 4 + _MARK.size + 4)
        if len(rest) != len(_MARK_PREFIX) + _MARK.size or rest[:4] != _MARK_PREFIX[4:]:
            raise _Torn(f"{where}: mark cut short or damaged")
        mark = rest[4:-4]
        found, n_stored, n_raw, raw_crc = _MARK.unpack(mark)
        if rest[-4:] != _crc(mark) or not frame.is_plausible(n_stored, n_raw):
            raise _Torn(f"{where}: mark damaged")
        if found != number:
            raise _Torn(f"{where}: numbered {found}, {number} expected; records are lost or out of order")
        try:
            data, stored_crc = frame.read(self._file, n_stored, n_raw)
            raw = data.data
            if crc32(raw) != raw_crc:
                raise ValueError("content differs from its crc32")
            tensors, fields = blob.decode(raw)
            if not isinstance(fields.get("key"), str):
                raise ValueError("no key")
        except EOFError:
            raise _Torn(f"stream ends within {where}; the producer died or the disk filled. Make it again.") from None
        except ValueError as fault:
            raise _Torn(f"{where}: {fault}") from None
        self.ledger.add_record(fields["key"], n_stored, n_raw, stored_crc)
        return Record(self._first + number, fields["key"], tensors, fields, raw), stored_crc

    def _read_keys(self, number: int) -> None:
        n_bytes = int.from_bytes(self._file.read(4), "little")
        expected = self.ledger.keys_frame()
        # the length is known from the records, so nothing is read or allocated on the frame's own word
        rest = self._file.read(len(expected) - frame.PREFIX_BYTES) if n_bytes == len(expected) - frame.PREFIX_BYTES else b""
        if rest != expected[frame.PREFIX_BYTES :]:
            raise _Torn(self._blame(rest, number))
        self.ledger.add_keys()

    def _blame(self, rest: bytes, number: int) -> str:
        """Which record the key index disagrees with; the index itself, where its own crc32 fails."""
        try:
            crcs, _ = _parse_keys(frame.skippable(frame.KEYS, rest))
        except _Torn as fault:
            return f"{self._after(number)}: {fault}"
        changed = [i for i, (a, b) in enumerate(zip(crcs, self.ledger.crcs, strict=False)) if a != b]
        if changed:
            return f"record {self._first + changed[0]}: stored bytes changed since they were written"
        return f"{self._after(number)}: key index does not describe the records before it"

    def _read_end(self, number: int, magic: int) -> None:
        expected = frame.seek_table(self.ledger.sizes())[4:]
        if magic != frame.SEEK or self._file.read(len(expected)) != expected:
            raise _Torn(f"end mark {self._after(number)} is cut short, damaged, or does not describe the records before it")
        self.ledger.n_bytes += 4 + len(expected)


class _Ledger:
    """What has gone by in one part: enough to write, or to hold to account, its KEYS and END."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.crcs = array("I")
        self.n_bytes = 0
        self._sizes = array("I")  # frame bytes, raw bytes, alternating

    def add_head(self, n_bytes: int) -> None:
        self._add(n_bytes, 0)

    def add_record(self, key: str, n_stored: int, n_raw: int, stored_crc: int) -> None:
        self._add(len(_MARK_PREFIX) + _MARK.size + 4, 0)
        self._add(n_stored, n_raw)
        self.keys.append(key)
        self.crcs.append(stored_crc)

    def add_keys(self) -> None:
        self._add(len(self.keys_frame()), 0)

    def keys_frame(self) -> bytes:
        payload = _keys_payload(self.keys, self.crcs)
        return frame.skippable(frame.KEYS, payload + _crc(payload))

    def sizes(self) -> Iterator[tuple[int, int]]:
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


def _parse_keys(keys_frame: bytes) -> tuple[list[int], list[tuple[str, int]]]:
    """The crc32 of every record in record order, and (key, record number) in key order."""
    payload, crc = keys_frame[frame.PREFIX_BYTES : -4], keys_frame[-4:]
    expected = frame.skippable(frame.KEYS, payload + crc)
    if keys_frame != expected or crc != _crc(payload):
        raise _Torn("key index is cut short or damaged")
    n = int.from_bytes(payload[:8], "little")
    crcs = np.frombuffer(payload, "<u4", n, 8)
    numbers = np.frombuffer(payload, "<u8", n, 8 + 4 * n)
    ends = np.frombuffer(payload, "<u8", n, 8 + 12 * n)
    names = payload[8 + 20 * n :]
    begins = [0, *ends[:-1].tolist()] if n else []
    keys = [names[begin:end].decode("utf-8") for begin, end in zip(begins, ends.tolist(), strict=True)]
    return crcs.tolist(), list(zip(keys, numbers.tolist(), strict=True))


def _crc(payload: bytes) -> bytes:
    return crc32(payload).to_bytes(4, "little")


def _json_object(text: bytes) -> Mapping[str, Any]:
    try:
        words = json.loads(text)
    except ValueError:
        return {}
    return words if isinstance(words, dict) else {}
