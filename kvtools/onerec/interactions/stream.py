"""Interactions as a stream of kind `interaction`, and the reader that commands use, for streams and for text.

A record holds a batch of whole users; no user is in two. It numbers its own items, authors and tags, so that each record, and
any part of a stream, stands alone. The invariant: items, authors and tags are numbered by their first appearance, user after
user, from text as from a stream, so that both give the same results, ties included.

All is held in memory. A million interactions of 50,000 users with 100,000 items took 0.4 s to write and 0.7 s to read on one
core, mostly for keys, which every record names anew; 10 MB on disk, where the CSV has 33.
Not here: splitting; copies, which stay as they are in a stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from kvtools.artifact import checked_records, is_stream, open_stream, raising_at, source_name
from kvtools.artifact.blob import Tensors
from kvtools.artifact.files import open_source
from kvtools.artifact.history import Step
from kvtools.artifact.stream import Reader, Writer
from kvtools.artifact.strings import Packed, unpack
from kvtools.errors import Corrupt, Usage
from kvtools.onerec.interactions.account import STREAM, Account, TableAccount
from kvtools.onerec.interactions.log import NAMES, TEST, TRAIN, Interactions, account, read_interactions
from kvtools.skipped import SkippedRows

_BATCH = 262_144  # interactions and users a record, besides those of its last user
_STRINGS = {"items": "keys", "author": "authors", "tag": "tags"}  # numbers → the column of strings that they stand for
_EXTRAS = ("author", "tag", "playtime", "duration")


def roles(options: Sequence[str]) -> dict[str, str]:
    """{role: column} of the values of `--column ROLE=COL`; "" for `ROLE=`, which reads none. Raises Usage for other roles."""
    columns = {}
    for option in options:
        role, _, column = option.partition("=")
        if role not in NAMES or "=" not in option:
            raise Usage(f"--column {option} is not ROLE=COL. Give one of the roles {', '.join(NAMES)}, and a column.")
        columns[role] = column
    return columns


def open_interactions(
    src: str, *, columns: Mapping[str, str | None] | None = None, more: Sequence[str] = (), file: BinaryIO | None = None
) -> tuple[Interactions, SkippedRows, list[Step]]:
    """Interactions from a path or `-`, the rows that were skipped, and the history that they bring, of which text has none.

    columns, more: as read_interactions takes them. file: src already open. Raises Usage for columns with a stream, Corrupt for
    a stream of another kind.
    """
    file, name = file or open_source(src), source_name(src)
    if not is_stream(file):
        interactions, skipped = read_interactions(file, name, columns=columns, more=more)
        return in_order(interactions), skipped, []
    if columns:
        raise Usage(f"--column cannot be used with {name}, a stream, whose columns have fixed names. Leave it out.")
    if more:
        raise Corrupt(f"{name}: a stream has no column {more[0]!r}; rating, playtime and duration it may have. Give the table.")
    reader = open_stream(src, "interaction", made_by="kvtools convert", file=file)
    read = read_stream(reader)
    return replace(read, account=account_of(read, name)), SkippedRows(), reader.head.history


def account_of(read: Interactions, name: str) -> Account:
    """What is said of interactions that were read from a stream."""
    roles = {"time": read.has_times, "rating": read.ratings is not None, "part": read.parts is not None}
    columns = {role: role for role in (*(role for role, is_there in roles.items() if is_there), *read.extras)}
    return account([TableAccount(name, STREAM, columns)], read, len(read.items), SkippedRows())


def write_interactions(interactions: Interactions, writer: Writer) -> None:
    """Append all interactions; items without any are not kept. Raises Corrupt for a user with more interactions than a record
    of 128 MiB can hold, which are millions."""
    n_users = len(interactions.user_keys)
    # users count too, lest many without interactions make a record too large
    blocks = (interactions.offsets[:-1] + np.arange(n_users)) // _BATCH
    cuts = [*np.flatnonzero(np.diff(blocks, prepend=-1)).tolist(), n_users]
    columns = {"items": interactions.items, "times": interactions.times if interactions.has_times else None}
    columns |= {"ratings": interactions.ratings, "parts": interactions.parts, **interactions.extras}
    strings = {name: Packed(keys) for name, keys in {"items": interactions.item_keys, **interactions.words}.items()}
    numbering = {name: Renumbering(len(keys)) for name, keys in strings.items()}
    users = Packed(interactions.user_keys)
    for first, last in pairwise(cuts):
        begin, end = interactions.offsets[[first, last]].tolist()
        tensors = {name: column[begin:end] for name, column in columns.items() if column is not None}
        tensors |= {"offsets": interactions.offsets[first : last + 1] - begin, **users.take("users", np.arange(first, last))}
        for name, keys in strings.items():
            tensors[name], used = numbering[name].by_appearance(tensors[name])
            tensors |= keys.take(_STRINGS[name], used)
        try:
            writer.write(f"{writer.n_records:08d}", tensors)
        except ValueError as fault:
            busiest = first + int(np.diff(tensors["offsets"]).argmax())
            raise Corrupt(f"user {interactions.user_keys[busiest]!r}: {fault}. Leave out some of the interactions.") from None


def read_stream(reader: Reader) -> Interactions:
    """The interactions of a stream of that kind, to its end.

    Raises Corrupt, with the record's number, for what the kind does not allow and for contradictions: items that are not
    among the keys, times that go back, users of an earlier record, columns that other records do not have.
    """
    gathered = _Gathered()
    for record in checked_records(reader, made_by="kvtools convert"):
        with raising_at(record, reader.name, made_by="kvtools convert"):
            gathered.add(record.tensors)
    interactions = gathered.all()
    if not len(interactions.items):
        raise Corrupt(f"{reader.name}: there are no interactions in it. Look at the stage before this one.")
    return interactions


class _Gathered:
    """The records of a stream so far; items, authors and tags are numbered across them."""

    def __init__(self) -> None:
        self._users: dict[str, None] = {}
        self._counts: list[np.ndarray] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self._numbers: dict[str, dict[str, int]] = {name: {} for name in _STRINGS}
        self._dtypes: dict[str, str] = {}

    def add(self, tensors: Tensors) -> None:
        """Append a record that is of its kind. Raises ValueError for the first contradiction in it."""
        columns = _columns(tensors)
        dtypes = {name: str(column.dtype) for name, column in columns.items()}
        self._dtypes = self._dtypes or dtypes
        if dtypes != self._dtypes:
            own, before = (", ".join(" ".join(pair) for pair in names.items()) for names in (dtypes, self._dtypes))
            raise ValueError(f"its columns are {own}, and those of the records before are {before}")
        for user in unpack("users", tensors):
            if user in self._users:
                raise ValueError(f"user {user!r} has interactions elsewhere too; a user's interactions must lie together")
            self._users[user] = None
        for name, column in columns.items():
            if name in _STRINGS:
                numbers, words = self._numbers[name], unpack(_STRINGS[name], tensors)
                here = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int32)
                columns[name] = here[column]
            self._columns.setdefault(name, []).append(columns[name])
        self._counts.append(np.diff(tensors["offsets"]))

    def all(self) -> Interactions:
        """The interactions of all records."""
        columns = {name: np.concatenate(pieces) for name, pieces in self._columns.items()}
        strings = {name: np.array(list(numbers), np.dtypes.StringDType()) for name, numbers in self._numbers.items()}
        counts = np.concatenate([np.empty(0, np.int64), *self._counts])
        offsets = np.concatenate([[0], np.cumsum(counts)])
        items = columns.get("items", np.empty(0, np.int32))
        has_times = "times" in columns
        return in_order(
            Interactions(
                user_keys=np.array(list(self._users), np.dtypes.StringDType()),
                item_keys=strings["items"],
                offsets=offsets,
                items=items,
                times=columns["times"] if has_times else np.arange(len(items)) - np.repeat(offsets[:-1], counts),
                ratings=columns.get("ratings"),
                parts=columns.get("parts"),
                has_times=has_times,
                extras={name: columns[name] for name in _EXTRAS if name in columns},
                words={name: strings[name] for name in _EXTRAS if name in columns and name in _STRINGS},
            )
        )


def _columns(tensors: Tensors) -> dict[str, np.ndarray]:
    """A record's columns as Interactions has them, with the record's own numbers; copies, so that the record can go. Raises
    ValueError for values that are out of range."""
    offsets, n = tensors["offsets"], len(tensors["items"])
    if offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 0).any():
        raise ValueError("offsets do not run from 0 to the end of the items")
    columns = {name: np.array(tensors[name]) for name in ("items", "times", "ratings", "parts", *_EXTRAS) if name in tensors}
    for name, column in columns.items():
        if name in _STRINGS:
            if f"{_STRINGS[name]}.offsets" not in tensors:
                raise ValueError(f"{name} are numbers, and the {_STRINGS[name]} that they stand for are missing")
            n_words = len(tensors[f"{_STRINGS[name]}.offsets"]) - 1
            _require(name, (column >= 0) & (column < n_words), column, f"and must be 0 to {n_words - 1}")
        elif name == "parts":
            _require(name, (column >= TRAIN) & (column <= TEST), column, "and must be 0 (train), 1 (valid) or 2 (test)")
            columns[name] = column.astype(np.int8)
        elif name in (*_EXTRAS, "ratings"):
            _require(name, ~np.isinf(column), column, "and must be finite, or NaN where it is unknown")
        else:
            _require(name, np.isfinite(column), column, "and must be finite")
    if "times" in columns:
        is_good = np.diff(columns["times"]) >= 0
        is_good[offsets[(offsets > 0) & (offsets < n)] - 1] = True  # the next user begins when it will
        _require("times", is_good, columns["times"], "and the time after it is earlier")
    return columns


def _require(name: str, is_good: np.ndarray, column: np.ndarray, rule: str) -> None:
    if not is_good.all():
        index = int(is_good.argmin())
        raise ValueError(f"{name}[{index}] is {column[index]}, {rule}")


def in_order(interactions: Interactions) -> Interactions:
    """The same, with items, authors and tags numbered by their first appearance, and without those that do not appear."""
    items, used = Renumbering(len(interactions.item_keys)).by_appearance(interactions.items)
    extras, words = dict(interactions.extras), dict(interactions.words)
    for name, keys in list(words.items()):
        extras[name], mine = Renumbering(len(keys)).by_appearance(extras[name])
        words[name] = keys[mine]
    return replace(interactions, items=items, item_keys=interactions.item_keys[used], extras=extras, words=words)


class Renumbering:
    """Numbers by first appearance, of arrays of numbers below a bound, one after another with the same memory."""

    def __init__(self, bound: int) -> None:
        self._first = np.full(bound, -1, np.int32)

    def by_appearance(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int32 (n,): the numbers renumbered by first appearance; and the old number of each new one."""
        # of equal indices the last one wins, so that from the end on the first appearance stays
        self._first[numbers[::-1]] = np.arange(len(numbers) - 1, -1, -1, dtype=np.int32)
        is_first = self._first[numbers] == np.arange(len(numbers), dtype=np.int32)
        used = numbers[is_first]
        self._first[used] = np.arange(len(used), dtype=np.int32)
        return self._first[numbers], used
