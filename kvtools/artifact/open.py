"""Artifacts opened by name: the one place that distinguishes streams from bags, and checks their kind and what they hold.

Not here: what a kind holds (kinds.py), and files that are no artifacts.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO

from kvtools.artifact import kinds as kind_table
from kvtools.artifact.bag import Bag, read_bag
from kvtools.artifact.blob import MAX_HEADER_BYTES
from kvtools.artifact.files import open_source
from kvtools.artifact.stream import Reader
from kvtools.artifact.stream_part import Record
from kvtools.artifact.zstd_frame import HEAD
from kvtools.errors import Corrupt, raising


def source_name(src: str) -> str:
    """What messages call an input: its path, or `stdin` for `-`."""
    return "stdin" if src == "-" else src


def open_artifact(src: str, file: BinaryIO | None = None) -> Reader | Bag:
    """A stream, to be iterated for its records, or a bag (a safetensors file with a kind), its checksums verified.

    The first bytes decide, not the name. file: src already open, at its beginning. Raises Missing where src cannot be read,
    Corrupt where it is empty, damaged or neither form.
    """
    file = file or open_source(src)
    name = source_name(src)
    if is_stream(file):
        return Reader(file, name)
    if not file.peek(1):  # type: ignore[attr-defined]
        raise Corrupt(f"{name}: closed before any record arrived. Look at the stage before this one.")
    if not is_bag(file):
        raise Corrupt(f"{name}: this is neither a stream nor a bag of kvtools. Give one, or see kvtools convert.")
    return read_bag(file, name)


def open_bag(src: str, kind: str, *, made_by: str, file: BinaryIO | None = None) -> Bag:
    """The bag of one kind that src holds. made_by: the command that writes such bags, as in `kvtools devices`.

    Raises Corrupt for a stream, for a bag of another kind, naming what it is, and for one that lacks what its kind has.
    """
    artifact = open_artifact(src, file)
    if not isinstance(artifact, Bag) or artifact.kind != kind:
        raise Corrupt(wrong_kind(src, artifact, kind, made_by))
    check_bag(artifact, source_name(src), made_by=made_by)
    return artifact


def open_stream(src: str, kinds: str | Collection[str], *, made_by: str, file: BinaryIO | None = None) -> Reader:
    """The stream that src holds, of one of the kinds. made_by: the command that writes such streams.

    Raises Corrupt for a bag and for a stream of another kind, naming what it is.
    """
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    artifact = open_artifact(src, file)
    if not isinstance(artifact, Reader) or artifact.head.kind not in kinds:
        raise Corrupt(wrong_kind(src, artifact, " or ".join(kinds), made_by))
    return artifact


def check_bag(bag: Bag, name: str, *, made_by: str = "") -> None:
    """Raise Corrupt where a bag does not hold what its kind has."""
    if bag.kind is None:
        raise Corrupt(
            f"{name}: this safetensors file was not written by kvtools. Give a bag of kvtools, or see kvtools convert."
        )
    with raising(Corrupt, name, _again(made_by)):
        kind_table.check(bag.kind, "bag", bag.tensors, bag.fields)


def checked_records(reader: Reader, *, made_by: str = "") -> Iterator[Record]:
    """The records of a stream. Raises Corrupt, with its number, for the first that does not hold what its kind has."""
    for record in reader:
        with raising_at(record, reader.name, made_by=made_by):
            kind_table.check(reader.head.kind, "stream", record.tensors, record.fields)
        yield record


def raising_at(record: Record, name: str, *, made_by: str = "") -> AbstractContextManager[None]:
    """Raises a ValueError about what the record holds as Corrupt, with its number and what to do."""
    return raising(Corrupt, f"{name}: record {record.number}", _again(made_by))


def _again(made_by: str) -> str:
    return f"Make it again with {made_by}." if made_by else "Make it again."


def wrong_kind(src: str, found: Reader | Bag, kind: str, made_by: str) -> str:
    """The sentence that refuses an artifact of another kind than the one that is needed."""
    if isinstance(found, Reader):
        what = f"a stream of kind {found.head.kind}"
    else:
        what = f"a bag of kind {found.kind}" if found.kind else "a bag that kvtools did not write"
    return f"{source_name(src)}: this is {what}, and kind {kind} is needed. Make one with {made_by}."


def is_bag(file: BinaryIO) -> bool:
    """Whether a buffered file is at the head of a safetensors file; nothing is consumed."""
    begin = bytes(file.peek(9)[:9])  # type: ignore[attr-defined]
    return begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= MAX_HEADER_BYTES


def is_stream(file: BinaryIO) -> bool:
    """Whether a buffered file is at the head of a stream; nothing is consumed."""
    return bytes(file.peek(4)[:4]) == HEAD.to_bytes(4, "little")  # type: ignore[attr-defined]
