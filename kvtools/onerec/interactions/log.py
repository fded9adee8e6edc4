"""Interactions of users with items, in time order: one reader for all files of them, and the split into parts.

Legend: n interactions, U users, I items. The invariant: the interactions of a user lie together and in time order; equal
times keep the order of the file. Users and items are numbered as they first appear in the file.

All is held in memory, 4 to 8 bytes a cell. Not here: features of users, and negative feedback.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np

from kvtools.artifact.tables import Format
from kvtools.errors import Corrupt
from kvtools.onerec.interactions.account import Account, TableAccount
from kvtools.onerec.interactions.gather import Gathered, Source
from kvtools.onerec.interactions.names import CORE, NAMES, PARTS, TEST, TRAIN, VALID
from kvtools.onerec.interactions.order import by_user_and_time, stable_order
from kvtools.skipped import SkippedRows

__all__ = [
    "NAMES",
    "PARTS",
    "TEST",
    "TRAIN",
    "VALID",
    "Interactions",
    "Source",
    "leave_last_out",
    "parts_of",
    "read_interactions",
]


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
    ratings: np.ndarray | None = None  # float32 (n,), NaN where unknown
    parts: np.ndarray | None = None  # int8 (n,): TRAIN, VALID or TEST, where the file says
    has_times: bool = True  # whether times are the file's
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)  # (n,): playtime, duration float64, NaN where unknown; …
    words: Mapping[str, np.ndarray] = field(default_factory=dict)  # … author, tag int32 into these, "" where unknown
    account: Account | None = None  # what was read, where it was read from a file

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


def parts_of(interactions: Interactions) -> np.ndarray:
    """int8 (n,): the parts that the file gives, or leave_last_out where it gives none."""
    return leave_last_out(interactions.offsets) if interactions.parts is None else interactions.parts


def n_ties(interactions: Interactions) -> int:
    """Users whose last interaction, or the one before it, has the time of the one before that: order of rows decides which
    is held out. None where the file says what is held out, or has no times."""
    if interactions.parts is not None or not interactions.has_times:
        return 0
    ends = interactions.offsets[1:][np.diff(interactions.offsets) >= 3]
    last, valid, before = (interactions.times[ends - n] for n in (1, 2, 3))
    return int(np.count_nonzero((last == valid) | (valid == before)))


def read_interactions(
    file: BinaryIO,
    name: str,
    *,
    form: Format = "auto",
    columns: Mapping[str, str | None] | None = None,
    more: Sequence[str] = (),
    encoding: str = "utf-8",
    header: Sequence[str] | None = None,
) -> tuple[Interactions, SkippedRows]:
    """Interactions from an open, buffered file, and the rows that were skipped or repaired. See `read_all`."""
    return read_all([Source(file, name)], form=form, columns=columns, more=more, encoding=encoding, header=header)


def read_all(
    sources: Sequence[Source],
    *,
    form: Format = "auto",
    columns: Mapping[str, str | None] | None = None,
    more: Sequence[str] = (),
    encoding: str = "utf-8",
    header: Sequence[str] | None = None,
) -> tuple[Interactions, SkippedRows]:
    """The interactions of several files together, and the rows that were skipped or repaired.

    columns: role → the name of its column, where that is not one of NAMES; "" for a role that is not to be read. more: columns
    of numbers to be read beside, into extras under `column:NAME`, NaN where a cell holds none. header: the names of the columns
    of tables that have no header. Skipped: ragged rows, rows without user or item, and with a bad or empty time or part; bad
    ratings alone are lost, and their rows are kept. Repaired: rows out of time order, and rows equal to another in all columns
    that are read, of which one stays. In a file without times the order of the rows is that of time, and a repetition is no
    copy. Raises Corrupt where there is no user or item column, or nothing is left.
    """
    gathered = Gathered(columns or {}, more)
    for source in sources:
        gathered.add(source, form=form, encoding=encoding, header=header)
    gathered.finish()
    skipped = gathered.skipped
    if not gathered.n_rows:
        reasons = "".join(f" {line[0].upper()}{line[1:]}." for line in skipped.lines(skipped=True))
        name = ", ".join(source.name for source in sources)
        raise Corrupt(f"{name}: no interactions are left to use.{reasons} Repair the rows.")
    interactions = _in_order(gathered)
    read = account(gathered.tables, interactions, gathered.n_read, skipped, gathered.split)
    return replace(interactions, account=read), skipped


def account(
    tables: Sequence[TableAccount], interactions: Interactions, n_read: int, findings: SkippedRows, split: str = ""
) -> Account:
    """What was read from these tables. split: who says what is held out, where interactions have parts; by default a column."""
    return Account(
        tables=tuple(tables),
        n_read=n_read,
        n_kept=len(interactions.items),
        n_users=len(interactions.user_keys),
        n_items=len(interactions.item_keys),
        order="time" if interactions.has_times else "rows",
        split=(split or "column") if interactions.parts is not None else "last",
        ties=n_ties(interactions),
        findings=findings,
    )


def _in_order(gathered: Gathered) -> Interactions:
    """The rows by user and time. Counts those that are repaired."""
    users, user_keys = gathered.keys["user"].encode()
    items, item_keys = gathered.keys["item"].encode()
    numbers = {role: column.take() for role, column in gathered.numbers.items()}
    words = {}
    for role in [role for role in gathered.keys if role not in CORE]:
        numbers[role], words[role] = gathered.keys[role].encode()
    times = numbers.pop("time", None)
    if times is not None:
        order = by_user_and_time(users, times, [items, *numbers.values()])
        rows, users, times, late, equal = order
        del order
        name = gathered.sources.name
        gathered.skipped.add("rows out of time order, sorted", len(late), map(name, late[:3].tolist()), is_skipped=False)
        what = "rows equal to another in all columns read, merged with it"
        gathered.skipped.add(what, len(equal), map(name, equal[:3].tolist()), is_skipped=False)
    else:
        rows = stable_order(users)
    counts = np.bincount(users, minlength=len(user_keys))
    del users
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    items = items[rows]
    for role in list(numbers):  # one after another, so that the unordered ones go
        numbers[role] = numbers[role][rows]
    has_times = times is not None
    if times is None:
        times = np.arange(len(items), dtype=np.int64) - np.repeat(offsets[:-1], counts)
    ratings, parts = numbers.get("rating"), numbers.get("part")
    extras = {role: array for role, array in numbers.items() if role not in CORE}
    return Interactions(user_keys, item_keys, offsets, items, times, ratings, parts, has_times, extras, words)
