"""Records of many streams, one after the other, with the house's rule for bad inputs.

A bad file is told and passed over, and the tour goes on: `code` tells in the end. A bad stdin ends the tour with its
fault, because the stage that feeds it has failed. Costs one open of each file ahead, for its head.
"""

from collections.abc import Callable, Iterator, Sequence

from kvtools.artifact.files import open_source
from kvtools.artifact.stream import Head, Reader, Record
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt, Fault, Missing


class Tour:
    """Iterate for the records. The `heads` of all readable inputs are known beforehand."""

    def __init__(
        self,
        sources: Sequence[str],
        *,
        keys: Sequence[str] | None = None,
        limit: int | None = None,
        strict: bool = False,
        tell: Callable[[str], None],
    ) -> None:
        self.heads: list[Head] = []
        self._n_records = 0
        self._codes: list[int] = []
        self._found: set[str] = set()
        self._keys = keys
        self._limit = limit
        self._strict = strict
        self._tell = tell
        self._readers = [(src, reader) for src in sources if (reader := self._look_at(src)) is not None]

    @property
    def code(self) -> int:
        """What to exit with: 0, or the inputs' fault where nothing was delivered, or 65."""
        if not self._codes:
            return 0
        return self._codes[0] if self._n_records == 0 and len(set(self._codes)) == 1 else Corrupt.code

    def __iter__(self) -> Iterator[Record]:
        for src, reader in self._readers:
            records = self._select(src, reader)
            while self._n_records != self._limit:
                try:
                    record = next(records, None)
                except Fault as fault:
                    if src == "-":
                        raise
                    self._blame(fault)
                    break
                if record is None:
                    break
                self._found.add(record.key)
                yield record
                self._n_records += 1
        for key in self._keys or []:
            if key not in self._found:
                self._blame(Missing(f"--key {key}: in none of the inputs."))

    def _look_at(self, src: str) -> Reader | None:
        try:
            file = open_source(src)
            reader = Reader(file, "stdin" if src == "-" else src)
            if self.heads and self.heads[0].kind != reader.head.kind:
                raise Corrupt(f"{src}: {reader.head.kind} records found, {self.heads[0].kind} as in the first input expected.")
        except Fault as fault:
            if src == "-":
                raise
            self._blame(fault)
            return None
        self.heads.append(reader.head)
        if src != "-":
            file.close()
        return reader

    def _select(self, src: str, opened: Reader) -> Iterator[Record]:
        if src == "-":
            yield from self._wanted(opened)
            return
        with open_source(src) as file:
            if self._keys is None or not file.seekable():
                yield from self._wanted(Reader(file, src))
            else:
                index = Index(file, src)
                yield from (index.fetch(key) for key in self._keys if key in index)

    def _wanted(self, reader: Reader) -> Iterator[Record]:
        return (record for record in reader if self._keys is None or record.key in self._keys)

    def _blame(self, fault: Fault) -> None:
        if self._strict:
            raise fault
        self._tell(str(fault))
        self._codes.append(fault.code)
