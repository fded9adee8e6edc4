"""Large delimited tables as columns: CSV and TSV with a header, RecBole's atomic files, and lines of words.

pyarrow parses; it is imported here only. Everything is read as strings and turned into numbers where asked, because a reader
that guesses types takes the item `007` for 7, and because a bad cell should be named, not end the run. An empty cell is null.
A row with too many or too few cells is left out and counted. Encodings and quotes as in delimited.py.

Atomic files (recbole.io, "Atomic Files") are tab-separated, unquoted, and have a type in each column's name:
`user_id:token`, `title:token_seq`, `rating:float`. Not here: what columns mean.
"""

import codecs
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from kvtools.artifact.delimited import as_utf8, read_text, split_rows
from kvtools.errors import Corrupt
from kvtools.skipped import SkippedRows

Format = Literal["auto", "csv", "tsv", "atomic", "sequence"]

_BLOCK_BYTES = 8 << 20
_MAX_LINE_BYTES = 1 << 20
_TYPED = re.compile(r"^(?P<name>.+):(?P<type>token|token_seq|float|float_seq)$")
_NUMBER = r"^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?$"
_DATE = r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])([ T]([01][0-9]|2[0-3])(:[0-5][0-9]){1,2}([.][0-9]{1,6})?)?Z?$"
_NUMBER_TYPES = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC"))
_SEPARATOR = "\x1f"  # the ASCII unit separator, which text does not hold


