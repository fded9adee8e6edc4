"""Features of users as numbers of categories, from a table: CSV, TSV and RecBole's `.user`.

Legend: U users, F columns. A code is 0 where a cell is empty or its category unknown, else 1, 2, …: the position of the
cell among the column's sorted words, or, in a column of many numbers, of its bucket. The invariant: read with the same
vocabularies, a cell has the same code in every table. Users are numbered as they first appear in the file.

Not here: sequences within a cell, which are one category; the user's own name as a feature; what the model makes of codes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from kvtools.artifact import source_name
from kvtools.artifact.columns import Column, Table
from kvtools.artifact.files import open_source
from kvtools.artifact.tables import ColumnReader
from kvtools.errors import Corrupt
from kvtools.onerec.interactions.names import NAMES, find_column
from kvtools.skipped import SkippedRows

# ours: OneRec (arXiv 2506.13695) gives each feature of a user an embedding, and does not say how numbers are bucketed
_MOST_NUMBERS = 20  # distinct numbers that are still categories of their own
_N_BUCKETS = 10


@dataclass(frozen=True)
class Vocabulary:
    """The meaning of the codes of one column: its words, sorted, or else the edges between buckets of numbers."""

    name: str
    words: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()  # ascending; a number that equals an edge belongs below it: many zeros are a bucket

    @property
    def n_codes(self) -> int:
        """How many codes there are, 0 included."""
        return len(self.edges) + 2 if self.edges else len(self.words) + 1

    def to_json(self) -> dict[str, Any]:
        """{"name", "words"} or {"name", "edges"}. Keep them in a list: their order is that of the columns of codes."""
        return {"name": self.name, **({"edges": list(self.edges)} if self.edges else {"words": list(self.words)})}

    @classmethod
    def of(cls, fields: Any) -> "Vocabulary":
        """The vocabulary that to_json gave. Raises ValueError for anything else."""
        try:
            vocabulary = cls(fields["name"], tuple(fields.get("words", ())), tuple(fields.get("edges", ())))
            is_sound = all(isinstance(word, str) for word in (vocabulary.name, *vocabulary.words)) and not (
                vocabulary.words and vocabulary.edges
            )
            is_sound &= len(set(vocabulary.words)) == len(vocabulary.words) and bool((np.diff(vocabulary.edges) > 0).all())
            is_sound &= bool(np.isfinite(vocabulary.edges).all())
        except (TypeError, KeyError, AttributeError):
            is_sound = False
        if not is_sound:
            raise ValueError(f"{str(fields)[:80]} is no vocabulary: a name with distinct words, or with rising edges")
        return vocabulary


@dataclass(frozen=True)
class Users:
    """The features of users, in codes."""

    keys: np.ndarray  # strings (U,)
    codes: np.ndarray  # int32 (U, F)
    vocabularies: tuple[Vocabulary, ...]  # F

    @property
    def names(self) -> list[str]:
        """The names of the F columns."""
        return [vocabulary.name for vocabulary in self.vocabularies]

    def codes_of(self, keys: Iterable[str]) -> np.ndarray:
        """int32 (n, F): the codes of the users of these keys, all 0 for those who are not in the table."""
        row_of = {key: row for row, key in enumerate(self.keys)}
        unknown = np.zeros((1, self.codes.shape[1]), np.int32)
        return np.asarray(np.concatenate([self.codes, unknown])[[row_of.get(str(key), -1) for key in keys]])


def read_users(
    file: BinaryIO,
    name: str,
    *,
    columns: Sequence[str] | None = None,
    vocabularies: Sequence[Vocabulary] | None = None,
    key: str | None = None,
) -> tuple[Users, SkippedRows]:
    """Users from an open, buffered file, and the rows that were skipped or repaired.

    columns: those to read; by default every column except the user's, those without a value, and those with more than half
    as many categories as there are users, which name users rather than describe them. vocabularies: those of another table,
    whose columns are read and coded as they were there. key: the user's column, where it has none of the usual names.

    A column holds numbers where it is declared `float`, or where every cell is a number without leading zeros (007). One with
    more than 20 distinct numbers becomes 10 buckets of about as many users each; fewer where many have the same. Skipped:
    ragged rows, and rows without user. Repaired: rows of a user who has a later one; columns left out; cells that are no
    number among numbers, or lie outside of the vocabulary, which are unknown. Raises Corrupt where there is no user column, no
    such column, or nothing is left.
    """
    assert columns is None or vocabularies is None, "a vocabulary names its column"
    text = ColumnReader(file, name)
    if text.form == "sequence":
        raise Corrupt(f"{name}: this is no table of users. Give one with a header and more than one column.")
    key = key or find_column("user", text.types, name=name)
    if key is None:
        raise Corrupt(f"{name}: there is no user column among {', '.join(text.types)}. Rename it {NAMES['user'][0]}.")
    if vocabularies is not None:
        columns = [vocabulary.name for vocabulary in vocabularies]
    wanted = list(dict.fromkeys(columns if columns is not None else (column for column in text.types if column != key)))
    read = text.table([key, *wanted])
    keys, rows = _latest(read, key)
    cells = {column: read.columns[column].take(rows) for column in wanted}
    if vocabularies is None:
        vocabularies = [_vocabulary(column, cells[column], is_float=read.types[column] == "float") for column in wanted]
    if columns is None:
        vocabularies = _worthwhile(vocabularies, len(keys), read.skipped)
    if not len(keys) or not vocabularies:
        reasons = "".join(
            f" {line[0].upper()}{line[1:]}." for line in [*read.skipped.lines(skipped=True), *read.skipped.lines(skipped=False)]
        )
        raise Corrupt(f"{name}: no feature of any user is left to use.{reasons} Repair the table.")
    codes = [_encode(vocabulary, cells[vocabulary.name], read, rows) for vocabulary in vocabularies]
    return Users(keys, np.stack(codes, axis=1), tuple(vocabularies)), read.skipped


def open_users(src: str | None, vocabularies: Sequence[Vocabulary] | None = None) -> tuple[Users | None, SkippedRows]:
    """Users from a path or `-`, and the rows that were skipped; None where src is None."""
    return (None, SkippedRows()) if src is None else read_users(open_source(src), source_name(src), vocabularies=vocabularies)


def _latest(read: Table, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Users by first appearance, strings (U,), and the last row of each, int64 (U,)."""
    is_named = ~read.columns[key].is_empty
    nameless = np.flatnonzero(~is_named)
    read.skipped.add("rows without user left out", len(nameless), map(read.row, nameless.tolist()))
    users, keys = read.columns[key].take(is_named).encode()
    rows = np.flatnonzero(is_named)
    last = np.zeros(len(keys), np.int64)
    last[users] = rows  # of equal indices numpy keeps the last
    earlier = rows[last[users] != rows]
    what = "rows of a user who has a later one, which stays"
    read.skipped.add(what, len(earlier), map(read.row, earlier.tolist()), is_skipped=False)
    return keys, last


