"""What a file is by its first bytes: compressed text, which is read as if it were not; parquet; and the names of the others.

Read are gzip, zstd, bzip2 and xz, of one part or of several. A part that is damaged or cut off is refused: half of a file must
never pass for a whole one. Not here: what text and parquet hold; archives of several files, which are named and not opened.
"""

import bz2
import codecs
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import zstandard

from kvtools.errors import Corrupt

_PEEK = 1 << 12
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# so few bytes at a time that what they hold cannot fill the memory: zstd makes up to 30,000 of one
_PIECE = 1 << 12

_DECOMPRESSORS: dict[str, tuple[bytes, Callable[[], Any]]] = {
    "gzip": (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    "zstd": (b"\x28\xb5\x2f\xfd", lambda: zstandard.ZstdDecompressor().decompressobj()),
    "bzip2": (b"BZh", bz2.BZ2Decompressor),
    "xz": (b"\xfd7zXZ\0", lzma.LZMADecompressor),
}
_BINARY = {
    b"PAR1": "parquet", b"PK\x03\x04": "a zip archive", b"ARROW1": "an Arrow file", b"ORC": "ORC", b"Obj\x01": "Avro",
    b"\x89HDF": "HDF5", b"\x93NUMPY": "a numpy array", b"SQLite format 3": "an SQLite database", b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a rar archive", b"%PDF": "PDF", b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture", b"\xd0\xcf\x11\xe0": "an old Excel workbook", b"RDX": "data of R",
    **{bytes([0x80, protocol, 0x95]): "a Python pickle, which is never opened" for protocol in (4, 5)},
    **{bytes([0x80, protocol]): "a Python pickle, which is never opened" for protocol in (2, 3)},
}  # fmt: skip


def uncompressed(file: BinaryIO) -> BinaryIO:
    """The bytes of a buffered file, unpacked where they are compressed; the file itself where they are not.

    Nothing is consumed before the result is read. Reading raises ValueError where the compressed bytes are damaged or cut off.
    """
    head = peek(file)
    for kind, (magic, new) in _DECOMPRESSORS.items():
        if head.startswith(magic):
            return cast("BinaryIO", io.BufferedReader(_Unpacked(file, kind, new), 1 << 16))
    return file


def compression_of(file: BinaryIO) -> str:
    """gzip, zstd, bzip2 or xz; empty for other files."""
    head = peek(file)
    return next((kind for kind, (magic, _) in _DECOMPRESSORS.items() if head.startswith(magic)), "")


def is_parquet(file: BinaryIO) -> bool:
    """Whether a parquet file lies ahead, which is read from its end: one that is not seekable goes into memory."""
    return peek(file).startswith(b"PAR1")


def refuse_binary(file: BinaryIO, name: str, needed: str) -> None:
    """Raise Corrupt for a file that is known and no text, by what it is. needed: as in `a table`."""
    head = peek(file)
    what = next((what for magic, what in _BINARY.items() if head.startswith(magic)), "")
    if head[257:262] == b"ustar":
        what = "a tar archive"
    if what:
        raise Corrupt(f"{name}: this is {what}, and {needed} is needed. Give the file that is meant, unpacked or exported.")


def without_utf16(file: BinaryIO) -> BinaryIO:
    """The same text as UTF-8 where a byte-order mark says UTF-16; else the file itself."""
    return encoded_as_utf8(file, "utf-16") if peek(file).startswith(_UTF16) else file


def text_of(file: BinaryIO, encoding: str = "utf-8") -> BinaryIO:
    """A text of an encoding, or of that of its byte-order mark, as UTF-8. What cannot be decoded becomes U+FFFD, except in
    UTF-8, where it stays as it is."""
    is_utf16 = peek(file).startswith(_UTF16)
    encoding = "utf-16" if is_utf16 else codecs.lookup(encoding).name
    is_utf8 = encoding in ("utf-8", "utf-8-sig") or peek(file).startswith(codecs.BOM_UTF8)
    return file if is_utf8 else encoded_as_utf8(file, encoding, "replace")


def is_encoding(name: str) -> bool:
    """Whether Python knows an encoding of this name."""
    try:
        codecs.lookup(name)
    except LookupError:
        return False
    return True


def encoded_as_utf8(file: BinaryIO, encoding: str, errors: str = "strict") -> BinaryIO:
    """Text of an encoding as UTF-8, piece by piece; file is left open. errors: as of bytes.decode."""
    return cast("BinaryIO", io.BufferedReader(_Encoded(file, encoding, errors), 1 << 16))


def peek(file: BinaryIO) -> bytes:
    """The first bytes that lie ahead, as many as are there at once and 4096 at most; nothing is consumed."""
    return bytes(file.peek(_PEEK)[:_PEEK])  # type: ignore[attr-defined]


class _Unpacked(io.RawIOBase):
    """A compressed file as what it holds. Closing it leaves the file open."""

    def __init__(self, file: BinaryIO, kind: str, new: Callable[[], Any]) -> None:
        self._pieces, self._left = _unpack(file, kind, new), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        n = min(len(buffer), len(self._left))
        buffer[:n], self._left = self._left[:n], self._left[n:]
        return n


def _unpack(file: BinaryIO, kind: str, new: Callable[[], Any]) -> Iterator[bytes]:
    """What the parts of a compressed file hold, piece by piece."""
    damaged = ValueError(f"this is {kind}, and it is damaged or cut off")
    piece = file.read(_PIECE)
    while piece:
        part = new()
        while not part.eof:
            if not piece:
                raise damaged
            try:
                yield part.decompress(piece)
            except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError):
                raise damaged from None
            piece = part.unused_data if part.eof else file.read(_PIECE)
        # zeros may follow a part, to fill a block of a tape
        piece = piece.lstrip(b"\0") or file.read(_PIECE).lstrip(b"\0")


class _Encoded(io.RawIOBase):
    """Text of another encoding as UTF-8 bytes."""

    def __init__(self, file: BinaryIO, encoding: str, errors: str) -> None:
        self._file, self._left = file, memoryview(b"")
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = self._file.read(1 << 16)
            text = self._decoder.decode(piece, final=not piece)
            self._left = memoryview(text.encode("utf-8", "surrogatepass"))
            if not piece and not text:
                return 0
        n = min(len(buffer), len(self._left))
        buffer[:n], self._left = self._left[:n], self._left[n:]
        return n
