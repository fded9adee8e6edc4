"""Columns of tables: strings with names, null where a cell is empty. What reads them is in tables.py.

Everything is read as strings and turned into numbers where asked, because a reader that guesses types takes the item `007` for
7, and because a bad cell should be named, not end the run. Not here: what columns mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kvtools.artifact.cells import numbers
from kvtools.skipped import SkippedRows


class Column:
    """A column of strings, null where a cell is empty."""

    def __init__(self, cells: Any) -> None:
        """cells: a pyarrow array or chunked array of strings."""
        self._cells = cells if isinstance(cells, pa.ChunkedArray) else pa.chunked_array([cells])

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> Self:
        """From a list."""
        return cls(pa.array(texts, pa.string()))

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def array(self) -> Any:
        """The cells as one pyarrow array."""
        return self._cells.combine_chunks()

    @property
    def is_empty(self) -> np.ndarray:
        """Which cells are null, bool (n,)."""
        return np.asarray(self._cells.is_null().to_numpy()) if self._cells.null_count else np.zeros(len(self), bool)

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
        number, or not finite. Bad and empty cells are 0. Dates are seconds since 1970; see cells.py."""
        values, is_bad, _ = numbers(self._cells.combine_chunks())
        return values, is_bad


@dataclass(frozen=True)
class Table:
    """Columns by name, in the order asked for, with the types that an atomic file declares ("" elsewhere)."""

    columns: dict[str, Column]
    types: dict[str, str]
    skipped: SkippedRows
    rows: "RowNames"

    def row(self, n: int) -> str:
        """What row n here, from 0, is called in the file."""
        return self.rows.name(n)

    @property
    def n_rows(self) -> int:
        """Rows that were kept."""
        return min((len(column) for column in self.columns.values()), default=0)


class RowNames:
    """What rows that were kept are called in their file, where rows count from 1 after the header."""

    def __init__(self) -> None:
        self.left_out: list[int] = []  # rows of the file, from 0, in order

    def leave_out(self, rows: list[int]) -> None:
        """Rows of the file, from 0, in order, none before those of earlier calls."""
        self.left_out += rows

    def number(self, n: int) -> int:
        """The row of the file, from 0, that the n-th kept row is, from 0."""
        for other in self.left_out:
            if other > n:
                break
            n += 1
        return n

    def name(self, n: int) -> str:
        """`row 5` for the n-th kept row, from 0."""
        return f"row {self.number(n) + 1}"
