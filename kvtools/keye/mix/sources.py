"""Documents of a mixture, from files of any layout that conversations.py reads, and from streams of conversations.

What cannot be read to its end gives what it has, and then one more document, a ValueError that says why.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from kvtools.artifact import is_stream, open_stream, source_name
from kvtools.artifact.documents import is_parquet
from kvtools.artifact.files import open_source
from kvtools.artifact.history import Step
from kvtools.errors import Fault
from kvtools.keye.data.conversation_files import read_conversation_documents
from kvtools.keye.mix.batches import Document
from kvtools.keye.mix.examine import END

_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Source:
    """A file of one mode. name: what records and messages call it."""

    mode: str
    src: str
    name: str

    @property
    def root(self) -> str:
        """The folder in which its relative paths begin."""
        return "" if self.src == "-" else os.path.dirname(self.src)


def sources_of(given: Mapping[str, Sequence[str] | None]) -> list[Source]:
    """The sources of each mode.

    A name is the file's, however its path is spelt; before it stand folders where other sources have the same name.
    """
    srcs = [src for listed in given.values() for src in listed or ()]
    names = _names([src for src in srcs if src != "-"]) | {"-": source_name("-")}
    return [Source(mode, src, names[src]) for mode, listed in given.items() for src in listed or ()]


def _names(srcs: Sequence[str]) -> dict[str, str]:
    """For each path its last part, and as many folders before it as tell it apart from other files."""
    parts = {src: Path(os.path.realpath(os.path.dirname(src)), os.path.basename(src)).parts for src in srcs}
    names = {}
    for src, its in parts.items():
        others = {other for other in parts.values() if other[-1] == its[-1]}
        depth = next(n for n in range(1, 1 + max(map(len, others))) if len({other[-n:] for other in others}) == len(others))
        names[src] = "/".join(its[-depth:])
    return names


class Origins:
    """What the sources are, for the history: digests of their bytes, and histories of streams. Known once all are read."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.histories: list[list[Step]] = []


def documents(sources: Sequence[Source], origins: Origins) -> Iterator[Document]:
    """Every document of every source, JSON lines as bytes."""
    for source in sources:
        n_read = 0
        fault: ValueError | None = None
        try:
            for where, document in _documents(source.src, origins):
                n_read += 1
                yield source.mode, source.name, where, document
            if not n_read:
                remedy = "Look at the stage before this one" if source.src == "-" else "Give a file with conversations"
                fault = ValueError(f"there is no document in it. {remedy}")
        except Fault as error:
            fault = ValueError(str(error).removeprefix(f"{source_name(source.src)}: ").rstrip("."))
        except ValueError as error:
            fault = error
        if fault is not None:
            yield source.mode, source.name, END, fault


def _documents(src: str, origins: Origins) -> Iterator[tuple[str, Any]]:
    digest = hashlib.blake2b(digest_size=16)
    with open_source(src) as opened:
        file = cast("BinaryIO", io.BufferedReader(_Digested(opened, digest), _BLOCK_BYTES))
        if is_parquet(opened) and opened.seekable():  # read from its end: its bytes are digested apart
            while block := opened.read(_BLOCK_BYTES):
                digest.update(block)
            opened.seek(0)
            yield from read_conversation_documents(opened)
            origins.digests.append(digest.hexdigest())
            return
        if is_stream(file):
            reader = open_stream(src, "conversation", made_by="kvtools convert", file=file)
            origins.histories.append(reader.head.history)
            for record in reader:
                yield record.key, record.tensors["json"].tobytes()
        else:
            yield from read_conversation_documents(file, raw=True)
        while file.read(_BLOCK_BYTES):
            pass  # the digest is of all bytes
    origins.digests.append(digest.hexdigest())


class _Digested(io.RawIOBase):
    """An open file whose bytes are digested as they are read. Not seekable, so that all are read once, in order."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._digest.update(data)
        buffer[: len(data)] = data
        return len(data)