def _vocabulary(name: str, cells: Column, *, is_float: bool) -> Vocabulary:
    numbers, bad = cells.numbers()
    is_padded = bool(cells.matches("^[+-]?0[0-9]").any())
    values = numbers[~bad & ~cells.is_empty]
    if (is_float or not (bad.any() or is_padded)) and len(np.unique(values)) > _MOST_NUMBERS:
        inner = np.arange(1, _N_BUCKETS) / _N_BUCKETS
        return Vocabulary(name, edges=tuple(np.unique(np.quantile(values, inner)).tolist()))
    return Vocabulary(name, words=tuple(sorted(cells.take(~cells.is_empty).encode()[1].tolist())))


def _worthwhile(vocabularies: Sequence[Vocabulary], n_users: int, skipped: SkippedRows) -> list[Vocabulary]:
    """The vocabularies that tell users apart without naming each."""
    empty = [vocabulary.name for vocabulary in vocabularies if vocabulary.n_codes == 1]
    naming = [vocabulary.name for vocabulary in vocabularies if 2 * len(vocabulary.words) > n_users and len(vocabulary.words)]
    skipped.add("columns without a value left out", len(empty), empty, is_skipped=False)
    skipped.add("columns with more than half as many categories as users left out", len(naming), naming, is_skipped=False)
    return [vocabulary for vocabulary in vocabularies if vocabulary.name not in {*empty, *naming}]


def _encode(vocabulary: Vocabulary, cells: Column, read: Table, rows: np.ndarray) -> np.ndarray:
    """int32 (U,): the codes of a column; counts the cells that should have one and do not. rows: those of the cells."""
    is_there = ~cells.is_empty
    if vocabulary.edges:
        numbers, bad = cells.numbers()
        codes = 1 + np.searchsorted(vocabulary.edges, numbers, side="left")
        codes[bad | ~is_there] = 0
        what = f"cells of {vocabulary.name} that are no number, taken as unknown"
    else:
        code_of = {word: code for code, word in enumerate(vocabulary.words, start=1)}
        words, distinct = cells.encode()
        codes = np.array([code_of.get(word, 0) for word in distinct.tolist()], np.int32)[words]
        codes[~is_there] = 0
        what = f"cells of {vocabulary.name} that are in no known category, taken as unknown"
    unknown = np.sort(rows[(codes == 0) & is_there])
    read.skipped.add(what, len(unknown), map(read.row, unknown.tolist()), is_skipped=False)
    return codes.astype(np.int32)
