"""Records of many streams of one kind, one stream after the other, as `kvtools cat` reads them.

A damaged file is reported and the others are still read; a damaged stdin ends everything with its fault, because the stage that
writes it has failed. Every file is opened once before the first record, for its head.
"""

from collections.abc import Callable, Iterator, Sequence

from kvtools.artifact.files import open_source
from kvtools.artifact.open import source_name
from kvtools.artifact.stream import Head, Reader, Record
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt, Fault, Missing


class Concat:
    """Iterate for the records. heads: of all inputs that can be read, known before the first record."""

    def __init__(
        self,
        sources: Sequence[str],
        *,
        keys: Sequence[str] | None = None,
        limit: int | None = None,
        strict: bool = False,
        log: Callable[[str], None],
    ) -> None:
        """keys: only the records of these keys. limit: at most so many records. strict: raise the first fault. log: called with
        the others."""
        self.heads: list[Head] = []
        self._keys = keys
        self._limit = limit
        self._strict = strict
        self._log = log
        self._n_records = 0
        self._codes: list[int] = []
        self._readers = [(src, reader) for src in sources if (reader := self._open(src)) is not None]

    @property
    def code(self) -> int:
        """The exit code: 0 without a fault; the code of the faults where they agree and no record was read; else 65."""
        if not self._codes:
            return 0
        return self._codes[0] if self._n_records == 0 and len(set(self._codes)) == 1 else Corrupt.code

    def __iter__(self) -> Iterator[Record]:
        read: set[str] = set()
        for src, reader in self._readers:
            records = self._records(src, reader)
            while self._n_records != self._limit:
                try:
                    record = next(records, None)
                except Fault as fault:
                    self._report(src, fault)
                    break
                if record is None:
                    break
                read.add(record.key)
                yield record
                self._n_records += 1
        for key in self._keys or []:
            if key not in read:
                self._report("", Missing(f"--key {key}: no input has it. See kvtools info --records."))

    def _open(self, src: str) -> Reader | None:
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
        self.heads.append(reader.head)
        if src != "-":
            file.close()
        return reader

    def _records(self, src: str, reader: Reader) -> Iterator[Record]:
        if src == "-":
            yield from self._selected(reader)
            return
        with open_source(src) as file:
            if self._keys is None or not file.seekable():
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
