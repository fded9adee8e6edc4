"""Anybody's recommendations, to be scored as our own are: CSV, TSV or JSON Lines of user, item, and score or rank.

A line of JSON may also be what `recgen --json` prints: a user, its items in order and, if given, their scores. The invariant:
of one user, items of equal score keep the order of the file, and an item that is named twice counts where it is first.
Items that the catalogue does not have keep their places in the lists, and are never a hit.

Legend: n rows, N items of the catalogue, B queries, K places of the longest list.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import numpy as np

from kvtools.artifact import source_name
from kvtools.artifact.delimited import lines_of, read_text
from kvtools.artifact.files import open_source
from kvtools.artifact.json_text import read_json
from kvtools.artifact.tables import ColumnReader
from kvtools.errors import Corrupt
from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.interactions.names import find_column
from kvtools.onerec.recommend import metrics
from kvtools.onerec.recommend.query import Query, Recommendations
from kvtools.skipped import SkippedRows

_VALUES = {"rank": 1, "position": 1, "score": -1, "scores": -1, "prediction": -1}  # name → whether less (1) or more is better
_FORM = "Give rows of user, item, and score or rank: CSV, TSV or JSON Lines."


@dataclass(frozen=True)
class Predictions:
    """Lists of items, user after user, best first."""

    row_of: Mapping[str, int]  # user → row of offsets
    offsets: np.ndarray  # int64 (users + 1,)
    items: np.ndarray  # strings (n,)

    def recommend(
        self, histories: Histories, item_keys: np.ndarray, ids: np.ndarray, *, exclude_seen: bool
    ) -> Callable[[Query], Recommendations]:
        """A function from queries to their lists. item_keys: strings (N,); ids: int64 (N,), the semantic ID of each item.
        exclude_seen: without the items of the history before the query, as our own recommendations are."""
        number_of = {key: number for number, key in enumerate(item_keys.tolist())}
        strangers: dict[str, int] = {}
        numbers = np.array(
            [number_of.get(key, -1) if key in number_of else len(number_of) + strangers.setdefault(key, len(strangers))
             for key in self.items.tolist()], np.int64,
        )  # fmt: skip
        n_numbers = len(number_of) + len(strangers)
        ids_of = np.append(ids, np.full(len(strangers) + 1, -1, np.int64))  # the last is of the padding
        rows = np.array([self.row_of.get(user, -1) for user in histories.user_keys.tolist()], np.int64)
        widest = int(np.diff(self.offsets).max(initial=1))

        def recommend(query: Query) -> Recommendations:
            row_B = rows[query.users]
            begin_B = np.where(row_B >= 0, self.offsets[row_B], 0)
            length_B = np.where(row_B >= 0, self.offsets[row_B + 1] - begin_B, 0)
            place = np.arange(widest)
            is_there = place < length_B[:, None]
            items_BK = np.where(is_there, numbers[(begin_B[:, None] + place).clip(max=max(0, len(numbers) - 1))], -1)
            if exclude_seen:
                seen = np.repeat(np.arange(len(query)), query.lengths) * n_numbers + query.past(histories)[1]
                is_seen = np.isin(np.arange(len(query))[:, None] * n_numbers + items_BK, seen) & (items_BK >= 0)
                items_BK = np.where(is_seen, -1, items_BK)
            n_known, n_all = int((is_there & (items_BK < len(number_of)) & (items_BK >= 0)).sum()), int((items_BK >= 0).sum())
            items_BK = metrics.distinct(items_BK)
            scores = -np.broadcast_to(place, items_BK.shape).astype(np.float32)
            is_proven = np.zeros(len(query), bool)
            return Recommendations(items_BK.astype(np.int32), scores, ids_of[items_BK], is_proven, n_known, n_all)

        return recommend


def read_predictions(src: str) -> tuple[Predictions, SkippedRows]:
    """Predictions from a path or `-`, and the rows that were left out. Raises Corrupt where columns are missing or nothing is
    left."""
    file, name = open_source(src), source_name(src)
    begin = bytes(file.peek(4)).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]  # type: ignore[attr-defined]
    users, items, order, skipped = _read_json_lines(file, name) if begin == b"{" else _read_table(file, name)
    if not users:
        raise Corrupt(f"{name}: there is no prediction in it. {_FORM}")
    row_of: dict[str, int] = {}
    rows = np.array([row_of.setdefault(user, len(row_of)) for user in users], np.int64)
    by_rank = np.lexsort((order, rows))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(row_of)))])
    return Predictions(row_of, offsets, np.array(items, np.dtypes.StringDType())[by_rank]), skipped


_Rows = tuple[list[str], list[str], np.ndarray, SkippedRows]  # users, items, and what they are ordered by, less first


def _read_table(file: BinaryIO, name: str) -> _Rows:
    table = ColumnReader(file, name)
    user, item, value, sign = _columns(tuple(table.types), name)
    if table.form == "sequence" or user is None or item is None or value is None:
        raise Corrupt(f"{name}: the columns are {', '.join(table.types) or 'unnamed'}. {_FORM}")
    read = table.table([user, item, value])
    numbers, is_bad = read.columns[value].numbers()
    is_bad = is_bad | read.columns[value].is_empty | read.columns[user].is_empty | read.columns[item].is_empty
    bad = np.flatnonzero(is_bad)
    read.skipped.add(f"rows without user, item or {value} left out", len(bad), map(read.row, bad.tolist()))
    good = ~is_bad
    users, items = (read.columns[column].take(good).to_list() for column in (user, item))
    return [str(key) for key in users], [str(key) for key in items], numbers[good] * sign, read.skipped


def _read_json_lines(file: BinaryIO, name: str) -> _Rows:
    skipped = SkippedRows()
    users: list[str] = []
    items: list[str] = []
    order: list[float] = []
    for number, line in enumerate(lines_of(read_text(file, name)), start=1):
        if not line.strip():
            continue
        row = _parsed(line, name)
        if row is None:
            skipped.skip("lines without user, item, and score or rank left out", f"line {number}")
            continue
        user, own, places = row
        users += [user] * len(own)
        items += own
        order += places
    return users, items, np.array(order, np.float64), skipped


def _parsed(line: str, name: str) -> tuple[str, list[str], list[float]] | None:
    """The user of a line, its items, and what they are ordered by; None where it has none of these."""
    try:
        fields = read_json(line)
        user, item, value, sign = _columns(tuple(fields), name)
        if user is None or not isinstance(fields[user], str | int):
            return None
        many = fields.get("items")
        if many is not None:
            scores = fields.get("scores")
            places = range(len(many)) if scores is None else [-float(score) for score in scores]
            items = [str(key) for key in many]
            return (str(fields[user]), items, [float(x) for x in places]) if len(places) == len(items) else None
        if item is None or value is None or not isinstance(fields[item], str | int):
            return None
        place = float(fields[value]) * sign
        return (str(fields[user]), [str(fields[item])], [place]) if math.isfinite(place) else None
    except (ValueError, TypeError):
        return None


@lru_cache(maxsize=64)  # lines of JSON have the same few sets of fields
def _columns(there: tuple[str, ...], name: str) -> tuple[str | None, str | None, str | None, int]:
    """The columns of user, item, and rank or score, and 1 where less of the last is better, -1 where more is."""
    user, item = (find_column(role, there, name=name) for role in ("user", "item"))
    by_name = {column.lower(): column for column in there}
    value = next((value for value in _VALUES if value in by_name), None)
    return user, item, None if value is None else by_name[value], _VALUES.get(value or "", 0)
