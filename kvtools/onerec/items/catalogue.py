"""Items as people keep them, read as terms, numbers and titles: JSON, RecBole's `.item`, CSV and TSV.

JSON is one object, {id: [term, …]}, {id: text} or {id: {field: text or terms or number}}. Terms that come as a list, and the
words of a `token_seq`, are taken whole; a `token` is one term; other text is cut into words (words.py). All are lower-cased.
"""

import codecs
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from kvtools.artifact import source_name
from kvtools.artifact.containers import is_parquet, peek, uncompressed, without_utf16
from kvtools.artifact.documents import read_documents
from kvtools.artifact.files import open_source
from kvtools.artifact.json_text import read_json
from kvtools.artifact.tables import ColumnReader
from kvtools.errors import Corrupt, raising
from kvtools.onerec.interactions.names import find_column
from kvtools.onerec.items.words import words_of
from kvtools.skipped import SkippedRows

_ID_NAMES = ("id",)
_TITLE_NAMES = ("title", "movie_title", "item_title", "name")


@dataclass(frozen=True)
class Catalogue:
    """Items in file order."""

    keys: list[str]  # N
    terms: list[list[str]]  # N lists; empty where an item has no text
    numbers: np.ndarray  # float64 (N, C), NaN where a cell is empty

    def words(self) -> list[list[str]]:
        """The terms cut into words."""
        return [[word for term in terms for word in words_of(term)] for terms in self.terms]


def read_catalogue(
    file: BinaryIO, name: str, *, text: Sequence[str] = (), numeric: Sequence[str] = (), key: str | None = None
) -> tuple[Catalogue, SkippedRows]:
    """Items from an open, buffered file, and the rows that were skipped.

    text: fields or columns to take terms from; by default every field of JSON that is no number, and every `token_seq`
    column of an atomic file. numeric: those to take numbers from. key: the column of the item's key, where it has none of
    the usual names. Skipped: items without a key, with a key that came before, and with a cell that is no number. Raises
    ValueError for fields and columns that are missing, Corrupt for other files.
    """
    with raising(Corrupt, name, "Get the file again."):
        file = file if is_parquet(file) else without_utf16(uncompressed(file))
    # JSON alone begins with a brace or a bracket; a table's header that does is not worth guessing at
    if peek(file).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _read_json(file, name, text, numeric, key)
    return _read_table(file, name, text, numeric, key)


def _read_json(
    file: BinaryIO, name: str, text: Sequence[str], numeric: Sequence[str], column: str | None
) -> tuple[Catalogue, SkippedRows]:
    skipped = SkippedRows()
    pairs = _json_items(file, name, column, skipped)
    fields_of: dict[str, Any] = {}
    again, unlike, bad = [], [], []
    for key, value in pairs:
        fields = dict(value) if isinstance(value, _Pairs | dict) else {"": value}
        if text:  # fields that nobody asked for may hold anything
            fields = {field: fields[field] for field in (*text, *numeric) if field in fields}
        if key in fields_of:
            again.append(key)
        elif not text and len(fields) > 1:
            fields_of[key] = {field: inner for field, inner in fields.items() if _is_field(inner)}
        elif not all(_is_field(field) for field in fields.values()):
            unlike.append(key)
        elif any(_number(fields.get(column)) is None for column in numeric):
            bad.append(key)
        else:
            fields_of[key] = fields
    skipped.add("items that came before left out", len(again), again)
    skipped.add("items that are not text, terms or fields of these left out", len(unlike), unlike)
    skipped.add("items with a cell that is no number left out", len(bad), bad)
    known = {field for fields in fields_of.values() for field in fields}
    for field in (*text, *numeric):
        if field not in known:
            there = f"the fields are {', '.join(sorted(known - {''}))}" if known - {""} else "items have no named fields"
            raise ValueError(f"no item has a field {field!r}; {there}")
    wanted = [[fields.get(field) for field in text or fields if text or field not in numeric] for fields in fields_of.values()]
    terms = [[term for value in values for term in _terms(value)] for values in wanted]
    numbers = [[_number(fields.get(column)) for column in numeric] for fields in fields_of.values()]
    return Catalogue(list(fields_of), terms, np.array(numbers, np.float64).reshape(len(fields_of), len(numeric))), skipped


def _json_items(file: BinaryIO, name: str, column: str | None, skipped: SkippedRows) -> Iterator[tuple[str, Any]]:
    """The key and the value of each item: of one JSON object {id: value}, or of rows that have a column of the key."""
    data = file.read().removeprefix(codecs.BOM_UTF8)
    try:
        # as pairs, since a dict would hide that an item is named twice
        whole = read_json(data, object_pairs_hook=_Pairs)
    except ValueError as fault:
        whole, reason = None, fault
    if isinstance(whole, _Pairs) and not (find_column("item", [key for key, _ in whole], name=name) and _is_row(whole)):
        yield from whole
        return
    with raising(Corrupt, name, "Repair the file."):
        rows = list(read_documents(io.BufferedReader(io.BytesIO(data))))
    for where, row in rows:
        if not isinstance(row, dict):
            if whole is None and where in ("line 1", "entry 0"):
                raise Corrupt(f"{name}: this is neither one JSON object of items nor JSON rows ({reason}). Repair the file.")
            skipped.skip("rows that are not JSON objects left out", where)
            continue
        key = column or find_column("item", row, name=name, names=_ID_NAMES)
        if key is None or row.get(key) in (None, ""):
            skipped.skip("rows without an item left out", where)
        else:
            yield str(row[key]), {field: value for field, value in row.items() if field != key}


