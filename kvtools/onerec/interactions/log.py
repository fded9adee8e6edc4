"""Interactions of users with items, in time order: one reader for all text files of them, and the split into parts.

Legend: n interactions, U users, I items. The invariant: the interactions of a user lie together and in time order; equal
times keep the order of the file. Users and items are numbered as they first appear in the file.

All is held in memory: ten million rows of a CSV out of time order took 10 s and 1.5 GiB on one core. Not here: features of
users, and negative feedback.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np

from kvtools.artifact.columns import Column, ColumnReader, Format, Table
from kvtools.errors import Corrupt, Usage
from kvtools.skipped import SkippedRows

TRAIN, VALID, TEST = 0, 1, 2

# the names that the column of a role may have, where the caller names none: the first that the file has is taken
NAMES: Mapping[str, tuple[str, ...]] = {
    "user": ("user_id", "user", "userId", "uid"),
    "item": ("item_id", "item", "itemId", "movieId", "iid"),
    "time": ("timestamp", "time", "t"),
    "rating": ("rating", "label"),
    "part": ("part",),
    # further features; a cell that is empty or bad is unknown, and its row is kept
    "author": ("author_id", "author", "aid"),
    "tag": ("tag", "category"),
    "playtime": ("playtime", "play_time_ms", "play_time", "watch_time"),
    "duration": ("duration", "duration_ms", "video_duration"),
}
_CORE = ("user", "item", "time", "rating", "part")
_WORDS = ("author", "tag")
_PARTS = {"train": TRAIN, "valid": VALID, "validation": VALID, "val": VALID, "test": TEST}


@dataclass(frozen=True)
class Interactions:
    """Interactions of all users, user after user, each in time order."""

    user_keys: np.ndarray  # strings (U,)
    item_keys: np.ndarray  # strings (I,)
    offsets: np.ndarray  # int64 (U+1,): user u has offsets[u]:offsets[u+1]
    items: np.ndarray  # int32 (n,): into item_keys
    times: (
        np.ndarray
    )  # int64 or float64 (n,), as in the file (dates: seconds since 1970); the position in the history where it has none
    ratings: np.ndarray | None = None  # float32 (n,)
    parts: np.ndarray | None = None  # int8 (n,): TRAIN, VALID or TEST, where the file says
    has_times: bool = True  # whether times are the file's
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)  # (n,): playtime, duration float64, NaN where unknown; …
    words: Mapping[str, np.ndarray] = field(default_factory=dict)  # … author, tag int32 into these, "" where unknown

    def users(self) -> np.ndarray:
        """int32 (n,): the user of each interaction."""
        return np.repeat(np.arange(len(self.user_keys), dtype=np.int32), np.diff(self.offsets))

    def keep(self, mask: np.ndarray) -> "Interactions":
        """The interactions where the mask, bool (n,), is set; users and items keep their numbers."""
        counts = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
        return replace(
            self,
            offsets=counts[self.offsets],
            items=self.items[mask],
            times=self.times[mask],
            ratings=None if self.ratings is None else self.ratings[mask],
            parts=None if self.parts is None else self.parts[mask],
            extras={name: array[mask] for name, array in self.extras.items()},
        )


def leave_last_out(offsets: np.ndarray) -> np.ndarray:
    """int8 (n,): each user's last interaction is TEST, the one before VALID, the rest TRAIN; users with fewer than 3
    are all TRAIN. offsets: int64 (U+1,). The protocol of SASRec (Kang and McAuley 2018) and of most after it."""
    parts = np.full(offsets[-1], TRAIN, np.int8)
    ends = offsets[1:][np.diff(offsets) >= 3]
    parts[ends - 1] = TEST
    parts[ends - 2] = VALID
    return parts


def split(interactions: Interactions) -> np.ndarray:
    """int8 (n,): the parts that the file gives, or leave_last_out where it gives none."""
    return leave_last_out(interactions.offsets) if interactions.parts is None else interactions.parts


def read_interactions(
    file: BinaryIO,
    name: str,
    *,
    form: Format = "auto",
    columns: Mapping[str, str | None] | None = None,
    more: Sequence[str] = (),
    encoding: str = "utf-8",
) -> tuple[Interactions, SkippedRows]:
    """Interactions from an open, buffered file, and the rows that were skipped or repaired.

    columns: role → the name of its column, where that is not one of NAMES. more: columns of numbers to be read beside, into
    extras under `column:NAME`, NaN where a cell holds none. Skipped: ragged rows, rows without user or item,
    with a bad or empty time, rating or part. Repaired: rows out of time order, and copies of a row (same user, item and time),
    of which one stays. In a file without times the order of the rows is that of time, and a repetition is no copy. Raises
    Corrupt where there is no user or item column, or nothing is left.
    """
    text = ColumnReader(file, name, form=form, encoding=encoding)
    if text.form == "sequence":
        _refuse_table(text.first_line, name)
        if columns:
            raise Usage(f"--column cannot be used with {name}, which has lines of words and no columns. Leave it out.")
        if more:
            raise Corrupt(f"{name}: there is no column {more[0]!r}, only lines of words. Give a table with that column.")
    read = _read_sequences(text) if text.form == "sequence" else _read_rows(text, name, columns or {}, more)
    if not len(read[0].items):
        reasons = "".join(f" {line[0].upper()}{line[1:]}." for line in read[1].lines(skipped=True))
        raise Corrupt(f"{name}: no interactions are left to use.{reasons} Repair the rows.")
    return read


def _refuse_table(line: str, name: str) -> None:
    """Raise Corrupt for the first line of a table whose columns are separated by neither tabs nor commas."""
    first, *others = line.split()
    mark = next((mark for mark in ("::", ";", "|") if mark in first and not others), " ")
    if mark != " " or first.lower() in NAMES["user"]:
        command = f"sed 's/{mark}/\\t/g'" if len(mark) > 1 else f"tr {mark!r} '\\t'"
        raise Corrupt(f"{name}: columns are separated by {mark!r}. Use tabs or commas, as {command} makes them.")


def _read_sequences(text: ColumnReader) -> tuple[Interactions, SkippedRows]:
    words, starts = text.words()
    skipped = SkippedRows()
    counts = np.diff(starts) - 1
    users_L, user_keys = words.take(starts[:-1]).encode()
    alone = np.flatnonzero(counts == 0)
    skipped.add("users without items left out", len(alone), (user_keys[users_L[line]] for line in alone))
    is_item = np.ones(len(words), bool)
    is_item[starts[:-1]] = False
    items, item_keys = words.take(is_item).encode()
    again = len(users_L) - len(user_keys)
    skipped.add("lines of a user who had one already, joined to it", again, is_skipped=False)
    users = np.repeat(users_L, counts)
    order = np.argsort(users, kind="stable")
    return _arrange(users[order], user_keys, items[order], item_keys, {}, {}), skipped


def _read_rows(
    text: ColumnReader, name: str, columns: Mapping[str, str | None], more: Sequence[str]
) -> tuple[Interactions, SkippedRows]:
    there = list(text.types)
    chosen = {role: columns.get(role) or next((n for n in NAMES[role] if n in there), None) for role in NAMES}
    for role in ("user", "item"):
        if chosen[role] is None:
            raise Corrupt(f"{name}: there is no {role} column among {', '.join(there)}. Name it with --column {role}=COL.")
    wanted = {role: column for role, column in chosen.items() if column is not None}
    wanted |= {f"column:{column}": column for column in more}
    read = text.table(wanted.values())
    cells = {role: read.columns[column] for role, column in wanted.items()}
    good = np.ones(read.n_rows, bool)
    for role in (role for role in wanted if role in _CORE):
        _skip(f"rows without {role} left out", cells[role].is_empty, good, read)
    numbers: dict[str, np.ndarray] = {}
    for role in ("time", "rating"):
        if role in cells:
            numbers[role], bad = cells[role].numbers()
            _skip(f"rows whose {role} cannot be read left out", bad, good, read)
    if "part" in cells:
        numbers["part"], bad = _parts(cells["part"])
        _skip(f"rows whose part is none of {', '.join(_PARTS)} left out", bad, good, read)
    words: dict[str, np.ndarray] = {}
    for role in (role for role in wanted if role not in _CORE):
        if role in _WORDS:
            numbers[role], words[role] = cells[role].encode()
        else:
            values, bad = cells[role].numbers()
            numbers[role] = np.where(bad | cells[role].is_empty, np.nan, values)
    is_whole = bool(good.all())
    users, user_keys = (cells["user"] if is_whole else cells["user"].take(good)).encode()
    items, item_keys = (cells["item"] if is_whole else cells["item"].take(good)).encode()
    numbers = {role: array if is_whole else array[good] for role, array in numbers.items()}
    order = np.argsort(users, kind="stable")
    if "time" in numbers:
        order = _sort_by_time(order, users, items, numbers["time"], np.flatnonzero(good), read)
    numbers = {role: array[order] for role, array in numbers.items()}
    return _arrange(users[order], user_keys, items[order], item_keys, numbers, words), read.skipped


def _skip(reason: str, bad: np.ndarray, good: np.ndarray, read: Table) -> None:
    """Count the rows that are bad and still good, and make them not good."""
    fresh = np.flatnonzero(bad & good)
    read.skipped.add(reason, len(fresh), map(read.row, fresh.tolist()))
    good[fresh] = False


def _parts(cells: Column) -> tuple[np.ndarray, np.ndarray]:
    numbers, words = cells.encode()
    known = np.array([_PARTS.get(str(word).lower(), -1) for word in words], np.int8)
    parts = known[numbers] if len(words) else np.empty(0, np.int8)
    return parts, parts < 0


def _sort_by_time(
    order: np.ndarray, users: np.ndarray, items: np.ndarray, times: np.ndarray, rows: np.ndarray, read: Table
) -> np.ndarray:
    """The rows by user and time, without copies. Counts copies, and rows earlier than the row of the same user before them.

    order: the rows by user. rows: the index of each row in the table.
    """
    if not len(order):
        return order
    late = order[1:][_equal(users, order) & (np.diff(times[order]) < 0)]
    named = map(read.row, np.sort(rows[late]).tolist())
    read.skipped.add("rows out of time order, sorted", len(late), named, is_skipped=False)
    if len(late):
        order = np.lexsort((times, users))
    # copies can only lie where user and time are shared, and few rows are there: only they are sorted by item
    same = _equal(users, order) & _equal(times, order)
    shared = order[np.concatenate([same, [False]]) | np.concatenate([[False], same])]
    shared = shared[np.lexsort((shared, items[shared], times[shared], users[shared]))]
    copies = shared[1:][_equal(users, shared) & _equal(times, shared) & _equal(items, shared)]
    named = map(read.row, np.sort(rows[copies]).tolist())
    read.skipped.add("copies of a row left out", len(copies), named, is_skipped=False)
    is_copy = np.zeros(len(users), bool)
    is_copy[copies] = True
    return order[~is_copy[order]] if len(copies) else order


def _equal(column: np.ndarray, order: np.ndarray) -> np.ndarray:
    return np.asarray(column[order[1:]] == column[order[:-1]])


def _arrange(
    users: np.ndarray,
    user_keys: np.ndarray,
    items: np.ndarray,
    item_keys: np.ndarray,
    numbers: Mapping[str, np.ndarray],
    words: Mapping[str, np.ndarray],
) -> Interactions:
    """Interactions of columns in the invariant's order; users and items without any are left out, the others renumbered."""
    users, user_keys = _renumber(users, user_keys)
    items, item_keys = _renumber(items, item_keys)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=len(user_keys)), dtype=np.int64)])
    positions = np.arange(len(users), dtype=np.int64) - np.repeat(offsets[:-1], np.diff(offsets))
    ratings, parts = numbers.get("rating"), numbers.get("part")
    return Interactions(
        user_keys,
        item_keys,
        offsets,
        items,
        numbers.get("time", positions),
        None if ratings is None else ratings.astype(np.float32),
        parts,
        "time" in numbers,
        {role: numbers[role] for role in numbers if role not in _CORE},
        words,
    )


def _renumber(numbers: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    used = np.bincount(numbers, minlength=len(keys)) > 0
    if used.all():
        return numbers, keys
    return (np.cumsum(used) - 1).astype(np.int32)[numbers], keys[used]
