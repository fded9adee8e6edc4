"""Records of many streams of one kind, one stream after the other, as `kvtools cat` reads them.

A damaged file is reported and the others are still read; a damaged stdin ends everything with its fault, because the stage that
writes it has failed. So do two different clips of one key. Every input is opened before the first record, for its head. Files
are closed until their turn comes, since there may be more of them than a process may have open; pipes cannot be opened again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from kvtools.artifact.equal_keys import KeysSoFar, is_looked_up
from kvtools.artifact.files import open_source
from kvtools.artifact.open import source_name
from kvtools.artifact.stream import Head, Reader, Record
from kvtools.artifact.stream_index import Index, read_heads
from kvtools.errors import Corrupt, Fault, Missing
from kvtools.names import printable


def distinct_names(sources: Sequence[str]) -> dict[str, str]:
    """For each source the name of its file without suffix, and as many folders before it as tell it from the others."""
    paths = {src: Path(source_name(src)).with_suffix("").parts for src in sources}
    names = {}
    for src, parts in paths.items():
        others = {other for other in paths.values() if other[-1] == parts[-1]}
        depth = next(n for n in range(1, 1 + max(map(len, others))) if len({other[-n:] for other in others}) == len(others))
        names[src] = printable("/".join(part for part in parts[-depth:] if part != "/"))
    return names


class Concat:
    """Iterate for the records. heads: of all parts of all inputs that can be read, before the first record; of a pipe the first
    part's alone, and the others' once it is read. has_pipes: whether any of them is one."""

    def __init__(
        self,
        sources: Sequence[str],
        *,
        keys: Sequence[str] | None = None,
        limit: int | None = None,
        prefixes: Mapping[str, str] | None = None,
        strict: bool = False,
        log: Callable[[str], None],
    ) -> None:
        """keys: only the records of these keys. limit: at most so many records. prefixes: of keys, by source. strict: raise the
        first fault. log: called with the others."""
        self.heads: list[Head] = []
        self.has_pipes = False
        self._keys = keys
        self._limit = limit
        self._prefixes = prefixes or {}
        self._keys_so_far = KeysSoFar()
        self._strict = strict
        self._log = log
        self._n_records = 0
        self._codes: list[int] = []
        self._opened = [(src, *opened) for src in sources if (opened := self._open(src)) is not None]

    @property
    def code(self) -> int:
        """The exit code: 0 without a fault; the code of the faults where they agree and no record was read; else 65."""
        if not self._codes:
            return 0
        return self._codes[0] if self._n_records == 0 and len(set(self._codes)) == 1 else Corrupt.code

    def __iter__(self) -> Iterator[Record]:
        read: set[str] = set()
        for src, file, reader in self._opened:
            records = self._records(src, file, reader)
            while self._n_records != self._limit:
                try:
                    record = next(records, None)
                except Fault as fault:
                    self._report(src, fault)
                    break
                if record is None:
                    break
                read.add(record.key)
                named = replace(record, key=self._prefixes.get(src, "") + record.key)
                if is_looked_up(reader.head.kind):
                    self._keys_so_far.add(f"{source_name(src)}: record {record.number}", named.key, record.tensors)
                yield named
                self._n_records += 1
        for key in self._keys or []:
            if key not in read:
                self._report("", Missing(f"--key {key}: no input has it. See kvtools info --records."))

    def _open(self, src: str) -> tuple[BinaryIO, Reader] | None:
        try:
            file = open_source(src)
            reader = Reader(file, source_name(src))
            kind = self.heads[0].kind if self.heads else reader.head.kind
            if reader.head.kind != kind:
                raise Corrupt(
                    f"{source_name(src)}: this is a stream of kind {reader.head.kind}, and the first input is of kind {kind}. "
                    "Join streams of one kind only."
                )
        except Fault as fault:
            self._report(src, fault)
            return None
        heads = [reader.head]
        if src == "-" or not file.seekable():
            self.has_pipes = True
        else:
            with file, suppress(Corrupt):  # it is refused when its records are read
                heads = read_heads(file, src)
        self.heads += heads
        return file, reader

    def _records(self, src: str, opened: BinaryIO, reader: Reader) -> Iterator[Record]:
        if not opened.closed:
            with opened:
                yield from self._selected(reader)
            self.heads += reader.heads[1:]
            return
        with open_source(src) as file:
            if self._keys is None:
                yield from self._selected(Reader(file, src))
            else:
                index = Index(file, src)
                yield from (index.fetch(key) for key in self._keys if key in index)

    def _selected(self, reader: Reader) -> Iterator[Record]:
        return (record for record in reader if self._keys is None or record.key in self._keys)

    def _report(self, src: str, fault: Fault) -> None:
        if self._strict or src == "-":
            raise fault
        self._log(str(fault))
        self._codes.append(fault.code)
