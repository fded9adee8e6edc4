"""Answers to learn from in packed rows: each prompt stands there once, and after it the answers to it.

Eight answers to a prompt with a picture so cost its tower and its tokens once, forward and backward. Not here: what is learnt
(grpo.py), attention of an answer to its prompt (model/attention.py).

Legend: S tokens of a row, G segments.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvtools.keye.data.packing import collate
from kvtools.keye.model.flops import RowShape
from kvtools.keye.model.generate import Answer, with_answer
from kvtools.keye.model.inputs import Example, PackedRow
from kvtools.keye.rl.rollouts import Group
from kvtools.train import packing


@dataclass(frozen=True)
class ScoredAnswer:
    """What follows a prompt, as an example whose targets are the drawn tokens, with its advantage and log-probabilities."""

    example: Example
    advantage: float
    logprobs: np.ndarray

    @classmethod
    def of(cls, prompt: Example, answer: Answer, advantage: float) -> "ScoredAnswer":
        """An answer to that prompt."""
        whole, begin = with_answer(prompt, answer), len(prompt)
        visuals = whole.visuals[len(prompt.visuals) :]
        tokens, targets, positions = whole.tokens[begin:], whole.targets[begin:], whole.positions[:, begin:]
        return cls(Example(prompt.key, tokens, targets, positions, visuals), advantage, answer.logprobs)


@dataclass(frozen=True)
class Prompted:
    """A prompt, without targets, and answers to it."""

    prompt: Example
    answers: Sequence[ScoredAnswer]

    def __len__(self) -> int:
        return len(self.prompt) + sum(len(answer.example) for answer in self.answers)


@dataclass(frozen=True)
class AnswerRow:
    """Answers of one packed row. n_counted: by how many answers the loss is divided on its behalf, those without loss among
    them. keys: of prompts, for a message, where there are no answers."""

    prompted: Sequence[Prompted] = ()
    n_counted: int = 0
    keys: tuple[str, ...] = ()

    @property
    def answers(self) -> list[ScoredAnswer]:
        """The answers in the order of the row."""
        return [answer for part in self.prompted for answer in part.answers]

    def packed(self) -> PackedRow:
        """What the model reads."""
        examples: list[Example] = []
        prompts: list[int] = []
        for part in self.prompted:
            prompts += [-1, *[len(examples)] * len(part.answers)]
            examples += [part.prompt, *(answer.example for answer in part.answers)]
        return replace(collate(examples), prompts=np.array(prompts, np.int32))


def shape_of(row: PackedRow) -> RowShape:
    """What the cost of a row depends on."""
    prompts = [] if row.prompts is None else row.prompts.tolist()
    n_before = [0 if prompt < 0 else row.lengths[prompt] for prompt in prompts]
    return RowShape(row.lengths, row.grid.tolist(), int(row.targets.sum()), n_before)


def rows_of(groups: Sequence[Group], row_tokens: int, update: int, n_updates: int) -> list[AnswerRow]:
    """The answers of an update in packed rows, of row_tokens or of one answer. Those of groups without a signal are counted,
    and carry no loss, that of KL included."""
    parts: list[Prompted] = []
    n_counted = 0
    for group in groups:
        numbers = [number for number in np.flatnonzero(group.is_kept_G).tolist() if number % n_updates == update]
        n_counted += len(numbers)
        if group.has_signal:
            prompt = replace(group.example, targets=np.zeros(len(group.example), np.uint8))
            answers = [ScoredAnswer.of(prompt, group.answers[number], float(group.advantages_G[number])) for number in numbers]
            parts += _fitting(prompt, answers, row_tokens)
    if not parts:
        return [AnswerRow((), n_counted)]
    lengths = [len(part) for part in parts]
    rows = [AnswerRow([parts[index] for index in row]) for row in packing.pack(lengths, max(row_tokens, *lengths))]
    # the loss is divided by all answers that count, whichever row they are told by
    return [replace(rows[0], n_counted=n_counted), *rows[1:]]


def _fitting(prompt: Example, answers: Sequence[ScoredAnswer], row_tokens: int) -> Iterator[Prompted]:
    """The answers to a prompt in parts that fit a row; one answer may be too long for it."""
    part: list[ScoredAnswer] = []
    n_tokens = len(prompt)
    for answer in answers:
        if part and n_tokens + len(answer.example) > row_tokens:
            yield Prompted(prompt, part)
            part, n_tokens = [], len(prompt)
        part.append(answer)
        n_tokens += len(answer.example)
    if part:
        yield Prompted(prompt, part)
