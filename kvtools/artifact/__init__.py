"""Artifacts: the only code that knows bytes. Streams of records, bags of tensors, their kinds and their history."""

from typing import BinaryIO

from kvtools.artifact.bag import Bag, read_bag
from kvtools.artifact.blob import MAX_HEADER_BYTES
from kvtools.artifact.files import open_source
from kvtools.artifact.frame import HEAD
from kvtools.artifact.stream import Reader
from kvtools.errors import Corrupt

__all__ = ["Bag", "Reader", "is_stream", "open_artifact"]


def open_artifact(src: str, file: BinaryIO | None = None) -> Reader | Bag:
    """A stream or a bag, told apart by its first bytes, whatever the name says. Bags come verified.

    file: src already open, of which nothing has been consumed.
    """
    file = file or open_source(src)
    name = "stdin" if src == "-" else src
    if is_stream(file):
        return Reader(file, name)
    if not file.peek(1):  # type: ignore[attr-defined]
        raise Corrupt(f"{name}: closed before any record arrived; look at the stage before this one.")
    begin = file.peek(9)  # type: ignore[attr-defined]
    if begin[8:9] != b"{" or int.from_bytes(begin[:8], "little") > MAX_HEADER_BYTES:
        raise Corrupt(f"{name}: neither a stream nor a bag.")
    return read_bag(file, name)


def is_stream(file: BinaryIO) -> bool:
    """Whether a stream's head lies ahead; nothing is consumed."""
    return bytes(file.peek(4)[:4]) == HEAD.to_bytes(4, "little")  # type: ignore[attr-defined]
