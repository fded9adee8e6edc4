"""Interactions as a stream of kind `interaction`, and the one way in for commands, be it a stream or text.

A record holds a batch of whole users; no user is in two. It numbers its own items, authors and tags, so that each record, and
any part of a stream, stands alone. The invariant: items, authors and tags are numbered by their first appearance, user after
user, from text as from a stream; so whatever is made of either is the same, ties included.

All is held in memory. A million interactions of 50,000 users with 100,000 items took 0.4 s to write and 0.7 s to read on one
core, mostly for keys, which every record names anew; 10 MB on disk, where the CSV has 33.
Not here: splitting; copies, which stay as they are in a stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from kvtools.artifact import is_stream, kinds, source_name
from kvtools.artifact.blob import Tensors
from kvtools.artifact.files import open_source
from kvtools.artifact.history import Step
from kvtools.artifact.stream import Reader, Writer
from kvtools.artifact.strings import pack, unpack
from kvtools.errors import Corrupt, Usage
from kvtools.onerec.interactions.log import NAMES, TEST, TRAIN, Interactions, read_interactions
from kvtools.skipped import SkippedRows

_BATCH = 65_536  # interactions and users a record, besides those of its last user
_STRINGS = {"items": "keys", "author": "authors", "tag": "tags"}  # numbers → the column of strings that they stand for
_EXTRAS = ("author", "tag", "playtime", "duration")


def roles(words: Sequence[str]) -> dict[str, str]:
    """{role: column} of what `--column ROLE=COL`, once or more often, says. Raises Usage where there is no such role."""
    found = {}
    for word in words:
        role, _, column = word.partition("=")
        if role not in NAMES or not column:
            raise Usage(f"--column {word}: ROLE=COL with ROLE one of {', '.join(NAMES)} expected.")
        found[role] = column
    return found


def open_interactions(
    src: str, *, columns: Mapping[str, str | None] | None = None, file: BinaryIO | None = None
) -> tuple[Interactions, SkippedRows, list[Step]]:
    """Interactions from a path or `-`, what was found wrong with them, and the history that they bring: that of a
    stream's first part; text has none.

    columns: as read_interactions takes them; with a stream, which has names for its own, they are a Usage fault.
    file: src already open.
    """
    file = file or open_source(src)
    name = source_name(src)
    if not is_stream(file):
        found, skipped = read_interactions(file, name, columns=columns)
        return _in_order(found), skipped, []
    if columns:
        raise Usage(f"--column: {name} is a stream, whose columns need no names. Leave it out.")
    reader = Reader(file, name)
    if reader.head.kind != "interaction":
        raise Corrupt(f"{name}: {reader.head.kind} records found, interaction expected.")
    return read_stream(reader, name), SkippedRows(), reader.head.history


def write_interactions(found: Interactions, writer: Writer) -> None:
    """Append all interactions; items that nobody took up are not kept. Raises Corrupt for a user with more interactions than
    a record of 128 MiB can hold, which are millions."""
    n_users = len(found.user_keys)
    # users count too, lest many without interactions make a record too large
    blocks = (found.offsets[:-1] + np.arange(n_users)) // _BATCH
    cuts = [*np.flatnonzero(np.diff(blocks, prepend=-1)).tolist(), n_users]
    columns = {"items": found.items, "times": found.times if found.has_times else None}
    columns |= {"ratings": found.ratings, "parts": found.parts, **found.extras}
    strings = {"items": found.item_keys, **found.words}
    for first, last in pairwise(cuts):
        begin, end = found.offsets[[first, last]].tolist()
        tensors = {name: column[begin:end] for name, column in columns.items() if column is not None}
        tensors |= {"offsets": found.offsets[first : last + 1] - begin, **pack("users", found.user_keys[first:last].tolist())}
        for name, words in strings.items():
            tensors[name], used = _by_appearance(tensors[name])
            tensors |= pack(_STRINGS[name], words[used].tolist())
        try:
            writer.write(f"{writer.n_records:08d}", tensors)
        except ValueError as fault:
            busiest = first + int(np.diff(tensors["offsets"]).argmax())
            raise Corrupt(f"user {found.user_keys[busiest]!r}: {fault}. Leave out some of the interactions.") from None


def read_stream(reader: Reader, name: str) -> Interactions:
    """The interactions of a stream of that kind, to its end.

    Raises Corrupt, with the record's number, for what the kind does not allow, and for numbers that cannot be meant: items
    that are not among the keys, times that go back, users who were there before, columns that other records do not have.
    """
    gathered = _Gathered()
    for record in reader:
        try:
            kinds.check("interaction", "stream", record.tensors, record.fields)
            gathered.add(record.tensors)
        except ValueError as fault:
            raise Corrupt(f"{name}: record {record.number}: {fault}.") from None
    found = gathered.all()
    if not len(found.items):
        raise Corrupt(f"{name}: no interactions in it. Look at the stage before this one.")
    return found


class _Gathered:
    """The records of a stream so far; items, authors and tags are numbered across them."""

    def __init__(self) -> None:
        self._users: dict[str, None] = {}
        self._counts: list[np.ndarray] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self._numbers: dict[str, dict[str, int]] = {name: {} for name in _STRINGS}
        self._dtypes: dict[str, str] = {}

    def add(self, tensors: Tensors) -> None:
        """Take in a record that is of its kind. Raises ValueError for the first thing in it that cannot be meant."""
        columns = _columns(tensors)
        dtypes = {name: str(column.dtype) for name, column in columns.items()}
        self._dtypes = self._dtypes or dtypes
        if dtypes != self._dtypes:
            found, expected = (", ".join(" ".join(pair) for pair in names.items()) for names in (dtypes, self._dtypes))
            raise ValueError(f"{found} found, {expected} expected, as in the records before")
        for user in unpack("users", tensors):
            if user in self._users:
                raise ValueError(f"users: {user!r} found a second time, each user in one place expected")
            self._users[user] = None
        for name, column in columns.items():
            if name in _STRINGS:
                numbers, words = self._numbers[name], unpack(_STRINGS[name], tensors)
                here = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int32)
                columns[name] = here[column]
            self._columns.setdefault(name, []).append(columns[name])
        self._counts.append(np.diff(tensors["offsets"]))

    def all(self) -> Interactions:
        """What has been taken in."""
        columns = {name: np.concatenate(pieces) for name, pieces in self._columns.items()}
        strings = {name: np.array(list(numbers), np.dtypes.StringDType()) for name, numbers in self._numbers.items()}
        counts = np.concatenate([np.empty(0, np.int64), *self._counts])
        offsets = np.concatenate([[0], np.cumsum(counts)])
        items = columns.get("items", np.empty(0, np.int32))
        has_times = "times" in columns
        return _in_order(
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
    """What a record says of each interaction, as Interactions holds it, numbers still the record's own; copies, so that the
    record can go."""
    offsets, n = tensors["offsets"], len(tensors["items"])
    if offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 0).any():
        raise ValueError("offsets: they do not run from 0 to the end of the items")
    columns = {name: np.array(tensors[name]) for name in ("items", "times", "ratings", "parts", *_EXTRAS) if name in tensors}
    for name, column in columns.items():
        if name in _STRINGS:
            if f"{_STRINGS[name]}.offsets" not in tensors:
                raise ValueError(f"{name}: numbers without the {_STRINGS[name]} that they stand for")
            n_words = len(tensors[f"{_STRINGS[name]}.offsets"]) - 1
            _require(name, (column >= 0) & (column < n_words), column, f"numbers below {n_words}")
        elif name == "parts":
            _require(name, (column >= TRAIN) & (column <= TEST), column, "0 train, 1 valid or 2 test")
            columns[name] = column.astype(np.int8)
        elif name in _EXTRAS:
            _require(name, ~np.isinf(column), column, "finite numbers, or NaN where it is unknown")
        else:
            _require(name, np.isfinite(column), column, "finite numbers")
    if "times" in columns:
        is_good = np.diff(columns["times"]) >= 0
        is_good[offsets[(offsets > 0) & (offsets < n)] - 1] = True  # the next user begins when it will
        _require("times", is_good, columns["times"], "none earlier after it")
    return columns


def _require(name: str, is_good: np.ndarray, column: np.ndarray, expected: str) -> None:
    if not is_good.all():
        place = int(is_good.argmin())
        raise ValueError(f"{name}: {column[place]} found at {place}, {expected} expected")


def _in_order(found: Interactions) -> Interactions:
    """The same, with items, authors and tags numbered by their first appearance, and those left out that do not appear."""
    items, used = _by_appearance(found.items)
    extras, words = dict(found.extras), dict(found.words)
    for name in words:
        extras[name], mine = _by_appearance(extras[name])
        words[name] = words[name][mine]
    return replace(found, items=items, item_keys=found.item_keys[used], extras=extras, words=words)


def _by_appearance(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32 (n,): other numbers for the same things, 0 for what comes first; and what number each had before."""
    used, first, sorted_places = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(first)
    places = np.empty(len(used), np.int32)
    places[order] = np.arange(len(used), dtype=np.int32)
    return places[sorted_places], used[order]
