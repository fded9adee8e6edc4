"""The zstd frames a stream is made of: skippable frames for what kvtools adds, one data frame a record.

The raw length of a data frame fixes its header, so that a reader knows every bit of it: a content size of four bytes,
no dictionary; stored, a single segment without checksum; compressed, a checksum, and a window of 1 MiB, or a single
segment where the record is no larger. Stored frames are raw blocks of 128 KiB around the caller's own memory, which is
not copied; both kinds are made piece by piece, so that a record is never in memory whole. Format: RFC 8878; seek table: zstd's
contrib/seekable_format/zstd_seekable_compression_format.md.

Not here: what the frames mean (stream.py).
"""

from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
import zstandard
from zlib_ng.zlib_ng import crc32

HEAD, KEYS, MARK, SEEK = 0x184D2A50, 0x184D2A51, 0x184D2A52, 0x184D2A5E  # skippable magics; SEEK is zstd's own
SEEK_MAGIC = 0x8F92EAB1
MAX_RAW_BYTES = 128 << 20  # a record
PREFIX_BYTES = 8  # magic and length of a skippable frame
_MAGIC = 0xFD2FB528
_BLOCK = 128 << 10
_STORED, _COMPRESSED = 0xA0, 0x84  # frame header descriptor: content size in 4 bytes; 0x20 single segment, 4 checksum
_WINDOW_LOG = 20  # 1 MiB: the part of a record that compression and decompression keep in memory
_MAX_HEADER_BYTES = 14


def skippable(magic: int, payload: bytes) -> bytes:
    """A frame that every zstd decoder skips."""
    return magic.to_bytes(4, "little") + len(payload).to_bytes(4, "little") + payload


def store(pieces: Iterable[memoryview], n_raw: int) -> Iterator[memoryview]:
    """The pieces, n_raw bytes in all, as one uncompressed zstd frame of `stored_length(n_raw)` bytes: buffers to write
    in order. The pieces' memory is sliced, never copied."""
    yield memoryview(_header(_STORED, n_raw))
    left, room = n_raw, 0
    for piece in pieces:
        begin = 0
        while begin < len(piece):
            if room == 0:
                room = min(left, _BLOCK)
                yield memoryview(_raw_block_header(room, is_last=left <= _BLOCK))
            end = min(len(piece), begin + room)
            yield piece[begin:end]
            left, room, begin = left - (end - begin), room - (end - begin), end
    assert left == 0, "n_raw is the pieces' length"


def compress(pieces: Iterable[memoryview], n_raw: int, level: int) -> Iterator[bytes]:
    """The pieces as one compressed zstd frame, in parts; same bytes, level and library version give the same frame."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=n_raw, window_log=_WINDOW_LOG, write_checksum=True, write_content_size=True
    )
    # one frame per record and no threads: output bytes must not depend on the thread count
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=n_raw)
    parts = (part for piece in pieces if (part := compressor.compress(piece)))
    first = b""
    for part in parts:
        first += part
        if len(first) > _MAX_HEADER_BYTES:
            break
    else:
        first += compressor.flush()
        yield _widen_content_size(first, n_raw)
        return
    yield _widen_content_size(first, n_raw)
    yield from parts
    yield compressor.flush()


def read(file: BinaryIO, n_stored: int, n_raw: int) -> tuple[np.ndarray, int]:
    """The raw bytes of the next data frame of a buffered file, uint8 (n_raw,), and the crc32 of the frame.

    Raises ValueError unless the frame is n_stored bytes of one of the two forms above with n_raw bytes in it, EOFError where
    the file ends first. Allocates n_raw bytes, and n_stored more for a compressed frame.
    """
    header = _header(_STORED, n_raw)
    begin = _exactly(file, min(len(header), n_stored))
    if begin == header and n_stored == stored_length(n_raw):
        return _read_stored(file, n_raw, crc32(begin))
    frame = begin + _exactly(file, n_stored - len(begin))
    header = _header(_COMPRESSED, n_raw)
    if frame[: len(header)] != header:
        raise ValueError("the header of its zstd frame is not that of its length")
    try:
        # one frame, output bounded by the size just checked; decompressobj would not bound it
        raw = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).decompress(
            frame, max_output_size=n_raw, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ValueError(f"its zstd frame cannot be decoded ({error})") from None
    if len(raw) != n_raw:
        raise ValueError(f"its zstd frame holds {len(raw)} bytes, and its mark says {n_raw}")
    return np.frombuffer(raw, np.uint8), crc32(frame)


def stored_length(n_raw: int) -> int:
    """Bytes of a stored frame around n_raw bytes."""
    return 9 + n_raw + 3 * -(-n_raw // _BLOCK)


def is_plausible(n_stored: int, n_raw: int) -> bool:
    """Whether a frame of n_stored bytes can hold n_raw: both within the limits, and not longer than the worst compression."""
    return 0 < n_raw <= MAX_RAW_BYTES and 9 < n_stored <= stored_length(n_raw) + (n_raw >> 8) + 64


def seek_table(sizes: Iterable[tuple[int, int]]) -> bytes:
    """The standard seek table in its skippable frame. sizes: (frame bytes, raw bytes) of every frame before it."""
    entries = np.asarray(list(sizes), dtype="<u4").reshape(-1, 2)
    footer = len(entries).to_bytes(4, "little") + b"\0" + SEEK_MAGIC.to_bytes(4, "little")
    return skippable(SEEK, entries.tobytes() + footer)


def _header(descriptor: int, n_raw: int) -> bytes:
    window = b""
    if descriptor == _COMPRESSED:
        if n_raw <= 1 << _WINDOW_LOG:
            descriptor |= 0x20  # libzstd makes a single segment of what its window holds
        else:
            window = bytes([(_WINDOW_LOG - 10) << 3])
    return _MAGIC.to_bytes(4, "little") + bytes([descriptor]) + window + n_raw.to_bytes(4, "little")


def _raw_block_header(n_bytes: int, *, is_last: bool) -> bytes:
    return (n_bytes << 3 | is_last).to_bytes(3, "little")


def _widen_content_size(begin: bytes, n_raw: int) -> bytes:
    """The beginning of a compressed frame with 4 bytes of content size, where libzstd writes 1, 2 or 4."""
    header = _header(_COMPRESSED, n_raw)
    assert begin[4] & 0x3F == header[4] & 0x3F, "the compressor's parameters promise this form"
    length = len(header) - 4 + {0: 1, 1: 2, 2: 4}[begin[4] >> 6]
    return header + begin[length:]


def _read_stored(file: BinaryIO, n_raw: int, crc: int) -> tuple[np.ndarray, int]:
    # block by block: each is copied, summed and checked while it is in the cache, which is what makes pipes fast
    raw = np.empty(n_raw, np.uint8)
    view = raw.data
    for begin in range(0, n_raw, _BLOCK):
        block = view[begin : begin + _BLOCK]
        header = _exactly(file, 3)
        if header != _raw_block_header(len(block), is_last=begin + _BLOCK >= n_raw):
            raise ValueError("its stored frame is not made of raw blocks")
        if file.readinto(block) != len(block):  # type: ignore[attr-defined]
            raise EOFError
        crc = crc32(block, crc32(header, crc))
    return raw, crc


def _exactly(file: BinaryIO, n_bytes: int) -> bytes:
    data = file.read(n_bytes)
    if len(data) != n_bytes:
        raise EOFError
    return data
