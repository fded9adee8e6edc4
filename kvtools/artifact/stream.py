"""A stream, `.kvs`: many records of one kind, in one order, that cannot be lost or changed without notice.

    HEAD  skippable 0x184D2A50  b"kvs1" + canonical JSON {kind, schema, history, config} + crc32
    REC*  MARK skippable 0x184D2A52: record number u64, stored length u64, raw length u64, crc32 of the raw bytes u32,
          crc32 of the mark itself u32; then one zstd frame around one safetensors blob (zstd_frame.py, blob.py)
    KEYS  skippable 0x184D2A51  sorted keys to record numbers, crc32 of each stored frame (`stream_part._keys_payload`), crc32
    END   skippable 0x184D2A5E  the standard zstd seek table over all frames before it

All integers are little-endian. The invariant: a reader that reaches the end without an error has read exactly the
records the writer closed over. A stream without END is refused always; after END only another HEAD or the end of the
file may come, so that `cat a.kvs b.kvs` is a stream. A crc32 of the stored bytes stands in KEYS because a compressed
frame has bits that no decoder looks at (padding of its entropy tables); all other bits are covered sooner.

Cost: the reader holds one record and 20 bytes for each record before it. Not here: files and pipes (files.py), meaning of
the tensors (kinds.py).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, Self, TypeVar

from zlib_ng.zlib_ng import crc32

from kvtools.artifact import blob, zstd_frame
from kvtools.artifact.files import Sink, Spool
from kvtools.artifact.history import refuse_other_options
from kvtools.artifact.stream_part import MARK_BODY, MARK_PREFIX, Head, Part, PartIndex, Record, Torn, checksum
from kvtools.errors import Corrupt

__all__ = ["Head", "Reader", "Record", "Writer"]

_T = TypeVar("_T")
_BATCH = 32  # buffers handed to the system at once: 2 MiB of blocks


class Raw(NamedTuple):
    """What a mark says of the bytes of a record before they were compressed."""

    n_bytes: int
    crc: int


def compress(key: str, pieces: Iterable[memoryview], level: int, stored: Spool) -> Raw:
    """Append the record `key`, encoded already, to `stored`, as one frame, for Writer.write_frame; level: of zstd, above 0.

    Raises ValueError where it is larger than a record may be.
    """
    raw = _raw_of(key, pieces)
    for part in zstd_frame.compress(pieces, raw.n_bytes, level):
        stored.append(part)
    return raw


def _raw_of(key: str, pieces: Iterable[memoryview]) -> Raw:
    n_bytes = crc = 0
    for piece in pieces:
        n_bytes, crc = n_bytes + len(piece), crc32(piece, crc)
    if not 0 < n_bytes <= zstd_frame.MAX_RAW_BYTES:
        raise ValueError(f"record {key} is {n_bytes:,} bytes, and a record holds 1 to {zstd_frame.MAX_RAW_BYTES:,}")
    return Raw(n_bytes, crc)


class Writer:
    """Writes a stream to a Sink; a context manager. Its normal end writes KEYS and END. An exception leaves the stream without
    END, so that no reader accepts it, and abandons the sink."""

    def __init__(self, sink: Sink, head: Head, *, level: int | None = None) -> None:
        """level: of zstd, 0 for none; by default 1 into files and 0 into pipes."""
        self._sink = sink
        self._head = head
        self.level = (1 if sink.is_file else 0) if level is None else level
        self._index = PartIndex()
        self._has_head = False

    @property
    def n_records(self) -> int:
        """Records in the stream so far, those of a resumed run included."""
        return len(self._index.keys)

    def resume(self, *, start_over: bool = False, keep: Callable[[Record], bool] = lambda _: True) -> set[str]:
        """Keep the whole records that a stopped run left in the sink, and continue after them; returns their keys.

        Raises Usage, naming the difference, where that run had another head: other options, or another version of kvtools;
        Corrupt where its head is damaged. start_over: drop its records then. keep: whether a record is still what this run
        would write. What follows the last whole record, and the first that is not kept, is cut off.
        """
        partial = self._sink.partial()
        if partial is None:
            return set()
        with partial:
            part = self._part_to_resume(partial, start_over=start_over)
            if part is not None:
                self._index = part.index  # grows as the records are read
                with suppress(Torn):  # the first byte that is not of a whole record is where that run was stopped
                    for record in part.records():
                        if not keep(record):
                            self._index.drop_last()
                            break
        self._sink.resume_at(self._index.n_bytes)
        self._has_head = self._index.n_bytes > 0
        return set(self._index.keys)

    def write(self, key: str, tensors: blob.Tensors, **fields: Any) -> None:
        """Append a record named `key`. Contiguous tensors reach the pipe without being copied."""
        self.write_pieces(key, blob.encode(tensors, {"kind": self._head.kind, "key": key, **fields}))

    def write_pieces(self, key: str, pieces: Iterable[memoryview]) -> None:
        """Append a record that is encoded already (blob.encode, Spool) and whose fields name it `key`; iterates over the pieces
        twice. Raises ValueError where they are larger than a record may be."""
        if self.level > 0:
            with Spool() as stored:
                self.write_frame(key, stored, compress(key, pieces, self.level, stored))
            return
        raw = _raw_of(key, pieces)
        self._append(key, zstd_frame.store(pieces, raw.n_bytes), zstd_frame.stored_length(raw.n_bytes), raw)

    def write_frame(self, key: str, stored: Spool, raw: Raw) -> None:
        """Append a record that `compress` has made a frame of, at the level of this stream."""
        self._append(key, stored, len(stored), raw)

    def _append(self, key: str, stored: Iterable[memoryview], n_stored: int, raw: Raw) -> None:
        self._write_head()
        mark = MARK_BODY.pack(self.n_records, n_stored, raw.n_bytes, raw.crc)
        self._sink.write([MARK_PREFIX + mark + checksum(mark)])
        stored_crc, buffers = 0, iter(stored)
        while batch := list(islice(buffers, _BATCH)):
            for buffer in batch:
                stored_crc = crc32(buffer, stored_crc)
            self._sink.write(batch)
        self._index.add_record(key, n_stored, raw.n_bytes, stored_crc)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is not None:
            self._sink.abandon()
            return
        try:
            self._write_head()
            self._sink.write([self._index.keys_frame()])
            self._index.add_keys()
            self._sink.write([zstd_frame.seek_table(self._index.sizes())])
        except BaseException:
            self._sink.abandon()
            raise
        self._sink.commit()

    def _part_to_resume(self, partial: BinaryIO, *, start_over: bool) -> Part | None:
        """What a stopped run left, of which the head is read; None where this run starts over."""
        try:
            part = Part(partial, 0, is_partial=True)
        except Torn:
            if start_over:
                return None
            raise Corrupt(
                f"{partial.name}: the head is damaged. The stopped run cannot be resumed. Give --force to start over."
            ) from None
        if part.head == self._head:
            return part
        if not start_over:
            dst, kept, given = self._sink.dst, part.head, self._head
            refuse_other_options(dst, kept.config, given.config)
            refuse_other_options(dst, _last_step(kept), _last_step(given))
            refuse_other_options(dst, vars(kept), vars(given))
        return None

    def _write_head(self) -> None:
        # the head waits for the first record: a stage that fails at once sends nothing, and the next stage reports that
        if not self._has_head:
            head = self._head.encode()
            self._sink.write([head])
            self._index.add_head(len(head))
            self._has_head = True


class Reader:
    """Reads a stream from its beginning, from a pipe or a file; iterate for the records. Every fault raises Corrupt.

    name: what messages call it. head: of the first part. heads: of all parts so far. n_bytes: length of the parts read to
    their end.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        """file: buffered, at a head."""
        self._file = file
        self.name = name
        self._part = self._checked(Part, file, 0)
        self.head = self._part.head
        self.heads = [self.head]
        self.n_bytes = 0

    def __iter__(self) -> Iterator[Record]:
        number = 0
        while True:
            records = self._part.records()
            while (record := self._checked(next, records, None)) is not None:
                yield record
                number += 1
            self.n_bytes += self._part.index.n_bytes
            if not self._file.peek(1):  # type: ignore[attr-defined]
                return
            self._part = self._checked(Part, self._file, number)
            if self._part.head.kind != self.head.kind:
                raise Corrupt(
                    f"{self.name}: records of kind {self._part.head.kind} follow records of kind {self.head.kind}. Join "
                    "streams of one kind only."
                )
            self.heads.append(self._part.head)

    def _checked(self, read: Callable[..., _T], *arguments: Any) -> _T:
        try:
            return read(*arguments)
        except Torn as fault:
            raise Corrupt(f"{self.name}: {fault}") from None


def _last_step(head: Head) -> dict[str, Any]:
    """Of the command that writes the stream, what a resumed run must share with the stopped one."""
    step = head.history[-1] if head.history else {}
    return {name: step.get(name) for name in ("argv", "inputs", "version")}
