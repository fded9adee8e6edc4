"""Blocks of delimited text, and the columns that pyarrow cuts out of them.

Without a quote in sight a block is cut at its last line, and parsed alone, which is fast. From the first quote on, pyarrow
reads on by itself, since a cell may then go on in the next line. Not here: forms, and what the header says.
"""

import codecs
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from kvtools.artifact.delimited import split_rows
from kvtools.errors import Corrupt

UNDECODED = "\ufffd"  # stands for bytes that are not UTF-8

_SEPARATOR = "\x1f"  # the ASCII unit separator, which text does not hold
_BLOCK_BYTES = 8 << 20
_HEAD_BYTES = 1 << 20  # what is looked at before rows are read
_BLANKS = re.compile(rb"[ \t]+")


@dataclass
class Parsed:
    """The wanted columns of some rows, as strings, and the rows left out: (row of the file from 0, cells it has).

    undecoded: the rows of these, from 0, in which a cell is no UTF-8; it holds U+FFFD then.
    """

    cells: list[Any]
    ragged: list[tuple[int, int]] = field(default_factory=list)
    undecoded: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


class TextBlocks:
    """Text in UTF-8, read once. n_inner_lines: those that are blank or lie within quotes, as far as was read."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Raises Corrupt where there is no text."""
        self._file, self._name = file, name
        self._rest = file.read(_BLOCK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n")
        self.n_inner_lines = 0
        if not self._rest.strip() or "\0" in self.first_line:
            raise Corrupt(f"{name}: this is {'not text' if self._rest.strip() else 'empty'}. Give a table.")

    @property
    def first_line(self) -> str:
        """The first line, without its end."""
        return self._rest[:_HEAD_BYTES].splitlines()[0].decode("utf-8", "replace")

    @property
    def has_more(self) -> bool:
        """Whether there is more than what was taken."""
        return bool(self._rest.strip())

    def rows(self, mark: str, *, is_quoted: bool, n: int) -> list[list[str]]:
        """The cells of the first n rows, fewer where there are fewer. They stay."""
        rows = self._first_rows(mark, is_quoted=is_quoted)
        found: list[list[str]] = []
        with suppress(Corrupt):  # a row that goes on beyond what is looked at here
            found.extend(cells for cells, _ in islice(rows, n))
        return found

    def take_header(self, mark: str, *, is_quoted: bool) -> list[str]:
        """The cells of the first row, which is then no row any more."""
        cells, n_bytes = next(self._first_rows(mark, is_quoted=is_quoted))
        self._rest = self._rest[n_bytes:]
        return cells

    def as_file(self) -> BinaryIO:
        """All bytes that are left, as a file."""
        return cast("BinaryIO", io.BufferedReader(_Chained(self._rest, self._file), 1 << 16))

    def parsed(self, columns: Sequence[int], mark: str, *, n_columns: int = 1, is_quoted: bool = False) -> Iterator[Parsed]:
        """These columns, block after block. mark: what separates columns; empty for whole lines.

        Raises Corrupt for a quote left open, and for rows longer than 8 MiB.
        """
        reader = _Parser(self._name, columns, mark, n_columns, is_quoted=is_quoted)
        for block in self._whole_lines(reader):
            if is_quoted and b'"' in block:
                text = _Chained(block + self._rest, self._file, reader.last_row)
                n_rows = reader.n_rows
                yield from reader.quoted(text)
                self.n_inner_lines = text.n_lines - 1 - (reader.n_rows - n_rows)  # one is ours
                return
            yield reader.plain(block)

    def _whole_lines(self, reader: "_Parser") -> Iterator[bytes]:
        while True:
            more = self._file.read(_BLOCK_BYTES)
            if more and not more.endswith(b"\n") and b"\n" in more:
                more += self._file.readline(_BLOCK_BYTES)
            block, self._rest = self._rest + more if self._rest else more, b""
            if not more:
                if block:
                    yield block
                return
            cut = block.rfind(b"\n" if b"\n" in block else b"\r") + 1
            if not cut and len(block) > _BLOCK_BYTES:
                raise reader.too_long()
            if cut < len(block):
                block, self._rest = block[:cut], block[cut:]
            if block:
                yield block

    def _first_rows(self, mark: str, *, is_quoted: bool) -> Iterator[tuple[list[str], int]]:
        """The cells of each of the first rows, and the bytes up to its end."""
        head = self._rest[:_HEAD_BYTES]
        lines = head.splitlines(keepends=True)
        if len(head) == _HEAD_BYTES and len(lines) > 1:
            lines.pop()  # it is cut
        n_bytes = 0

        def texts() -> Iterator[str]:
            nonlocal n_bytes
            for line in lines:
                n_bytes += len(line)
                yield line.decode("utf-8", "replace")

        if is_quoted:
            yield from ((cells, n_bytes) for _, cells in split_rows(texts(), mark, self._name) if cells)
        else:
            yield from (
                (text.split() if mark in ("", " ") else text.rstrip("\r\n").split(mark), n_bytes)
                for text in texts()
                if text.strip()
            )


class _Parser:
    """What pyarrow is told about one table, and how many rows it has read."""

    def __init__(self, name: str, columns: Sequence[int], mark: str, n_columns: int, *, is_quoted: bool) -> None:
        self._name, self._mark, self.n_rows, self._decoder = name, mark, 0, _Decoder()
        self._ragged: list[tuple[int, int]] = []
        self._open_at: int | None = None  # the row in which a quote is open at the end
        # pyarrow takes an open quote for one long cell; a row of our own at the end is then missing from what it gives
        self.last_row = ("\n" + mark.join([_SEPARATOR] * n_columns)).encode()
        titles = [f"f{n}" for n in range(n_columns)]
        wanted = [titles[n] for n in columns]
        self._read = {"column_names": titles, "use_threads": False}
        self._parse = csv.ParseOptions(
            delimiter=mark if len(mark) == 1 and mark != " " else _SEPARATOR,
            quote_char='"' if is_quoted else False,
            newlines_in_values=is_quoted,
            invalid_row_handler=self._leave_out,
        )
        self._convert = csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.binary()), include_columns=wanted, null_values=[""],
            strings_can_be_null=True, quoted_strings_can_be_null=True,
        )  # fmt: skip

    def plain(self, block: bytes) -> Parsed:
        """Whole lines without quotes."""
        if self._mark == "::":
            block = block.replace(b"::", _SEPARATOR.encode())
        elif self._mark == " ":
            block = b"\n".join(_BLANKS.sub(_SEPARATOR.encode(), line.strip()) for line in block.splitlines())
        block = self._decoder.mended(block, is_last=True)
        self._begin = self.n_rows
        options = csv.ReadOptions(block_size=len(block) + 1, **self._read)
        try:
            read = csv.read_csv(pa.BufferReader(block), options, self._parse, self._convert)
        except pa.ArrowInvalid as fault:
            raise self._refused(fault) from None
        return self._parsed(read.columns)

    def quoted(self, text: "_Chained") -> Iterator[Parsed]:
        """Text with quotes, to its end, which is `last_row`."""
        self._begin, before = self.n_rows, None
        text.decoder = self._decoder
        try:
            batches = csv.open_csv(text, csv.ReadOptions(block_size=_BLOCK_BYTES, **self._read), self._parse, self._convert)
            for batch in batches:
                if before is not None and len(before):
                    yield self._parsed(before.columns)
                before = batch if len(batch) else before
        except pa.ArrowInvalid as fault:
            self.n_rows += 0 if before is None else len(before)  # a batch waits for the next one to be passed on
            raise self._refused(fault) from None
        last = None if before is None or not len(before) else [column[-1].as_py() for column in before.columns]
        if self._open_at is None and (last is None or set(last) != {_SEPARATOR.encode()}):
            self._open_at = self.n_rows + len(self._ragged) + (0 if before is None else len(before)) - 1
        if self._open_at is not None:
            raise Corrupt(f"{self._name}: row {self._open_at + 1}: a quote is opened and never closed. Close it or remove it.")
        assert before is not None, "else a quote is open"
        yield self._parsed(before.slice(0, len(before) - 1).columns)

    def too_long(self) -> Corrupt:
        """The refusal of a row that does not end."""
        return Corrupt(
            f"{self._name}: row {self.n_rows + 1}: a row is longer than 8 MiB. Close the quote that may be open there."
        )

    def _refused(self, fault: Exception) -> Corrupt:
        if "straddl" in str(fault):
            return self.too_long()
        reason = " ".join(str(fault).split()).rstrip(".")
        return Corrupt(f"{self._name}: {reason}. Repair the file.")

    def _leave_out(self, row: Any) -> str:
        number = self._begin + row.number - 1
        if _SEPARATOR in row.text and self._mark == self._parse.delimiter:
            self._open_at = number
        self._ragged.append((number, row.actual_columns if row.text.strip() else 0))
        return "skip"

    def _parsed(self, columns: Sequence[Any]) -> Parsed:
        """The next rows, with those among them that were left out."""
        whole = [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns]
        n_rows = len(whole[0])
        end, n_ragged = self.n_rows + n_rows, 0
        while n_ragged < len(self._ragged) and self._ragged[n_ragged][0] <= end:
            n_ragged += 1
            end += 1
        ragged, self._ragged = self._ragged[:n_ragged], self._ragged[n_ragged:]
        self.n_rows = end
        undecoded = np.zeros(n_rows, bool)
        cells = [column.cast(pa.string()) for column in whole]
        for column in cells if self._decoder.has_mended else ():
            undecoded |= pc.match_substring(column, UNDECODED).fill_null(False).to_numpy(zero_copy_only=False)
        return Parsed(cells, ragged, np.flatnonzero(undecoded))


