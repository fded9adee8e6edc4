"""Delimited text, read in one way by every command: rows of fields, lists, whole texts; columns of large tables in columns.py.

The same everywhere: a byte-order mark decides the encoding, and else `encoding` does; text that cannot be decoded and a quote
that is opened and never closed are refused with the line. Blank lines mean nothing.

Text may be compressed. Not here: what fields mean.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from kvtools.artifact.containers import refuse_binary, uncompressed
from kvtools.errors import Corrupt, raising


@dataclass(frozen=True)
class Rows:
    """A small table as rows of fields, and the line where each row begins, from 1. Iterate for (line, fields)."""

    name: str
    header: list[str]  # empty where the table has none
    lines: list[int]
    fields: list[list[str]]
    header_line: int = 1  # the line where the header stands

    def __len__(self) -> int:
        return len(self.fields)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        return iter(zip(self.lines, self.fields, strict=True))

    def index(self, *names: str) -> int | None:
        """The column of the first of these names that the header has, whatever its case; None where it has none of them."""
        titles = [title.strip().lower() for title in self.header]
        return next((titles.index(name.lower()) for name in names if name.lower() in titles), None)

    def numbers(self, columns: Sequence[int]) -> np.ndarray:
        """float64 (n, len(columns)): the fields of these columns, NaN where one is empty. Raises Corrupt with the line of the
        first that is no number."""
        values = np.empty((len(self), len(columns)))
        for row, fields in enumerate(self.fields):
            for i, column in enumerate(columns):
                try:
                    values[row, i] = float(fields[column]) if fields[column].strip() else np.nan
                except ValueError:
                    has_comma = is_number(_with_point(fields[column]))
                    remedy = "Write its decimals after a point." if has_comma else "Correct the line."
                    raise Corrupt(f"{self.cell(row, column)}: {fields[column]!r} is not a number. {remedy}") from None
        return values

    def finite(self, columns: Sequence[int]) -> np.ndarray:
        """float32 (n, len(columns)): as `numbers`, which raises Corrupt for a field that is empty, NaN or infinite, too."""
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite in it
            values = self.numbers(columns).astype(np.float32)
        if not np.isfinite(values).all():
            row, i = np.argwhere(~np.isfinite(values))[0].tolist()
            field = self.fields[row][columns[i]].strip()
            fault = f"{field!r} is not a finite number" if field else "there is no number"
            raise Corrupt(f"{self.cell(row, columns[i])}: {fault}. Correct the line, or leave it out.")
        return values

    def require_fields(self) -> None:
        """Raises Corrupt where each of several lines is one field, since another separator stands in it."""
        if len(self) and len(self.fields[0]) == 1 and len(self) + len(self.header) > 1:
            line, fields = (self.header_line, self.header) if self.header else (self.lines[0], self.fields[0])
            raise Corrupt(
                f"{self.name}: line {line} is {fields[0].strip()[:40]!r}, in which nothing separates fields. Separate them by "
                "semicolons, commas, tabs, bars or blanks."
            )

    def cell(self, row: int, column: int) -> str:
        """Where a field stands: `FILE: line 3: column age`, the column by its title, or else by its number from 1."""
        return f"{self.name}: line {self.lines[row]}: column {self.header[column].strip() if self.header else column + 1}"


def read_rows(
    file: BinaryIO,
    name: str,
    *,
    delimiters: str = ";,\t|",
    has_header: bool | None = None,
    comment: str = "",
    is_ragged: bool = False,
    encoding: str = "utf-8",
    longest: int | None = None,
) -> Rows:
    """All rows of a small table. Blank lines are left out.

    delimiters: the first of these in the first line separates fields, in quotes or without; where none is there, runs of
    blanks and tabs do, and quotes mean nothing. By default semicolons come before commas, which may be of decimals.
    has_header: None where the first row is a header if one of its fields is no number. comment: what follows this mark in a
    line is left out. is_ragged: rows may be shorter or longer than the first.
    longest: letters of a field, by default 131,072, which tells a quote that is left open early.

    Raises Corrupt with the line for text that cannot be decoded, a quote left open and a row of another length; an empty file
    has no rows.
    """
    text = read_text(file, name, encoding=encoding)
    if comment:
        text = "\n".join(line.partition(comment)[0] for line in text.split("\n"))
    first = next((line for line in io.StringIO(text) if line.strip()), "")
    delimiter = next((mark for mark in delimiters if mark in first), "")
    with _field_limit(longest):
        every = list(split_rows(io.StringIO(text, newline=""), delimiter, name))
    rows = [(line, row) for line, row in every if any(map(str.strip, row))]
    for line, row in rows:
        if len(row) != len(rows[0][1]) and not is_ragged:
            raise Corrupt(
                f"{name}: line {line} has {len(row)} fields, and the first row has {len(rows[0][1])}. Correct the line."
            )
    if has_header is None:
        has_header = bool(rows) and any(field.strip() and not is_number(_with_point(field)) for field in rows[0][1])
    header_line, header = rows.pop(0) if has_header and rows else (1, [])
    return Rows(name, header, [line for line, _ in rows], [row for _, row in rows], header_line)


def read_lines(file: BinaryIO, name: str, *, encoding: str = "utf-8") -> list[str]:
    """The lines of a list, such as keys or paths; blank ones are left out. Raises Corrupt where it cannot be decoded."""
    return lines_of(read_text(file, name, encoding=encoding))


def lines_of(text: str) -> list[str]:
    """The lines of a text that are not blank, without their ends and the byte-order marks of joined files."""
    lines = (line.lstrip("\ufeff") for line in re.split("\r\n|[\r\n]", text))
    return [line for line in lines if line.strip()]


def read_text(file: BinaryIO, name: str, *, encoding: str = "utf-8", errors: str = "strict") -> str:
    """All of a text, without its byte-order mark. Raises Corrupt, with the line, where it cannot be decoded.

    errors: as of bytes.decode, for a caller that refuses single lines.
    """
    with raising(Corrupt, name, "Get the file again."):
        if hasattr(file, "peek"):
            file = uncompressed(file)
            refuse_binary(file, name, "text")
        return _decode(file.read(), name, encoding, errors)


def first_letter(file: BinaryIO) -> str:
    """The first letter of a text that is not blank, among its first 64 bytes; empty where there is none. Consumes nothing."""
    head = bytes(file.peek(64)[:64])  # type: ignore[attr-defined]
    return _decode(head, "", "utf-8", "ignore").lstrip()[:1]


def as_utf8(file: BinaryIO, name: str, *, encoding: str = "utf-8") -> BinaryIO:
    """The same text in UTF-8 and seekable: a pipe is read to its end first, since its first line may come in pieces."""
    head = bytes(file.peek(3)[:3])  # type: ignore[attr-defined]
    if _encoding(head, encoding) == "utf-8":
        return file if file.seekable() else io.BufferedReader(io.BytesIO(file.read()))
    return io.BufferedReader(io.BytesIO(_decode(file.read(), name, encoding).encode()))


def is_number(text: str) -> bool:
    """Whether Python reads the text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _with_point(field: str) -> str:
    """A number with a decimal comma, as many countries write it, with a point; it is no title, and refused by its line."""
    return field.replace(",", ".", 1)


