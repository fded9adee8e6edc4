"""Columns gathered batch by batch in few bytes: keys as numbers with a list of the keys, numbers as numbers.

Not here: which column has which role, and the order of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kvtools.artifact.cells import Scale, numbers, whole_keys
from kvtools.artifact.tables import as_text


@dataclass(frozen=True)
class KeyBatch:
    """Some keys: as whole numbers (n,) that stand for themselves, or as a dictionary of pyarrow. Null is the key ""."""

    values: np.ndarray | None
    strings: Any = None

    @classmethod
    def of(cls, cells: Any) -> "KeyBatch":
        """From a pyarrow array of strings or numbers."""
        if cells.null_count or not (pa.types.is_string(cells.type) or pa.types.is_integer(cells.type)):
            cells = pc.fill_null(as_text(cells), "")
        values = whole_keys(cells)
        if values is None:
            return cls(None, cells.dictionary_encode())
        is_small = not len(values) or (values.max() < 1 << 31 and values.min() >= -(1 << 31))
        return cls(values.astype(np.int32) if is_small else values)

    def __len__(self) -> int:
        return len(self.strings) if self.values is None else len(self.values)

    def matching(self, pattern: str) -> np.ndarray | None:
        """Bool (n,): which keys match a regular expression; None where none does, as no number may."""
        if self.values is not None:
            return None
        found = pc.match_substring_regex(self.strings.dictionary, pattern).to_numpy(zero_copy_only=False)
        return found[self.strings.indices.to_numpy(zero_copy_only=False)] if found.any() else None

    def filtered(self, mask: np.ndarray) -> "KeyBatch":
        """Those where the mask, bool (n,), is set."""
        if self.values is not None:
            return KeyBatch(self.values[mask])
        return KeyBatch(None, self.strings.filter(pa.array(mask)))


class Keys:
    """A column of keys. While all of them are whole numbers they are kept as such, which is several times as fast."""

    def __init__(self) -> None:
        self.n_rows = 0
        self._numbers: list[np.ndarray] = []
        self._strings: list[Any] = []

    def append(self, batch: KeyBatch) -> None:
        """Add the keys of a batch."""
        self.n_rows += len(batch)
        if batch.values is not None and not self._strings:
            self._numbers.append(batch.values)
            return
        self._strings += [_dictionary(chunk) for chunk in self._numbers]
        self._numbers = []
        self._strings.append(batch.strings if batch.values is None else _dictionary(batch.values))

    def append_texts(self, keys: Sequence[str]) -> None:
        """Add keys of a list."""
        self.append(KeyBatch.of(pa.array(keys, pa.string())))

    def pad_to(self, n_rows: int) -> None:
        """Add the key "" until there are n."""
        if n_rows > self.n_rows:
            self.append_texts([""] * (n_rows - self.n_rows))

    def encode(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers for keys, int32 (n,), and the keys they stand for, strings, by first appearance. Forgets the column."""
        if self._strings:
            whole = pa.chunked_array(self._strings).unify_dictionaries()
            self._strings = []
            codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in whole.chunks])
            return _by_appearance(codes, np.array(whole.chunk(0).dictionary.to_pylist(), np.dtypes.StringDType()))
        values = np.concatenate(self._numbers) if self._numbers else np.empty(0, np.int32)
        self._numbers = []
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        if high - low > max(4 * len(values), 1 << 20):
            encoded = pa.array(values).dictionary_encode()
            return encoded.indices.to_numpy(zero_copy_only=False), _as_strings(encoded.dictionary)
        values -= low
        return _by_appearance(values, None, low)


class Numbers:
    """A column of numbers. The first batch decides whether they are numbers or moments."""

    def __init__(self, *, dtype: type | None = None) -> None:
        """dtype: of all values; by default int64 where all are whole, else float64."""
        self.n_rows = 0
        self._dtype = dtype
        self._chunks: list[np.ndarray] = []
        self._scale: Scale | None = None

    def read(self, cells: Any) -> tuple[np.ndarray, np.ndarray]:
        """The cells of a pyarrow array as numbers (n,), 0 where there is none, and bool (n,) where one is bad; nothing is
        appended."""
        if len(cells) == cells.null_count:
            return np.zeros(len(cells), np.int64), np.zeros(len(cells), bool)
        values, is_bad, self._scale = numbers(cells, self._scale)
        return values, is_bad

    def append(self, values: np.ndarray) -> None:
        """Add values (n,)."""
        self._chunks.append(values.astype(self._dtype, copy=False) if self._dtype else values)
        self.n_rows += len(values)

    def pad_to(self, n_rows: int, value: float) -> None:
        """Add one value until there are n."""
        if n_rows > self.n_rows:
            self.append(np.full(n_rows - self.n_rows, value))

    def take(self) -> np.ndarray:
        """The whole column, (n,). Forgets it."""
        whole = np.concatenate(self._chunks) if self._chunks else np.empty(0, self._dtype or np.int64)
        self._chunks = []
        return whole


def _by_appearance(values: np.ndarray, keys: np.ndarray | None, low: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes by first appearance, int32 (n,), of whole numbers from 0 on, (n,), and the keys of these: those given, or the
    numbers themselves, plus low."""
    number_of = np.full(int(values.max(initial=-1)) + 1, -1, np.int32)
    # of equal indices the last one wins, so that from the end on the first row stays
    number_of[values[::-1]] = np.arange(len(values) - 1, -1, -1, dtype=np.int32)
    used = np.flatnonzero(number_of >= 0)
    used = used[np.argsort(number_of[used])]
    number_of[used] = np.arange(len(used), dtype=np.int32)
    return number_of[values], keys[used] if keys is not None else _as_strings(pa.array(used + low))


def _dictionary(values: np.ndarray) -> Any:
    """Whole numbers as a dictionary of pyarrow of what they are written as."""
    encoded = pa.array(values).dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices, encoded.dictionary.cast(pa.string()))


def _as_strings(values: Any) -> np.ndarray:
    return np.array(values.cast(pa.string()).to_pylist(), np.dtypes.StringDType())
