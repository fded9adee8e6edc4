"""Items as people keep them, read as terms and numbers: JSON, RecBole's `.item`, CSV and TSV.

JSON is one object, {id: [term, …]}, {id: text} or {id: {field: text or terms or number}}. Terms that come as a list, and the
words of a `token_seq`, are taken whole; a `token` is one term; other text, and all of it where that is asked, is cut into
words of two or more letters or digits. All are lower-cased. Not here: languages written without spaces, stop words, stems.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from kvtools.artifact.columns import ColumnReader
from kvtools.artifact.delimited import as_utf8
from kvtools.errors import Corrupt, Usage
from kvtools.skipped import SkippedRows

_WORD = re.compile(r"\w\w+")
_ID_NAMES = ("item_id", "item", "id", "itemId", "movieId")


@dataclass(frozen=True)
class Catalogue:
    """Items in file order."""

    keys: list[str]  # N
    terms: list[list[str]]  # N lists; empty where nothing is said of an item
    numbers: np.ndarray  # float64 (N, C), NaN where a cell is empty

    def words(self) -> list[list[str]]:
        """The terms cut into words."""
        return [[word for term in terms for word in _WORD.findall(term)] for terms in self.terms]


def read_catalogue(
    file: BinaryIO, name: str, *, text: Sequence[str] = (), numeric: Sequence[str] = (), key: str | None = None
) -> tuple[Catalogue, SkippedRows]:
    """Items from an open, buffered file, and what was found wrong with it.

    text: fields or columns to take terms from; by default every field of JSON that is no number, and every `token_seq`
    column of an atomic file. numeric: those to take numbers from. key: the column that names the item, where it is not
    one of the usual names. Lost: items without a key, items named before, and those with a cell that is no number.
    """
    file = as_utf8(file, name)
    # JSON alone begins with a brace or a bracket; a table's header that does is not worth guessing at
    begin = bytes(file.peek(1)).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]  # type: ignore[attr-defined]
    if begin == b"[":
        raise Corrupt(f"{name}: a JSON list found, one object {{id: ...}} expected.")
    if begin == b"{":
        return _read_json(file, name, text, numeric)
    return _read_table(file, name, text, numeric, key)


def _read_json(file: BinaryIO, name: str, text: Sequence[str], numeric: Sequence[str]) -> tuple[Catalogue, SkippedRows]:
    skipped = SkippedRows()
    try:
        # as pairs, since a dict would hide that an item is named twice
        pairs = json.loads(file.read(), object_pairs_hook=_Pairs)
    except ValueError as fault:
        raise Corrupt(f"{name}: {fault}; one JSON object of items expected.") from None
    seen: dict[str, Any] = {}
    again, unlike, bad = [], [], []
    for key, value in pairs:
        fields = dict(value) if isinstance(value, _Pairs) else {"": value}
        if key in seen:
            again.append(key)
        elif not all(_is_field(field) for field in fields.values()):
            unlike.append(key)
        elif any(_number(fields.get(column)) is None for column in numeric):
            bad.append(key)
        else:
            seen[key] = fields
    skipped.add("items that came before left out", len(again), again)
    skipped.add("items that are not text, terms or fields of these left out", len(unlike), unlike)
    skipped.add("items with a cell that is no number left out", len(bad), bad)
    known = {field for fields in seen.values() for field in fields}
    for field in (*text, *numeric):
        if field not in known:
            raise Usage(f"{name}: no field {field!r} in any item; there are {', '.join(sorted(known - {''})) or 'none'}.")
    wanted = [[fields.get(field) for field in text or fields if text or field not in numeric] for fields in seen.values()]
    terms = [[term for value in values for term in _terms(value)] for values in wanted]
    numbers = [[_number(fields.get(column)) for column in numeric] for fields in seen.values()]
    return Catalogue(list(seen), terms, np.array(numbers, np.float64).reshape(len(seen), len(numeric))), skipped


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs."""


def _is_field(value: Any) -> bool:
    is_scalar = value is None or isinstance(value, str | int | float)
    return is_scalar or (type(value) is list and all(isinstance(term, str) for term in value))


def _terms(value: Any) -> list[str]:
    if isinstance(value, list):
        return [term.lower() for term in value if term]
    return _WORD.findall(value.lower()) if isinstance(value, str) else []


def _number(value: Any) -> float | None:
    """A cell as a number, NaN where it is empty, None where it is no number."""
    if value is None or value == "":
        return float("nan")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _read_table(
    file: BinaryIO, name: str, text: Sequence[str], numeric: Sequence[str], key: str | None
) -> tuple[Catalogue, SkippedRows]:
    table = ColumnReader(file, name)
    if table.form == "sequence":
        raise Corrupt(f"{name}: this is neither JSON nor a table with a header. Give the items as one of the two.")
    types = table.types
    key = key or next((column for column in _ID_NAMES if column in types), None)
    if key is None:
        raise Usage(f"{name}: no item column among {', '.join(types)}. Name it with --id.")
    text = text or [column for column, kind in types.items() if kind == "token_seq" and column not in numeric]
    if not text and not numeric:
        raise Usage(f"{name}: no column to take text from. Name some of {', '.join(types)} with --text.")
    for column in (*text, *numeric):
        if column not in types:
            raise Usage(f"{name}: no column {column!r} among {', '.join(types)}.")
    read = table.table([key, *text, *numeric])
    skipped = read.skipped
    keys = read.columns[key].to_list()
    values = [read.columns[column].numbers() for column in numeric]
    numbers = np.full((len(keys), len(numeric)), np.nan)
    is_bad = np.zeros(len(keys), bool)
    for c, (column, (array, bad)) in enumerate(zip(numeric, values, strict=True)):
        is_bad |= bad
        numbers[:, c] = np.where(read.columns[column].is_empty, np.nan, array)
    first: dict[str, int] = {}
    nameless, again, wrong = [], [], []
    for row, item in enumerate(keys):
        if item is None:
            nameless.append(read.row(row))
        elif item in first:
            again.append(item)
        elif is_bad[row]:
            wrong.append(item)
        else:
            first[item] = row
    skipped.add("rows without an item left out", len(nameless), nameless)
    skipped.add("items that came before left out", len(again), again)
    skipped.add("items with a cell that is no number left out", len(wrong), wrong)
    rows = list(first.values())
    columns = [(types[column], read.columns[column].to_list()) for column in text]
    terms = [[term for kind, cells in columns for term in _terms_of_cell(kind, cells[row])] for row in rows]
    return Catalogue(list(first), terms, numbers[rows]), skipped


def _terms_of_cell(kind: str, cell: str | None) -> list[str]:
    if cell is None:
        return []
    if kind == "token_seq":
        return cell.lower().split()
    return [cell.lower()] if kind == "token" else _WORD.findall(cell.lower())
