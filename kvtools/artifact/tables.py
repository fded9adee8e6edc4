"""Large tables, read in batches of rows: CSV, TSV, RecBole's atomic files, lines of words, JSON rows and parquet.

pyarrow parses; it is imported in artifact/ only. The first bytes decide what a file is, compressed or not. A row with too many
or too few cells is left out and counted. A quote that is opened and never closed is refused, with the row. Text that cannot be
decoded loses the cell, not the file. Memory: a batch, which is 8 MiB of text.

Atomic files (recbole.io, "Atomic Files") are tab-separated, unquoted, and have a type in each column's name:
`user_id:token`, `title:token_seq`, `rating:float`. Not here: what columns mean.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kvtools.artifact.columns import Column, RowNames, Table
from kvtools.artifact.containers import compression_of, is_parquet, refuse_binary, text_of, uncompressed
from kvtools.artifact.documents import read_documents
from kvtools.artifact.table_text import TextBlocks
from kvtools.errors import Corrupt, raising
from kvtools.skipped import SkippedRows

Format = Literal["auto", "csv", "tsv", "atomic", "sequence", "json", "parquet"]

FORMS = {
    "csv": "CSV", "tsv": "TSV", "atomic": "an atomic file", "sequence": "lines of words", "json": "JSON", "parquet": "parquet",
}  # fmt: skip
_MARKS = ("::", "\t", ",", ";", "|")  # what separates columns: the one that the first line has most often
_TYPED = re.compile(r"^(?P<name>.+):(?P<type>token|token_seq|float|float_seq)$")
_N_SAMPLED = 1000  # JSON rows whose fields are the columns
_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class Batch:
    """Some rows in file order. columns: by name, pyarrow arrays; strings from text, of any type from parquet.

    first: the row of the file, from 0, that the first one is. left_out: rows among these of the file that are not in it.
    """

    columns: dict[str, Any]
    n_rows: int
    first: int
    left_out: list[int]

    def rows(self, indices: np.ndarray) -> list[int]:
        """The rows of the file, from 0, of these rows of the batch, int64 (m,), in order."""
        numbers = np.arange(self.first, self.first + self.n_rows + len(self.left_out))
        kept = np.delete(numbers, np.array(self.left_out, np.int64) - self.first) if self.left_out else numbers
        return [int(row) for row in kept[indices]]


class ColumnReader:
    """A table of which the columns are known and the rows are not read yet.

    form: what it is. types: column → the type that an atomic file declares, "" elsewhere; no columns where form is sequence.
    skipped: rows left out while reading, known when all batches have been read. lists: a JSON
    object of lists, such as {user: [item, …]}, or of semantic IDs.
    """

    def __init__(
        self, file: BinaryIO, name: str, *, form: Format = "auto", encoding: str = "utf-8", header: Sequence[str] | None = None
    ) -> None:
        """file: buffered, at its first byte. name: what messages call it. form: auto decides by the first line. header: the
        names of the columns of a table that has no header. Raises Corrupt where there is no table."""
        self.name = name
        self.skipped = SkippedRows()
        self.types: dict[str, str] = {}
        self.first_row: list[str] = []
        self.n_lines = 0  # lines of text that begin no row: blank ones among quotes, and those within quotes
        self.undecoded: list[int] = []  # rows of the file, from 0, with a cell that is not UTF-8 and holds U+FFFD
        self.lists: dict[str, Any] | None = None
        self._sample: dict[str, list[str]] = {}
        self.compression = compression_of(file)
        self._titles: list[str] = []
        file = uncompressed(file)
        with raising(Corrupt, self.name, "Get the file again."):
            if is_parquet(file):
                self._open_parquet(file)
            else:
                refuse_binary(file, name, "a table")
                self._open_text(text_of(file, encoding), form, header)

    @property
    def form_name(self) -> str:
        """What messages call the form: `CSV`, `gzip CSV`."""
        return f"{self.compression} {FORMS[self.form]}".strip()

    def table(self, columns: Iterable[str]) -> Table:
        """The wanted columns as strings, once. Raises Corrupt as `batches` does."""
        columns = list(dict.fromkeys(columns))
        rows = RowNames()
        cells: dict[str, list[Any]] = {column: [] for column in columns}
        for batch in self.batches(columns):
            rows.leave_out(batch.left_out)
            for column in columns:
                cells[column].append(as_text(batch.columns[column]))
        names = [f"row {row + 1}" for row in self.undecoded]
        self.skipped.add("rows with letters that are not UTF-8, read as U+FFFD", len(names), names)
        read = {column: Column(pa.chunked_array(cells[column], pa.string())) for column in columns}
        return Table(read, {column: self.types[column] for column in columns}, self.skipped, rows)

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """The wanted columns in batches, once.

        Raises Corrupt where a column is missing or there twice, and for a quote left open.
        """
        for column in columns:
            if column not in self.types:
                raise Corrupt(f"{self.name}: there is no column {column!r} among {', '.join(self.types)}. Name the right one.")
            if self._titles.count(column) > 1:
                raise Corrupt(f"{self.name}: column {column!r} is there twice. Rename one of the two.")
        with raising(Corrupt, self.name, "Get the file again."):
            if self.form == "parquet":
                yield from self._parquet_batches(list(columns))
            elif self.form == "json":
                yield from self._json_batches(list(columns))
            else:
                yield from self._text_batches(list(columns))

    def sample(self) -> dict[str, list[str]]:
        """{column: its cells in some of the first rows}, which stay to be read."""
        return {column: [cell for cell in cells if cell] for column, cells in self._sample.items()}

    def lines(self) -> tuple[Column, np.ndarray]:
        """Lines of words between spaces: all words, and int64 (lines + 1,) where the words of each line begin."""
        words, counts = [pa.array([], pa.string())], [np.zeros(1, np.int64)]
        for parsed in self._blocks.parsed([0], ""):
            split = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(parsed.cells[0]))
            words.append(pc.list_flatten(split))
            counts.append(pc.list_value_length(split).to_numpy(zero_copy_only=False))
        return Column(pa.chunked_array(words)), np.cumsum(np.concatenate(counts), dtype=np.int64)

    def _open_text(self, file: BinaryIO, form: Format, header: Sequence[str] | None) -> None:
        self._blocks = TextBlocks(file, self.name)
        line = self._blocks.first_line
        if form == "auto" and line.lstrip()[:1] in ("{", "["):
            self._open_json(self._blocks.as_file())
            return
        self.first_line = line
        self._mark = _mark(line) if form == "auto" else {"csv": ",", "sequence": ""}.get(form, "\t")
        self.form: Format = form
        if form == "auto":
            self.form = _form(line, self._mark)
        if header is not None and self.form == "sequence":
            self.form, self._mark = "csv", " "
        if self.form == "sequence":
            return
        self.first_row = next(iter(self._blocks.rows(self._mark, is_quoted=self._is_quoted, n=1)), [])
        if header is not None and len(header) != len(self.first_row):
            n_cells = len(self.first_row)
            raise Corrupt(
                f"{self.name}: the first row has {n_cells} cells, and --columns has {len(header)} names. Name every column."
            )
        self._titles = list(header) if header is not None else self._blocks.take_header(self._mark, is_quoted=self._is_quoted)
        for number, title in enumerate(self._titles):
            match = _TYPED.match(title) if self.form == "atomic" else None
            if match:
                self._titles[number] = match["name"]
            self.types[self._titles[number]] = match["type"] if match else ""
        rows = self._blocks.rows(self._mark, is_quoted=self._is_quoted, n=100) if self._blocks.has_more else []
        whole = [row for row in rows if len(row) == len(self._titles)]
        self._sample = {title: [row[n] for row in whole] for n, title in enumerate(self._titles)}

    @property
    def _is_quoted(self) -> bool:
        return self.form == "csv" and self._mark in (",", ";", "|")

    def _text_batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        numbers = [self._titles.index(column) for column in columns]
        reason = "rows with too many or too few cells left out"
        first = 0
        for parsed in self._blocks.parsed(numbers, self._mark, n_columns=len(self._titles), is_quoted=self._is_quoted):
            for row, n_cells in parsed.ragged:
                if n_cells:  # else it is blank
                    self.skipped.skip(reason, f"row {row + 1} has {n_cells}, not {len(self._titles)}")
            left_out = [row for row, _ in parsed.ragged]
            n_rows = len(parsed.cells[0])
            batch = Batch(dict(zip(columns, parsed.cells, strict=True)), n_rows, first, left_out)
            self.undecoded += batch.rows(parsed.undecoded) if len(parsed.undecoded) else []
            yield batch
            first += n_rows + len(left_out)
        self.n_lines = max(0, self._blocks.n_inner_lines)

    def _open_json(self, file: BinaryIO) -> None:
        self.form = "json"
        documents = read_documents(file)
        begin = list(islice(documents, _N_SAMPLED))
        self._documents = chain(begin, documents)
        rows = [row for _, row in begin if isinstance(row, dict)]
        if not rows:
            reason = str(begin[0][1]) if begin and isinstance(begin[0][1], ValueError) else "it holds no JSON object"
            raise ValueError(reason)
        if len(rows) == len(begin) == 1 and rows[0] and (_is_all_lists(rows[0]) or _is_id_index(rows[0])):
            self.form, self.lists = "sequence", rows[0]
            self.first_line = ""
            return
        self._titles = list(dict.fromkeys(name for row in rows for name in row))
        self.types = dict.fromkeys(self._titles, "")
        self._sample = {title: [_cell(row.get(title)) or "" for row in rows[:100]] for title in self._titles}

    def _json_batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        first = 0
        while documents := list(islice(self._documents, _BATCH_ROWS)):
            bad = [n for n, (_, row) in enumerate(documents) if not isinstance(row, dict)]
            for n in bad:
                where, row = documents[n]
                reason = str(row) if isinstance(row, ValueError) else "not an object"
                self.skipped.skip("rows that are not JSON objects left out", f"{where}: {reason}")
            rows = [row for _, row in documents if isinstance(row, dict)]
            cells = {column: pa.array([_cell(row.get(column)) for row in rows], pa.string()) for column in columns}
            yield Batch(cells, len(rows), first, [first + n for n in bad])
            first += len(documents)

    def _open_parquet(self, file: BinaryIO) -> None:
        self.form = "parquet"
        try:
            self._parquet = pq.ParquetFile(file if file.seekable() else io.BytesIO(file.read()))
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"parquet is damaged ({_first_line(error)})") from None
        self._titles = self._parquet.schema_arrow.names
        self.types = dict.fromkeys(self._titles, "")
        head = next(self._parquet.iter_batches(batch_size=100), None)
        self._sample = {} if head is None else {name: as_text(head[name]).to_pylist() for name in self._titles}

    def _parquet_batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        first = 0
        try:
            for batch in self._parquet.iter_batches(batch_size=1 << 18, columns=columns, use_threads=False):
                yield Batch({column: _plain(batch[column]) for column in columns}, len(batch), first, [])
                first += len(batch)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"parquet is damaged ({_first_line(error)})") from None


def as_text(cells: Any) -> Any:
    """Cells of any type as strings: numbers that are whole without a point, lists as JSON; empty strings are null."""
    if pa.types.is_string(cells.type):
        return cells
    if pa.types.is_floating(cells.type):
        whole = pc.equal(cells, pc.floor(cells))
        if pc.all(whole).as_py() is not False and (pc.max(pc.abs(cells)).as_py() or 0) < 1 << 53:
            cells = cells.cast(pa.int64())
    if pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type):
        return cells.cast(pa.string())
    return pa.array([_cell(cell) for cell in cells.to_pylist()], pa.string())


def _plain(cells: Any) -> Any:
    """Cells of parquet as plain numbers, moments or strings; dictionaries and large strings are none."""
    kind = cells.type
    if pa.types.is_dictionary(kind):
        cells = cells.dictionary_decode()
        kind = cells.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)
    if pa.types.is_large_string(kind) or str(kind) == "string_view":
        cells = cells.cast(pa.string())
    elif not is_number and not pa.types.is_string(kind):
        cells = pa.array([_cell(cell) for cell in cells.to_pylist()], pa.string())
    return pc.if_else(pc.equal(cells, ""), None, cells) if pa.types.is_string(cells.type) else cells


def _cell(value: Any) -> str | None:
    """A value of JSON or parquet as the text of a cell, None where it is empty."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _is_all_lists(row: dict[str, Any]) -> bool:
    """Whether a JSON object has a list for each of its keys, and no objects in them."""
    return all(isinstance(value, list) and not any(isinstance(item, dict) for item in value) for value in row.values())


def _is_id_index(row: dict[str, Any]) -> bool:
    """Whether a JSON object has a semantic ID for each item, as one string."""
    return all(isinstance(value, str) and value.startswith("<") and value.endswith(">") for value in row.values())


def _mark(line: str) -> str:
    """What separates the columns of a line; empty where nothing but blanks does."""
    best = max(_MARKS, key=line.count)
    # the rarer marks may stand within the words of a line of words: where they separate, they are as many as blanks
    is_rare = best in (";", "|") or (best == "::" and line.count(best) == 1)
    return best if best in line and not (is_rare and line.count(best) < line.count(" ")) else ""


def _form(line: str, mark: str) -> Format:
    if mark == "\t":
        return "atomic" if any(_TYPED.match(cell) for cell in line.split("\t")) else "tsv"
    if not mark and line.split() and _TYPED.match(line.split(maxsplit=1)[0]):
        return "atomic"  # a single column
    return "csv" if mark else "sequence"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
