"""The packed rows of an epoch, in an order that depends on the seed and the epoch alone, built only where they are needed.

An epoch is a shuffle of the conversations, cut into windows; each window is packed into rows, and its rows are shuffled. A
`RowPlan` says what a row holds and what it costs, without its pixels, so that all ranks plan alike and each builds only its own
rows. A resumed run goes through the plans of its epoch up to where it was: each conversation is measured once.

Conversations are held in memory, text only. To measure one that names a video file, the file is decoded: make a `video` stream
first (`kvtools tokenize-video`) where there are many. Legend: V pictures and videos.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kvtools.artifact.stream_index import Index
from kvtools.chance import rng_for
from kvtools.errors import Corrupt, raising, reason_of
from kvtools.keye.data.chat_template import Conversation
from kvtools.keye.data.conversations import BAD
from kvtools.keye.data.media import Media, Unreadable
from kvtools.keye.data.packing import collate, from_record
from kvtools.keye.data.processor import Processor
from kvtools.keye.data.references import References
from kvtools.keye.model.inputs import Example, PackedRow
from kvtools.skipped import SkippedRows
from kvtools.train import packing

TOO_LONG = "conversations longer than a row left out"
UNREADABLE = "conversations with an unreadable picture or video left out"
ROW_UNREADABLE = "packed rows with an unreadable picture or video left out"
NO_ANSWER = "conversations without an answer to learn left out"
NOTHING_SHOWN = "conversations without the picture or video that this stage needs left out"


@dataclass(frozen=True)
class RowPlan:
    """What a row will hold: indices of conversations (or of a record), tokens of each, grids int32 (V, 3), and targets."""

    indices: tuple[int, ...]
    lengths: tuple[int, ...]
    grid: np.ndarray
    n_targets: int
    keys: tuple[str, ...]


class ConversationLoader:
    """Packed rows of conversations.

    length: tokens a row. window: conversations that are packed together; more fill the rows better. truncates: conversations
    longer than a row lose their last messages instead of being skipped. needs_visual: those that show nothing are skipped too.
    `skipped` says what was left out, and grows as
    conversations are first measured; `lost_later` what was measured and could not be built, which one rank alone may know.
    """

    def __init__(
        self, conversations: Sequence[Conversation], processor: Processor, *, length: int, window: int = 256, seed: int = 0,
        truncates: bool = False, needs_visual: bool = False,
    ) -> None:  # fmt: skip
        self._conversations, self._processor = list(conversations), processor
        self._length, self._window, self._seed, self._truncates = length, window, seed, truncates
        self._needs_visual = needs_visual
        self._plans: dict[int, RowPlan | None] = {}  # of each conversation alone
        self.skipped, self.lost_later = SkippedRows(), SkippedRows()
        self._lost: set[int] = set()

    def __len__(self) -> int:
        return len(self._conversations)

    def epoch(self, number: int) -> Iterator[RowPlan]:
        """The rows of an epoch, in order; the same every time for the same number."""
        order = rng_for(self._seed, "conversations", number).permutation(len(self._conversations)).tolist()
        for begin in range(0, len(order), self._window):
            alone = [plan for index in order[begin : begin + self._window] if (plan := self._measure(index)) is not None]
            rows = packing.pack([plan.lengths[0] for plan in alone], self._length)
            for row in rng_for(self._seed, "rows", number, begin).permutation(len(rows)).tolist():
                yield _together([alone[index] for index in rows[row]])

    def build(self, plan: RowPlan) -> PackedRow:
        """The row, with its pixels. A conversation that has become unreadable since it was measured is left out for good."""
        examples: list[Example] = []
        for index in plan.indices:
            if index in self._lost:
                continue
            example = self._example(index, self.lost_later)
            if example is None:
                self._lost.add(index)
            else:
                examples.append(example)
        return collate(examples)

    def _measure(self, index: int) -> RowPlan | None:
        if index not in self._plans:
            example = self._example(index, self.skipped)
            self._plans[index] = None if example is None else _alone(index, example)
            self.skipped.n_rows = len(self._plans)
        return self._plans[index]

    def _example(self, index: int, skipped: SkippedRows) -> Example | None:
        conversation = self._conversations[index]
        key = str(conversation.get("id", index))
        try:
            example = self._processor.example(conversation, key=key, max_tokens=self._length, truncates=self._truncates)
        except Unreadable as fault:
            skipped.skip(UNREADABLE, f"{key}: {fault}")
        except (ValueError, KeyError, TypeError) as fault:
            skipped.skip(BAD, f"{key}: {reason_of(fault)}")
        else:
            if len(example) > self._length:
                skipped.skip(TOO_LONG, f"{key}: {len(example)} tokens")
            elif not example.targets.any():
                skipped.skip(NO_ANSWER, key)
            elif self._needs_visual and not example.visuals:
                skipped.skip(NOTHING_SHOWN, key)
            else:
                return example
        return None


class PackedRowLoader:
    """The rows that `sequence` streams hold, as they are; used like a ConversationLoader.

    check: called with each row; its ValueError says what is wrong with the row, which raises Corrupt. media: what rows by
    reference show; a row of which something cannot be read is left out.
    """

    def __init__(
        self, streams: Sequence[Index], *, seed: int = 0, check: Callable[[PackedRow], None] = lambda _: None,
        media: Media | None = None,
    ) -> None:  # fmt: skip
        self._records = [(stream, number) for stream in streams for number in range(len(stream))]
        self._seed, self._check = seed, check
        self._references = References(media or Media())
        self._plans: dict[int, RowPlan | None] = {}
        self.skipped, self.lost_later = SkippedRows(), SkippedRows()

    def __len__(self) -> int:
        return len(self._records)

    def epoch(self, number: int) -> Iterator[RowPlan]:
        """The rows of an epoch, in order; the same every time for the same number."""
        for index in rng_for(self._seed, "conversations", number).permutation(len(self._records)).tolist():
            if index not in self._plans:
                self._plans[index] = self._measure(index)
            if (plan := self._plans[index]) is not None:
                yield plan

    def build(self, plan: RowPlan) -> PackedRow:
        """The row, with its pixels. One that has become unreadable since it was measured is empty."""
        row = self._row(plan.indices[0])
        try:
            return self._references.resolve(row)
        except Unreadable as fault:
            self.lost_later.skip(ROW_UNREADABLE, f"record {self._records[plan.indices[0]][1]}: {fault}")
            return collate([])

    def _measure(self, index: int) -> RowPlan | None:
        row = self._row(index)
        try:
            self._references.resolve(row)  # decodes it once more, as conversations are, so that every plan can be built
        except Unreadable as fault:
            self.skipped.skip(ROW_UNREADABLE, f"record {self._records[index][1]}: {fault}")
            return None
        return RowPlan((index,), tuple(row.lengths), row.grid, int(row.targets.sum()), row.keys)

    def _row(self, index: int) -> PackedRow:
        stream, number = self._records[index]
        record = stream.fetch(number)
        with raising(Corrupt, f"{stream.name}: record {number}", "Pack the rows again, with the model's tokenizer."):
            row = from_record(record.tensors, record.fields)
            self._check(row)
            return row


def steps(plans: Iterator[RowPlan], n_tokens: int) -> Iterator[list[RowPlan]]:
    """Rows gathered into steps of at most n_tokens tokens each, but one row at least; the last step may be smaller."""
    step: list[RowPlan] = []
    n_held = 0
    for plan in plans:
        if step and n_held + sum(plan.lengths) > n_tokens:
            yield step
            step, n_held = [], 0
        step.append(plan)
        n_held += sum(plan.lengths)
    if step:
        yield step


def _alone(index: int, example: Example) -> RowPlan:
    grid = np.array([visual.grid for visual in example.visuals], np.int32).reshape(-1, 3)
    return RowPlan((index,), (len(example),), grid, int(example.targets.sum()), (example.key,))


def _together(plans: Sequence[RowPlan]) -> RowPlan:
    indices, lengths, keys = (tuple(getattr(plan, name)[0] for plan in plans) for name in ("indices", "lengths", "keys"))
    return RowPlan(indices, lengths, np.concatenate([plan.grid for plan in plans]), sum(plan.n_targets for plan in plans), keys)
