"""Random access to the records of a stream in a file, by number or by key."""

import hashlib
import io
import os
import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from kvtools.artifact import zstd_frame
from kvtools.artifact.stream_part import MARK_BODY, MARK_PREFIX, Head, Part, Record, Torn, parse_keys
from kvtools.errors import Corrupt, Missing


class Index:
    """Random access to a stream in a seekable file, by record number or key; many threads may use one.

    Opening it reads KEYS and END, and every record of a part that has no KEYS. A record is checked when it is fetched.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        """file: with a descriptor, open for as long as the index is used. Raises Corrupt where the parts do not add up."""
        self._file = file
        self._fd = file.fileno()
        self._name = name
        self._records: list[tuple[int, int, int, int | None]] = []  # (mark offset, number in its part, stored bytes, crc32)
        self._numbers: dict[str, int] = {}
        self.named: list[tuple[str, int]] = []  # (key, number) of all records
        self.heads: list[Head] = []
        self._digest = hashlib.blake2b(digest_size=8)
        try:
            for start, sizes in _parts(self._fd, name):
                self._add(start, sizes)
        except Torn as fault:
            raise Corrupt(f"{self._name}: {fault}") from None
        except (ValueError, struct.error) as fault:
            raise Corrupt(f"{self._name}: {fault}. Make it again.") from None

    @property
    def name(self) -> str:
        """What messages call the stream."""
        return self._name

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: str) -> bool:
        return key in self._numbers

    @property
    def keys(self) -> list[str]:
        """All keys, sorted."""
        return sorted(self._numbers)

    @property
    def digest(self) -> str:
        """A digest of all records in order, without reading them: KEYS has a crc32 of each. 16 hex digits."""
        return self._digest.hexdigest()

    def fetch(self, key_or_number: str | int) -> Record:
        """The record of that key, or of that number from 0; the first of equal keys.

        Raises Missing where there is none, Corrupt where it is damaged.
        """
        number = self._numbers.get(key_or_number) if isinstance(key_or_number, str) else key_or_number
        if number is None or not 0 <= number < len(self._records):
            raise Missing(f"{self._name}: none of its {len(self._records)} records is {key_or_number!r}.")
        offset, in_part, n_stored, crc = self._records[number]
        data = _pread(self._fd, self._name, len(MARK_PREFIX) + MARK_BODY.size + 4 + n_stored, offset)
        try:
            part = Part(io.BufferedReader(io.BytesIO(data)), number - in_part, head=self.heads[0])
            record, stored_crc = part.one_record(in_part)
        except Torn as fault:
            raise Corrupt(f"{self._name}: {fault}") from None
        if crc is not None and stored_crc != crc:
            raise Corrupt(f"{self._name}: record {number}: its stored bytes changed since they were written. Make it again.")
        return record

    def stored(self, number: int) -> tuple[int, int | None]:
        """The bytes of a record as it is stored, and their crc32, where the stream's own index has it."""
        _, _, n_stored, crc = self._records[number]
        return n_stored, crc

    def _add(self, start: int, sizes: np.ndarray) -> None:
        """Take in the records of one part."""
        offsets = start + np.concatenate([[0], np.cumsum(sizes[:, 0])])
        head = _head(self._fd, self._name, start, sizes)
        first, n_records = len(self._records), (len(sizes) - 1) // 2
        has_keys = len(sizes) % 2 == 0  # HEAD, then two frames a record, then perhaps KEYS
        crcs: Sequence[int | None] = [None] * n_records
        if has_keys:
            keys = _pread(self._fd, self._name, int(sizes[-1, 0]), int(offsets[-2]))
            self._digest.update(keys)
            crcs, named = parse_keys(keys)
            if len(crcs) != n_records:
                raise Torn(f"the key index has {len(crcs)} keys for {n_records} records")
        for number, crc in enumerate(crcs):
            self._records.append((int(offsets[1 + 2 * number]), number, int(sizes[2 + 2 * number, 0]), crc))
        self.heads.append(head)
        if not has_keys:
            named = [(self.fetch(first + number).key, number) for number in range(n_records)]
        for key, number in named:
            self.named.append((key, first + number))
            self._numbers.setdefault(key, first + number)


def read_heads(file: BinaryIO, name: str) -> list[Head]:
    """The heads of all parts of a stream in a seekable file, in order; records and their index are not read.

    Raises Corrupt where the parts do not add up.
    """
    try:
        return [_head(file.fileno(), name, start, sizes) for start, sizes in _parts(file.fileno(), name)]
    except Torn as fault:
        raise Corrupt(f"{name}: {fault}") from None


def _parts(fd: int, name: str) -> list[tuple[int, np.ndarray]]:
    """Of each part where it begins, and the (stored, raw) bytes of its frames, int64 (n, 2)."""
    end = os.fstat(fd).st_size
    if end == 0:
        raise Torn("the file is empty")
    parts: list[tuple[int, np.ndarray]] = []
    while end > 0:  # parts of a concatenated file are found from the last to the first
        parts.append(_locate(fd, name, end))
        end = parts[-1][0]
    return parts[::-1]


def _locate(fd: int, name: str, end: int) -> tuple[int, np.ndarray]:
    """Where the part that ends there begins, and the (stored, raw) bytes of its frames, int64 (n, 2)."""
    footer = _pread(fd, name, min(9, end), max(0, end - 9))
    n_frames = int.from_bytes(footer[:4], "little")
    n_bytes = zstd_frame.PREFIX_BYTES + 8 * n_frames + 9
    if int.from_bytes(footer[-4:], "little") != zstd_frame.SEEK_MAGIC or n_bytes > end or n_frames < 2:
        raise Torn("it has no end mark; the producer died or the disk filled")
    table = _pread(fd, name, n_bytes, end - n_bytes)
    sizes = np.frombuffer(table[zstd_frame.PREFIX_BYTES : -9], "<u4").reshape(-1, 2).astype(np.int64)
    start = end - n_bytes - int(sizes[:, 0].sum())
    if start < 0 or table != zstd_frame.seek_table(map(tuple, sizes)):
        raise Torn("the end mark does not describe this file")
    return start, sizes


def _head(fd: int, name: str, start: int, sizes: np.ndarray) -> Head:
    return Part(io.BufferedReader(io.BytesIO(_pread(fd, name, int(sizes[0, 0]), start))), 0).head


def _pread(fd: int, name: str, n_bytes: int, offset: int) -> bytes:
    data = os.pread(fd, n_bytes, offset)
    if len(data) != n_bytes:
        raise Corrupt(f"{name}: the file ends before byte {offset + n_bytes}. Make it again.")
    return data
