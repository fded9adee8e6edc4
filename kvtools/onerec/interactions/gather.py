"""Tables of interactions, read into columns by role. Rows that cannot be used are left out and counted, each with its reason.

Three shapes are read: a row an interaction; a user with all items, as lines of words or as JSON {user: [item, …]}; and rows
with a history beside the item. The last two say the order themselves. Not here: sorting, and splitting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from kvtools.artifact.cells import NO_VALUE
from kvtools.artifact.columns import Column
from kvtools.artifact.encoded import KeyBatch, Keys, Numbers
from kvtools.artifact.tables import Batch, ColumnReader, Format, as_text
from kvtools.errors import Corrupt, Usage
from kvtools.onerec.interactions import windows
from kvtools.onerec.interactions.account import TableAccount
from kvtools.onerec.interactions.names import CORE, NAMES, PARTS, TRAIN, WORDS, Chosen, choose, looks_like_time
from kvtools.onerec.interactions.row_names import SourceRows
from kvtools.skipped import SkippedRows

_BROKEN = {  # what a name is that is none; U+FFFD stands for bytes that are not text
    "is not in this encoding (kvtools convert --encoding names another)": "\ufffd",
    "is no text of one line": "[\\x00-\\x1f]",
}
_KEYS: tuple[str, ...] = ("user", "item")
_N_JUDGED = 1000  # lines of words that tell whether they are a table


@dataclass(frozen=True)
class Source:
    """An open file of interactions. part: that of all its interactions, or None where a column or their order says it."""

    file: BinaryIO
    name: str
    part: int | None = None


class Gathered:
    """The rows of all tables so far, in file order. keys and numbers: by role, columns of n_rows."""

    def __init__(self, given: Mapping[str, str | None], more: Sequence[str]) -> None:
        """given: role → column, as for `names.choose`. more: columns of numbers to be read beside."""
        self._given, self._more = given, more
        self.keys: dict[str, Keys] = {"user": Keys(), "item": Keys()}
        self.numbers: dict[str, Numbers] = {}
        self.sources = SourceRows()
        self.skipped = SkippedRows()
        self.tables: list[TableAccount] = []
        self.n_read = 0
        self.split = ""
        self._shape = ""
        self._windows: list[tuple[str, list[str], str | None, int]] = []

    @property
    def n_rows(self) -> int:
        """Rows that were kept."""
        return self.sources.n_rows

    def add(
        self, source: Source, *, form: Format = "auto", encoding: str = "utf-8", header: Sequence[str] | None = None
    ) -> None:
        """Read a file to its end. Raises Corrupt where it has no user or item column, or another shape than those before."""
        text = ColumnReader(source.file, source.name, form=form, encoding=encoding, header=header)
        self.sources.begin(source.name)
        if text.form == "sequence":
            self._begin("sequence", source)
            self._add_sequences(text, source)
            self.tables.append(TableAccount(source.name, text.form_name))
        else:
            chosen = choose(list(text.types), self._given, text.sample(), name=source.name, more=self._more)
            if "history" in chosen.columns:
                self._begin("window", source)
                self._add_windows(text, chosen, source)
            else:
                self._begin("row", source)
                self._add_rows(text, chosen, source)
            n_lines = f"{text.n_lines:,} {'line is' if text.n_lines == 1 else 'lines are'} blank, or within quotes"
            notes = (*chosen.notes, n_lines) if text.n_lines else chosen.notes
            self.tables.append(TableAccount(source.name, text.form_name, chosen.columns, chosen.unused, notes))
        for reason, count in text.skipped.counts.items():
            self.skipped.add(reason, count, text.skipped.names[reason], is_skipped=reason in text.skipped.skipped)

    def finish(self) -> None:
        """Once all files have been read: join histories, and make all columns as long as there are rows."""
        if self._shape == "window":
            self._join_windows()
        for role in self.numbers:
            self._number_column(role)
        for role in self.keys:
            self.keys[role].pad_to(self.n_rows)

    def _begin(self, shape: str, source: Source) -> None:
        """Raise Corrupt, or Usage, where a file does not go with those before it, or not with the columns asked for."""
        name = source.name
        if self._shape not in ("", shape):
            raise Corrupt(f"{name}: its rows are of another shape than those of {self.tables[0].name}. Convert it alone.")
        self._shape = shape
        self.split = "files" if source.part is not None else self.split
        if shape == "sequence" and any(self._given.values()):
            raise Usage(f"--column cannot be used with {name}, which has lines of words and no columns. Leave it out.")
        if shape == "sequence" and self._more:
            raise Corrupt(f"{name}: there is no column {self._more[0]!r}, only lines of words. Give a table with that column.")

    def _number_column(self, role: str) -> Numbers:
        """The column of a role, as long as there are rows. Raises Corrupt where times would be missing."""
        if role not in self.numbers:
            self.numbers[role] = Numbers(dtype={"time": None, "rating": np.float32, "part": np.int8}.get(role, np.float64))
        column = self.numbers[role]
        if role == "time" and column.n_rows != self.n_rows:
            raise Corrupt(f"{self.tables[0].name}: some of the files have times, and some have none. Convert them apart.")
        column.pad_to(self.n_rows, TRAIN if role == "part" else np.nan)
        return column

    def _key_column(self, role: str) -> Keys:
        """The column of a role, as long as there are rows."""
        self.keys.setdefault(role, Keys()).pad_to(self.n_rows)
        return self.keys[role]

    def _add_rows(self, text: ColumnReader, chosen: Chosen, source: Source) -> None:
        columns = chosen.columns
        if "part" in columns and source.part is None:
            self.split = self.split or "column"
        for batch in text.batches([*columns.values(), *self._more]):
            self.n_read += batch.n_rows + len(batch.left_out)
            self._add_batch(batch, columns, source)

    def _add_batch(self, batch: Batch, columns: Mapping[str, str], source: Source) -> None:
        """The rows of a batch that are good, column by column."""
        good = np.ones(batch.n_rows, bool)
        cells = {role: Column(batch.columns[column]) for role, column in columns.items()}
        keys = {role: KeyBatch.of(batch.columns[column]) for role, column in columns.items() if role in (*_KEYS, *WORDS)}
        for role in [role for role in CORE if role in cells and role != "rating"]:
            self._leave_out(f"rows without {role} left out", cells[role].is_empty, good, batch)
        for role in _KEYS:
            for fault, pattern in _BROKEN.items():
                broken = keys[role].matching(pattern)
                if broken is not None:
                    self._leave_out(f"rows whose {role} {fault} left out", broken, good, batch)
        numbers = {}
        for role in [role for role in ("time", "rating") if role in columns]:
            numbers[role], is_bad = self._number_column(role).read(batch.columns[columns[role]])
            if role == "time":
                self._leave_out("rows whose time cannot be read left out", is_bad, good, batch)
            else:
                numbers[role] = self._with_unknown(role, numbers[role], cells[role], is_bad, good, batch)
        if source.part is not None:
            numbers["part"] = np.full(batch.n_rows, source.part, np.int8)
        elif "part" in cells:
            numbers["part"] = _parts(cells["part"])
            reason = "rows whose part is none of train, valid and test left out"
            self._leave_out(reason, numbers["part"] < 0, good, batch)
        features = {role: columns[role] for role in columns if role not in (*CORE, *WORDS)}
        for role, column in [*features.items(), *((f"column:{more}", more) for more in self._more)]:
            values, is_bad = self._number_column(role).read(batch.columns[column])
            numbers[role] = np.where(is_bad | Column(batch.columns[column]).is_empty, np.nan, values)
        is_whole = bool(good.all())
        for role, values in numbers.items():
            self._number_column(role).append(values if is_whole else values[good])
        for role, batch_keys in keys.items():
            self._key_column(role).append(batch_keys if is_whole else batch_keys.filtered(good))
        lost = [] if is_whole else batch.rows(np.flatnonzero(~good))
        self.sources.add(int(np.count_nonzero(good)), [*batch.left_out, *lost])

    def _leave_out(self, reason: str, bad: np.ndarray, good: np.ndarray, batch: Batch) -> None:
        """Count the rows that are bad and still good, and make them not good."""
        if not bad.any():
            return
        fresh = np.flatnonzero(bad & good)
        self.skipped.add(reason, len(fresh), (f"row {row + 1}" for row in batch.rows(fresh[:3])))
        good[fresh] = False

    def _with_unknown(
        self, role: str, values: np.ndarray, cells: Column, is_bad: np.ndarray, good: np.ndarray, batch: Batch
    ) -> np.ndarray:
        """Values with NaN where a cell is empty or bad. Counts those that are bad and do not say that they are unknown."""
        if not is_bad.any() and not cells.is_empty.any():
            return values
        bad = np.flatnonzero(is_bad & good)
        lost = bad[[cell not in NO_VALUE for cell in cells.take(bad).to_list()]] if len(bad) else bad
        names = (f"row {row + 1}" for row in batch.rows(lost[:3]))
        self.skipped.add(f"{role}s that cannot be read, taken as unknown", len(lost), names)
        return np.where(is_bad | cells.is_empty, np.nan, values)

    def _add_sequences(self, text: ColumnReader, source: Source) -> None:
        if text.lists is not None:
            users, counts, items = self._listed(text.lists)
        else:
            words, starts = text.lines()
            _refuse_table(text, words, starts, source.name)
            counts = np.diff(starts) - 1
            users = words.take(starts[:-1])
            is_item = np.ones(len(words), bool)
            is_item[starts[:-1]] = False
            items = words.take(is_item)
        lines, names = users.encode()
        alone = np.flatnonzero(counts == 0)
        self.skipped.add("users without items left out", len(alone), (names[lines[line]] for line in alone))
        again = len(lines) - len(names)
        self.skipped.add("lines of a user who had one already, joined to it", again, is_skipped=False)
        part_column = self._number_column("part") if source.part is not None else None
        self._key_column("user").append(KeyBatch.of(users.take(np.repeat(np.arange(len(users)), counts)).array))
        self._key_column("item").append(KeyBatch.of(items.array))
        self.n_read += len(items)
        self.sources.add(len(items), [])
        if part_column is not None:
            part_column.pad_to(self.n_rows, source.part or TRAIN)

    def _listed(self, lists: Mapping[str, list[object]]) -> tuple[Column, np.ndarray, Column]:
        """Users, how many items each has, int64 (U,), and the items of all, from {user: [item, …]}."""
        is_good = {
            user: all(isinstance(item, str | int | float) and item != "" for item in items) for user, items in lists.items()
        }
        bad = [user for user, good in is_good.items() if not good]
        self.skipped.add("users whose items are not all names, left out", len(bad), bad)
        kept = {user: items for user, items in lists.items() if is_good[user]}
        counts = np.array([len(items) for items in kept.values()], np.int64)
        return Column.of(list(kept)), counts, Column.of([str(item) for items in kept.values() for item in items])

    def _add_windows(self, text: ColumnReader, chosen: Chosen, source: Source) -> None:
        columns = chosen.columns
        has_parts = "part" in columns and source.part is None
        self.split = self.split or ("column" if has_parts else "")
        for batch in text.batches(list(columns.values())):
            self.n_read += batch.n_rows + len(batch.left_out)
            cells = {role: Column(as_text(batch.columns[column])) for role, column in columns.items()}
            parts = _parts(cells["part"]) if has_parts else np.full(batch.n_rows, source.part or TRAIN)
            users, histories = cells["user"].to_list(), cells["history"].to_list()
            items = cells["item"].to_list() if "item" in cells else [None] * batch.n_rows
            for n, (user, history, item, part) in enumerate(zip(users, histories, items, parts.tolist(), strict=True)):
                try:
                    if not user or part < 0:
                        raise ValueError("it has no user" if not user else "its part is unknown")
                    self._windows.append((user, windows.items_of(history or ""), item, part))
                except ValueError as fault:
                    self.skipped.skip("rows with a history left out", f"row {batch.rows(np.array([n]))[0] + 1}: {fault}")

    def _join_windows(self) -> None:
        sequences, apart = windows.join(self._windows)
        self._windows = []
        what = "rows whose history does not go on from the row before, appended"
        self.skipped.add(what, len(apart), (f"row {row + 1}" for row in apart), is_skipped=False)
        users, items, parts = windows.columns_of(sequences)
        self.keys["user"].append_texts(users)
        self.keys["item"].append_texts(items)
        if self.split:
            self._number_column("part").append(parts)
        self.sources.add(len(users), [])


def _parts(cells: Column) -> np.ndarray:
    """int8 (n,): the part that a word names, -1 for other words."""
    numbers, words = cells.encode()
    known = np.array([PARTS.get(str(word).strip().lower(), -1) for word in words], np.int8)
    return known[numbers] if len(words) else np.empty(0, np.int8)


def _refuse_table(text: ColumnReader, words: Column, starts: np.ndarray, name: str) -> None:
    """Raise Corrupt where lines of words are rather the rows of a table."""
    first = text.first_line.split()
    if first and first[0].lower() in NAMES["user"]:
        raise Corrupt(f"{name}: columns are separated by ' '. Use tabs or commas, as tr ' ' '\\t' makes them.")
    counts = np.diff(starts[:_N_JUDGED])
    if len(counts) > 1 and 3 <= counts[0] <= 6 and (counts == counts[0]).all():
        cells = words.take(np.arange(starts[len(counts)])).to_list()
        columns = [[cell or "" for cell in cells[n :: counts[0]]] for n in range(1, counts[0])]
        if any(looks_like_time("", column) for column in columns):
            raise Corrupt(
                f"{name}: its lines look like the rows of a table, with a time, and not like a user and items. Name the "
                "columns with kvtools convert --columns, as in user,item,rating,time."
            )