def _is_row(pairs: "_Pairs") -> bool:
    """Whether a JSON object is one row, and not items: its values are of several types."""
    return len({type(value) for _, value in pairs}) > 1


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs."""


def _is_field(value: Any) -> bool:
    is_scalar = value is None or isinstance(value, str | int | float)
    return is_scalar or (type(value) is list and all(isinstance(term, str) for term in value))


def _terms(value: Any) -> list[str]:
    if isinstance(value, list):
        return [term.lower() for term in value if term]
    return words_of(value.lower()) if isinstance(value, str) else []


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
    there = ", ".join(types)
    key = key or find_column("item", types, name=name, names=_ID_NAMES)
    text = text or [column for column, kind in types.items() if kind == "token_seq" and column not in numeric]
    missing = next((column for column in (*text, *numeric) if column not in types), None)
    if key is None:
        raise ValueError(f"there is no item column among {there}")
    if not text and not numeric:
        raise ValueError(f"no column holds text by its type; the columns are {there}")
    if missing:
        raise ValueError(f"there is no column {missing!r} among {there}")
    read = table.table([key, *text, *numeric])
    numbers = np.full((read.n_rows, len(numeric)), np.nan)
    is_bad = np.zeros(read.n_rows, bool)
    for c, column in enumerate(numeric):
        values, is_bad_here = read.columns[column].numbers()
        is_bad |= is_bad_here
        numbers[:, c] = np.where(read.columns[column].is_empty, np.nan, values)
    row_of: dict[str, int] = {}
    nameless, again, bad = [], [], []
    for row, item in enumerate(read.columns[key].to_list()):
        if item is None:
            nameless.append(read.row(row))
        elif item in row_of:
            again.append(item)
        elif is_bad[row]:
            bad.append(item)
        else:
            row_of[item] = row
    read.skipped.add("rows without an item left out", len(nameless), nameless)
    read.skipped.add("items that came before left out", len(again), again)
    read.skipped.add("items with a cell that is no number left out", len(bad), bad)
    rows = list(row_of.values())
    columns = [(types[column], read.columns[column].to_list()) for column in text]
    terms = [[term for kind, cells in columns for term in _terms_of_cell(kind, cells[row])] for row in rows]
    return Catalogue(list(row_of), terms, numbers[rows]), read.skipped


def _terms_of_cell(kind: str, cell: str | None) -> list[str]:
    if cell is None:
        return []
    if kind == "token_seq":
        return cell.lower().split()
    return [cell.lower()] if kind == "token" else words_of(cell.lower())


def read_titles(src: str) -> tuple[dict[str, str], SkippedRows]:
    """{item: title}, the first title of each item, and the rows that were skipped: from CSV, TSV, a RecBole `.item` or parquet,
    or from JSON as `read_catalogue` takes it, where a text, or terms, of an item without fields are its title.

    Raises Corrupt where the column of the item or of the title is missing.
    """
    name, file = source_name(src), open_source(src)
    with raising(Corrupt, name, "Get the file again."):
        file = file if is_parquet(file) else without_utf16(uncompressed(file))
    if peek(file).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        skipped = SkippedRows()
        pairs: list[tuple[str | None, str | None]] = [
            (key, _title(value)) for key, value in _json_items(file, name, None, skipped)
        ]
    else:
        text = ColumnReader(file, name)
        item = find_column("item", text.types, name=name, names=_ID_NAMES)
        title = next((column for column in text.types if column.lower() in _TITLE_NAMES), None)
        if item is None or title is None:
            there = ", ".join(text.types) or "none"
            raise Corrupt(f"{name}: the columns are {there}, and item_id and title are needed. Rename them.")
        read = text.table([item, title])
        skipped = read.skipped
        pairs = list(zip(read.columns[item].to_list(), read.columns[title].to_list(), strict=True))
    titles: dict[str, str] = {}
    for key, of_item in pairs:
        if not key:
            skipped.skip("titles without an item left out", of_item or "")
        elif titles.setdefault(key, of_item or "") != (of_item or ""):
            skipped.skip("other titles of an item that had one left out", key)
    return titles, skipped


def _title(value: Any) -> str | None:
    """The title of an item of JSON: its field of that name, its text, or its terms."""
    if isinstance(value, _Pairs | dict):
        fields = {field.lower(): inner for field, inner in dict(value).items()}
        value = next((fields[name] for name in _TITLE_NAMES if name in fields), None)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return None if value is None else str(value)