class _Decoder:
    """Bytes that are not UTF-8, replaced by U+FFFD before pyarrow sees them: of a row with cells too many it decodes the text
    itself, and gives up the file where it cannot. has_mended: whether there were any."""

    def __init__(self) -> None:
        self.has_mended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_between = True  # two characters

    def mended(self, piece: bytes, *, is_last: bool = False) -> bytes:
        """The next bytes in UTF-8; those of a character that is not whole yet wait for the next piece. is_last: none waits."""
        if self._is_between and piece.isascii():
            return piece
        text = self._decoder.decode(piece, final=is_last)
        self._is_between = not self._decoder.getstate()[0]
        self.has_mended |= UNDECODED in text
        return text.encode()


class _Chained(io.RawIOBase):
    """Some bytes, then a file, then some bytes, through a decoder if there is one. Closing it leaves the file open. n_lines:
    those that were read."""

    def __init__(self, first: bytes, file: BinaryIO, last: bytes = b"") -> None:
        self._parts = [io.BytesIO(first), file, io.BytesIO(last)]
        self.decoder: _Decoder | None = None
        self._ahead = b""
        self.n_lines = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._parts and not self._ahead:
            piece = self._parts[0].read(len(buffer))
            if not piece:
                self._parts.pop(0)
            self._ahead = self.decoder.mended(piece, is_last=not self._parts) if self.decoder else piece
        piece, self._ahead = self._ahead[: len(buffer)], self._ahead[len(buffer) :]
        buffer[: len(piece)] = piece
        self.n_lines += piece.count(b"\n")
        return len(piece)