class ColumnReader:
    """Delimited text of which the first line is known and the rows are not read yet.

    form: csv, tsv or atomic for tables with a header, sequence for lines of words. types: column → the type that an atomic
    file declares, "" elsewhere; no columns where form is sequence.
    """

    def __init__(self, file: BinaryIO, name: str, *, form: Format = "auto", encoding: str = "utf-8") -> None:
        """file: buffered, at its first line; a pipe is read to its end. name: what messages call it. form: auto decides by the
        first line. Raises Corrupt where there is no text, or where the header cannot be read."""
        self._file = as_utf8(file, name, encoding=encoding)
        self._name = name
        self._begin = self._file.tell()
        self.first_line = self._first_line()
        self.form: Format = self._sniff() if form == "auto" else form
        self.types: dict[str, str] = {}
        self._header = self._read_header() if self.form != "sequence" else []

    def table(self, columns: Iterable[str]) -> "Table":
        """The wanted columns, once.

        Raises Corrupt where a column is missing or there twice, for text that cannot be decoded, and for a quote left open.
        """
        columns = list(dict.fromkeys(columns))
        titles = {}
        for column in columns:
            if column not in self.types:
                raise Corrupt(f"{self._name}: there is no column {column!r} among {', '.join(self.types)}. Name the right one.")
            titles[column] = f"{column}:{self.types[column]}" if self.types[column] else column
            if self._header.count(titles[column]) > 1:
                raise Corrupt(f"{self._name}: column {column!r} is there twice. Rename one of the two.")
        table = Table({}, {column: self.types[column] for column in columns}, SkippedRows(), [])
        read = self._parse(table, list(titles.values()))
        table.columns.update({column: Column(read[title]) for column, title in titles.items()})
        return table

    def words(self) -> tuple["Column", np.ndarray]:
        """Lines of words between spaces: all words, and int64 (lines + 1,) where the words of each line begin."""
        column = self._parse(Table({}, {}, SkippedRows(), []), [])["f0"]
        words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(column))
        counts = pc.list_value_length(words).to_numpy()
        return Column(pc.list_flatten(words)), np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def _first_line(self) -> str:
        head = self._file.readline(_MAX_LINE_BYTES)
        self._file.seek(self._begin)
        line = head.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")
        if not line.strip() or b"\0" in line:
            raise Corrupt(f"{self._name}: this is {'not text' if head else 'empty'}. Give a table.")
        return line.decode("utf-8", "replace")

    def _sniff(self) -> Format:
        line = self.first_line
        if "\t" in line:
            return "atomic" if any(_TYPED.match(cell) for cell in line.split("\t")) else "tsv"
        if _TYPED.match(line.split()[0]):
            return "atomic"  # a single column
        return "csv" if "," in line else "sequence"

    def _read_header(self) -> list[str]:
        """The titles of the columns as they stand; fills `types`."""
        header = self.first_line.split("\t")
        if self.form == "csv":
            # the header may go on in the next line, within quotes
            lines = codecs.iterdecode(self._file, "utf-8-sig", "replace")
            _, header = next(split_rows(lines, ",", self._name))
            self._file.seek(self._begin)
        for title in header:
            match = _TYPED.match(title) if self.form == "atomic" else None
            self.types[match["name"] if match else title] = match["type"] if match else ""
        return header

    def _parse(self, table: "Table", titles: list[str]) -> Any:
        """The columns of these titles as a pyarrow table; `f0`, whole lines, where there are no titles."""

        def leave_out(row: Any) -> str:
            table.ragged.append(row.number - 1)  # pyarrow counts the header
            cells = f"row {row.number - 1} has {row.actual_columns}, not {row.expected_columns}"
            table.skipped.add("rows with too many or too few cells left out", 1, [cells])
            return "skip"

        is_quoted = self.form == "csv"
        delimiter = _SEPARATOR if not titles else "," if is_quoted else "\t"
        # pyarrow takes an open quote for one long cell; a row of our own at the end is then missing from what it gives
        last_row = ("\n" + ",".join([_SEPARATOR] * len(self._header))).encode() if is_quoted else b""
        try:
            read = csv.read_csv(
                _Continued(self._file, last_row),
                # one thread, so that rows are numbered; two were no faster here than one
                csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, autogenerate_column_names=not titles),
                csv.ParseOptions(
                    delimiter=delimiter,
                    quote_char='"' if is_quoted else False,
                    newlines_in_values=is_quoted,
                    invalid_row_handler=leave_out,
                ),
                csv.ConvertOptions(
                    column_types=dict.fromkeys(titles or ["f0"], pa.string()),
                    include_columns=titles or ["f0"],
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
        except pa.ArrowInvalid as fault:
            self._refuse()
            reason = "a row is longer than 8 MiB" if "straddl" in str(fault) else str(fault).splitlines()[0].rstrip(".")
            raise Corrupt(f"{self._name}: {reason}. Repair the file.") from None
        if not is_quoted:
            return read
        if not len(read) or any(column[-1].as_py() != _SEPARATOR for column in read.columns):
            self._refuse()
            raise Corrupt(f"{self._name}: a quote is opened and never closed. Close it or remove it.")
        return read.slice(0, len(read) - 1)

    def _refuse(self) -> None:
        """Raise Corrupt with the line of what pyarrow does not take; nothing where a plainer reader finds no fault."""
        self._file.seek(self._begin)
        text = read_text(self._file, self._name)
        if self.form == "csv":
            for _ in split_rows(io.StringIO(text, newline=""), ",", self._name):
                pass


class Column:
    """A column of strings, null where a cell is empty."""

    def __init__(self, cells: Any) -> None:
        """cells: a pyarrow array or chunked array of strings."""
        self._cells = cells if isinstance(cells, pa.ChunkedArray) else pa.chunked_array([cells])

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def is_empty(self) -> np.ndarray:
        """Which cells are null, bool (n,)."""
        return np.asarray(self._cells.is_null().to_numpy())

    def take(self, rows: np.ndarray) -> "Column":
        """The cells of these rows: int64 (m,), or bool (n,) set for the rows to keep."""
        return Column(self._cells.filter(pa.array(rows)) if rows.dtype == bool else self._cells.take(pa.array(rows)))

    def to_list(self) -> list[str | None]:
        """All cells in order."""
        cells: list[str | None] = self._cells.to_pylist()
        return cells

    def matches(self, pattern: str) -> np.ndarray:
        """Which cells match a regular expression (RE2) somewhere, bool (n,); null does not."""
        return np.asarray(pc.fill_null(pc.match_substring_regex(self._cells, pattern), fill_value=False).to_numpy())

    def encode(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers for strings: int32 (n,), and the strings they stand for, by first appearance. Null is the string ""."""
        if not len(self):
            return np.empty(0, np.int32), np.empty(0, np.dtypes.StringDType())
        cells = pc.fill_null(self._cells, "") if self._cells.null_count else self._cells
        chunks = cells.dictionary_encode().chunks
        # the chunks of a column share one dictionary, which grows: that of the last chunk is complete
        words = np.array(chunks[-1].dictionary.to_pylist(), dtype=np.dtypes.StringDType())
        return np.concatenate([chunk.indices.to_numpy() for chunk in chunks]).astype(np.int32, copy=False), words

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """The cells as numbers: int64 (n,) where every cell is whole, else float64; and bool (n,) where a cell is bad: no
        number, or not finite. Bad and empty cells are 0. Dates in ISO 8601 are seconds since 1970, in UTC."""
        values = self._cast(self._cells)
        if values is None:
            # some cells are bad: the type that most cells look like is that of the column
            likeliest = max((self.matches(pattern) for pattern in (_NUMBER, _DATE)), key=np.count_nonzero)
            values = self._cast(pc.if_else(pa.array(likeliest), self._cells, None))
        if values is None:
            values = pa.chunked_array([pa.nulls(len(self), pa.float64())])  # such as the 31st of June
        bad = np.asarray(values.is_null().to_numpy()) & ~self.is_empty
        if pa.types.is_timestamp(values.type):
            return pc.fill_null(values.cast(pa.int64()), 0).to_numpy() / 1e6, bad
        array = pc.fill_null(values, 0).to_numpy()
        finite = np.isfinite(array)
        return np.where(finite, array, 0), bad | ~finite

    @staticmethod
    def _cast(cells: Any) -> Any:
        """The cells in the first type that takes all of them; None where none does."""
        for kind in _NUMBER_TYPES:
            try:
                return cells.cast(kind)
            except pa.ArrowInvalid:
                continue
        return None


@dataclass(frozen=True)
class Table:
    """Columns by name, in the order asked for, with the types that an atomic file declares ("" elsewhere)."""

    columns: dict[str, Column]
    types: dict[str, str]
    skipped: SkippedRows
    ragged: list[int]  # the rows left out, counted as in `row`

    def row(self, n: int) -> str:
        """What row n here, from 0, is called in the file: rows count from 1 after the header."""
        n += 1
        for other in self.ragged:
            if other > n:
                break
            n += 1
        return f"row {n}"

    @property
    def n_rows(self) -> int:
        """Rows that were kept."""
        return min((len(column) for column in self.columns.values()), default=0)


class _Continued(io.RawIOBase):
    """A file and some bytes after its end. Closing it leaves the file open."""

    def __init__(self, file: BinaryIO, rest: bytes) -> None:
        self._file, self._rest = file, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n_bytes: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        if not n_bytes:
            n_bytes = min(len(buffer), len(self._rest))
            buffer[:n_bytes], self._rest = self._rest[:n_bytes], self._rest[n_bytes:]
        return n_bytes
