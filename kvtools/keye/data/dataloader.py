"""The rows of an epoch in an order that depends on the seed and the epoch alone, built only where they are needed.

An epoch is a shuffle of the conversations, cut into windows; each window is packed into rows, and its rows are shuffled. A
`Load` says what goes into a row, and what that costs, without its pixels, so that all ranks can plan alike and each builds its
own share. A run is taken up again by going through the loads of its epoch up to where it was: a conversation is measured once.

Conversations are held in memory, texts only. To measure one that names a file is to decode it: make a `video` stream first
(`kvtools tokenize-video`) where there are many.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kvtools.artifact.stream_index import Index
from kvtools.chance import rng_for
from kvtools.errors import Corrupt
from kvtools.keye.data.chat_template import Chat, Conversation
from kvtools.keye.data.media import Media, Unreadable
from kvtools.keye.data.packing import example, from_record, join, shortened
from kvtools.keye.model.inputs import Example, PackedRow
from kvtools.skipped import SkippedRows
from kvtools.train import packing

TOO_LONG = "conversations longer than a row left out"
UNREADABLE = "conversations with an unreadable picture or video left out"
NO_ANSWER = "conversations without an answer to learn left out"
BAD = "conversations that cannot be understood left out"


@dataclass(frozen=True)
class Load:
    """What a row will hold: numbers of conversations (or of a record), tokens of each, grids int32 (V, 3), and targets."""

    numbers: tuple[int, ...]
    lengths: tuple[int, ...]
    grid: np.ndarray
    n_targets: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class _Measure:
    length: int
    grid: np.ndarray
    n_targets: int


class Feed:
    """Rows of conversations. `skipped` tells what was left out, and grows as conversations are first met; `gone` what was there
    when it was measured and could not be built, which one rank alone may know.

    length: tokens a row. window: conversations packed together; more fill rows better. cuts: conversations longer than a row
    lose their last turns; otherwise they are left out.
    """

    def __init__(
        self, conversations: Sequence[Conversation], chat: Chat, media: Media | None, *, length: int, window: int = 256,
        seed: int = 0, cuts: bool = False, tokens_per_second: int = 2,
    ) -> None:  # fmt: skip
        self._conversations = list(conversations)
        self._chat, self._media, self._tokens_per_second = chat, media, tokens_per_second
        self.length, self._window, self._seed, self._cuts = length, window, seed, cuts
        self._measures: dict[int, _Measure | None] = {}
        self.skipped, self.gone = SkippedRows(), SkippedRows()
        self._is_gone: set[int] = set()

    def __len__(self) -> int:
        return len(self._conversations)

    def epoch(self, number: int) -> Iterator[Load]:
        """The rows of an epoch, in order; the same every time for the same number."""
        order = rng_for(self._seed, "conversations", number).permutation(len(self._conversations)).tolist()
        for begin in range(0, len(order), self._window):
            yield from self._window_of(order[begin : begin + self._window], number, begin)

    def build(self, load: Load) -> PackedRow:
        """The row, with its pixels. A conversation that has become unreadable since it was measured is left out for good
        and told."""
        numbers = [number for number in load.numbers if number not in self._is_gone]
        built = [self._built(number, self.gone) for number in numbers]
        self._is_gone |= {number for number, each in zip(numbers, built, strict=True) if each is None}
        return join([each for each in built if each is not None])

    def key(self, number: int) -> str:
        return str(self._conversations[number].get("id", number))

    def _window_of(self, numbers: Sequence[int], epoch: int, begin: int) -> Iterator[Load]:
        measured = {number: found for number in numbers if (found := self._measure(number)) is not None}
        kept = list(measured)
        rows = packing.pack([measured[number].length for number in kept], self.length)
        for place in rng_for(self._seed, "rows", epoch, begin).permutation(len(rows)).tolist():
            chosen = tuple(kept[k] for k in rows[place])
            inside = [measured[number] for number in chosen]
            grid = np.concatenate([np.empty((0, 3), np.int32), *(each.grid for each in inside)])
            lengths, n_targets = tuple(each.length for each in inside), sum(each.n_targets for each in inside)
            yield Load(chosen, lengths, grid, n_targets, tuple(map(self.key, chosen)))

    def _measure(self, number: int) -> _Measure | None:
        if number not in self._measures:
            made = self._built(number, self.skipped)
            self._measures[number] = None if made is None else _measured(made)
        return self._measures[number]

    def _built(self, number: int, skipped: SkippedRows) -> Example | None:
        key = self.key(number)
        try:
            made = self._example(self._conversations[number], key)
        except Unreadable as fault:
            skipped.skip(UNREADABLE, f"{key}: {fault}")
        except (ValueError, KeyError, TypeError) as fault:
            skipped.skip(BAD, f"{key}: {' '.join(str(fault).split())}")
        else:
            if len(made) > self.length:
                skipped.skip(TOO_LONG, f"{key}: {len(made)} tokens")
            elif not made.targets.any():
                skipped.skip(NO_ANSWER, key)
            else:
                return made
        return None

    def _example(self, conversation: Conversation, key: str) -> Example:
        made = example(conversation, self._chat, self._media, key=key, tokens_per_second=self._tokens_per_second)
        if len(made) > self.length and self._cuts:
            cut = shortened(conversation, self._chat, [visual.n_tokens for visual in made.visuals], self.length)
            if cut is not None:
                return example(cut, self._chat, self._media, key=key, tokens_per_second=self._tokens_per_second)
        return made


class PackedFeed:
    """Rows that `sequence` streams hold, as they are; the same use as a Feed. Raises Corrupt where they are of another kind.

    check: called with each row; its ValueError tells what is wrong with it.
    """

    def __init__(
        self, streams: Sequence[Index], *, seed: int = 0, check: Callable[[PackedRow], None] = lambda _: None
    ) -> None:  # fmt: skip
        self._parts = list(streams)
        for part in self._parts:
            if part.heads[0].kind != "sequence":
                raise Corrupt(f"{part.name}: {part.heads[0].kind} records found, sequence expected.")
        self._places = [(p, n) for p, part in enumerate(self._parts) for n in range(len(part))]
        self._seed, self._check = seed, check
        self._loads: dict[int, Load] = {}
        self.skipped, self.gone = SkippedRows(), SkippedRows()

    def __len__(self) -> int:
        return len(self._places)

    def epoch(self, number: int) -> Iterator[Load]:
        """The rows of an epoch, in order; the same every time for the same number."""
        for place in rng_for(self._seed, "conversations", number).permutation(len(self._places)).tolist():
            if place not in self._loads:
                row = self._row(place)
                self._loads[place] = Load((place,), tuple(row.lengths), row.grid, int(row.targets.sum()), row.keys)
            yield self._loads[place]

    def build(self, load: Load) -> PackedRow:
        """The row, with its pixels."""
        return self._row(load.numbers[0])

    def _row(self, place: int) -> PackedRow:
        part, number = self._places[place]
        record = self._parts[part].fetch(number)
        try:
            row = from_record(record.tensors, record.fields)
            self._check(row)
            return row
        except ValueError as fault:
            raise Corrupt(f"{self._parts[part].name}: record {number}: {fault}.") from None


def steps(loads: Iterator[Load], n_tokens: int) -> Iterator[list[Load]]:
    """Loads gathered into steps of at most n_tokens tokens each, but one load at least; the last may be smaller."""
    held: list[Load] = []
    n_held = 0
    for load in loads:
        if held and n_held + sum(load.lengths) > n_tokens:
            yield held
            held, n_held = [], 0
        held.append(load)
        n_held += sum(load.lengths)
    if held:
        yield held


def _measured(made: Example) -> _Measure:
    grid = np.array([visual.grid for visual in made.visuals], np.int32).reshape(-1, 3)
    return _Measure(len(made), grid, int(made.targets.sum()))
