"""Delimited text as columns: CSV and TSV with a header, RecBole's atomic files, and lines of words.

pyarrow parses; it is imported here only. Everything is read as strings and turned into numbers where asked, because a
reader that guesses types takes the item `007` for 7, and because a bad cell should be named, not end the run. An empty
cell is null. A row with too many or too few cells is left out and counted.

Atomic files (recbole.io, "Atomic Files") are tab-separated, unquoted, and have a type in each column's name:
`user_id:token`, `title:token_seq`, `rating:float`. Not here: what columns mean; compressed files; other encodings than
UTF-8.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from kvtools.errors import Corrupt
from kvtools.skipped import Findings

Format = Literal["auto", "csv", "tsv", "atomic", "sequence"]

_BLOCK_BYTES = 8 << 20
_MAX_LINE_BYTES = 1 << 20
_TYPED = re.compile(r"^(?P<name>.+):(?P<type>token|token_seq|float|float_seq)$")
_NUMBER = r"^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?$"
_DATE = r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])([ T]([01][0-9]|2[0-3])(:[0-5][0-9]){1,2}([.][0-9]{1,6})?)?Z?$"
_KINDS = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC"))
_BOM = b"\xef\xbb\xbf"
_NO_SEPARATOR = "\x1f"  # the ASCII unit separator, which text does not hold


@dataclass(frozen=True)
class Table:
    """Columns of strings by name, in file order, with the types that an atomic file declares ("" elsewhere)."""

    columns: dict[str, Any]  # pyarrow chunked arrays of strings
    types: dict[str, str]
    findings: Findings
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
        return min((len(column) for column in self.columns.values()), default=0)


def whole(file: BinaryIO) -> BinaryIO:
    """The same text, seekable: a pipe is read to its end first, since its first line may come in pieces."""
    return file if file.seekable() else io.BufferedReader(io.BytesIO(file.read()))


def sniff(file: BinaryIO, name: str) -> Format:
    """The format that the first line looks like; nothing is consumed. Raises Corrupt where there is no text."""
    line = first_line(file, name)
    if "\t" in line:
        return "atomic" if any(_TYPED.match(cell) for cell in line.split("\t")) else "tsv"
    if _TYPED.match(line.split()[0]):
        return "atomic"  # a single column
    return "csv" if "," in line else "sequence"


def header(file: BinaryIO, name: str, form: Format) -> dict[str, str]:
    """Column names and their types from the first line; nothing is consumed."""
    cells = first_line(file, name).split("," if form == "csv" else "\t")
    cells = [cell.strip('"') if form == "csv" else cell for cell in cells]
    matches = [_TYPED.match(cell) if form == "atomic" else None for cell in cells]
    return {
        match["name"] if match else cell: match["type"] if match else "" for cell, match in zip(cells, matches, strict=True)
    }


def read_table(file: BinaryIO, name: str, form: Format, wanted: list[str]) -> Table:
    """The wanted columns of a file that stands before its header, as strings, nulls where cells are empty.

    Raises Corrupt where a column is not there, or where the text cannot be read at all (not UTF-8, an open quote).
    """
    types = header(file, name, form)
    for column in wanted:
        if column not in types:
            raise Corrupt(f"{name}: no column {column!r} among {', '.join(types)}. Name the right one.")
    titles = {column: f"{column}:{types[column]}" if types[column] else column for column in wanted}
    findings = Findings()
    ragged: list[int] = []
    table = _parse(
        file, name, ragged, findings, delimiter="," if form == "csv" else "\t", is_quoted=form == "csv",
        include=list(titles.values())
    )  # fmt: skip
    columns = {column: table[title] for column, title in titles.items()}
    return Table(columns, {column: types[column] for column in wanted}, findings, ragged)


def read_words(file: BinaryIO, name: str) -> tuple[Any, np.ndarray]:
    """Lines of words between spaces: all words (a pyarrow array of strings), and int64 (lines + 1,) where each begins."""
    column = _parse(file, name, [], Findings(), delimiter=_NO_SEPARATOR, is_quoted=False, include=[])["f0"]
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(column))
    counts = pc.list_value_length(words).to_numpy()
    return pc.list_flatten(words), np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def encode(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """A column without nulls as numbers: int32 (n,), and the strings they stand for, by first appearance."""
    if not len(column):
        return np.empty(0, np.int32), np.empty(0, np.dtypes.StringDType())
    encoded = column.dictionary_encode()
    chunks = encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
    # the chunks of one column share one dictionary, which grows: the last chunk's is whole
    words = np.array(chunks[-1].dictionary.to_pylist(), dtype=np.dtypes.StringDType())
    return np.concatenate([chunk.indices.to_numpy() for chunk in chunks]).astype(np.int32, copy=False), words


def numbers(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """A column of strings as numbers: int64 where every cell is whole, else float64; and bool (n,) where a cell is bad:
    no number, or not finite. Bad and empty cells are 0. Dates in ISO 8601 are seconds since 1970, in UTC."""
    empty = column.is_null()
    values = _cast(column, _KINDS)
    if values is None:
        # some cells are bad: what most look like is what all should be
        looks = [pc.fill_null(pc.match_substring_regex(column, pattern), fill_value=False) for pattern in (_NUMBER, _DATE)]
        like = max(looks, key=lambda look: int(pc.sum(look).as_py() or 0))
        values = _cast(pc.if_else(like, column, None), _KINDS)
    if values is None:
        values = pa.nulls(len(column), pa.float64())  # such as the 31st of June
    bad = pc.and_not(values.is_null(), empty).to_numpy()
    if pa.types.is_timestamp(values.type):
        return pc.fill_null(values.cast(pa.int64()), 0).to_numpy() / 1e6, bad
    array = pc.fill_null(values, 0).to_numpy()
    finite = np.isfinite(array)
    return np.where(finite, array, 0), bad | ~finite


def _cast(column: Any, kinds: Sequence[Any]) -> Any:
    """The column as the first of the types that takes all its cells; None where none does."""
    for kind in kinds:
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    return None


def first_line(file: BinaryIO, name: str) -> str:
    """What the file begins with; nothing is consumed. Raises Corrupt where there is no text."""
    begin = file.tell()
    head = file.readline(_MAX_LINE_BYTES)
    file.seek(begin)
    line = head.removeprefix(_BOM).rstrip(b"\r\n")
    if not line.strip() or b"\0" in line:
        raise Corrupt(f"{name}: {'no text' if head else 'nothing'} found, a table expected.")
    return line.decode("utf-8", "replace")


def _parse(
    file: BinaryIO, name: str, ragged: list[int], findings: Findings, *, delimiter: str, is_quoted: bool, include: list[str]
) -> Any:
    def leave_out(row: Any) -> str:
        ragged.append(row.number - 1)  # pyarrow counts the header
        cells = f"row {row.number - 1} has {row.actual_columns}, not {row.expected_columns}"
        findings.add("rows with too many or too few cells left out", 1, [cells])
        return "skip"

    try:
        table = csv.read_csv(
            file,
            # one thread, so that rows are numbered; two were no faster here than one
            csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, autogenerate_column_names=not include),
            csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if is_quoted else False,
                newlines_in_values=is_quoted,
                invalid_row_handler=leave_out,
            ),
            csv.ConvertOptions(
                column_types=dict.fromkeys(include or ["f0"], pa.string()),
                include_columns=include or ["f0"],
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as fault:
        raise Corrupt(f"{name}: {str(fault).splitlines()[0].rstrip('.')}. Mend the file.") from None
    return table