@contextmanager
def _field_limit(longest: int | None) -> Iterator[None]:
    """Within it, fields may have so many letters; csv has one limit for the whole process."""
    before = csv.field_size_limit()
    csv.field_size_limit(longest or before)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _encoding(head: bytes, encoding: str) -> str:
    """The encoding of a byte-order mark, or else the given one, by Python's name for it."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8"
    is_utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return "utf-16" if is_utf16 else codecs.lookup(encoding).name


def _decode(data: bytes, name: str, encoding: str, errors: str = "strict") -> str:
    encoding = _encoding(data[:3], encoding)
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode(encoding, errors)
    except UnicodeDecodeError as fault:
        line = data[: fault.start].count(b"\n") + 1
        raise Corrupt(
            f"{name}: line {line} is not {encoding.upper()} text. Convert the file, for example with iconv."
        ) from None


def split_rows(lines: Iterable[str], delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Each row's first line, from 1, and its fields. Raises Corrupt for a quote that is opened and never closed."""
    if not delimiter:
        yield from ((number, line.split()) for number, line in enumerate(lines, start=1))
        return
    is_at_end = False

    def all_lines() -> Iterator[str]:
        nonlocal is_at_end
        yield from lines
        is_at_end = True

    rows = csv.reader(all_lines(), delimiter=delimiter)
    begin = 1
    while True:
        try:
            row = next(rows, None)
        except csv.Error:
            raise Corrupt(
                f"{name}: line {begin}: a field is longer than {csv.field_size_limit()} letters. Close the quote that may be "
                "open there."
            ) from None
        if row is None:
            return
        if is_at_end:  # csv asked for another line within a row
            raise Corrupt(f"{name}: line {begin}: a quote is opened and never closed. Close it or remove it.")
        yield begin, row
        begin = rows.line_num + 1
