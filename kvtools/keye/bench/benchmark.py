"""What all benchmarks have in common: a question, what is asked of a model, and the verdict on its answer.

A benchmark is an object with the methods of `Bench`. It has two scorers that are never mixed in one figure: `rules`, offline
and ours, and `reference`, what the published evaluator does, which may ask a judge. Not here: where answers come from
(answers.py), figures over many verdicts (report.py).
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kvtools.skipped import SkippedRows

Score = Literal["rules", "reference"]
Key = tuple[str, str]  # task and index
MODES = {"auto": "", "think": "/think", "no_think": "/no_think"}  # what is appended to the question, without a space
LONGEST_CELL = 1 << 28  # letters: a cell may hold a picture in base64
NO_PICTURES = "questions whose pictures are missing left out"


def index_of(value: Any) -> str:
    """A question's index as text: whole numbers, which tables may hold as 3.0, without their point."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip())


@dataclass(frozen=True)
class Question:
    """One question. parts: what is shown and asked, as content of a message. asked_with: what the scorer needs beside it."""

    task: str
    index: str
    parts: list[dict[str, Any]]
    answer: str
    category: str = ""
    asked_with: Any = None

    @property
    def key(self) -> Key:
        """What names the question."""
        return self.task, self.index

    @property
    def media(self) -> list[dict[str, Any]]:
        """The pictures and videos, in order."""
        return [part for part in self.parts if part["type"] != "text"]

    def messages(self, mode: str) -> list[dict[str, Any]]:
        """What a model is asked: all pictures, then the text, which ends with the switch of the mode."""
        content = [dict(part) for part in self.parts]
        content[-1]["text"] += MODES[mode]
        return [{"role": "user", "content": content}]


@dataclass
class QuestionSet:
    """The questions of some folders. faults: lines on rows and files that cannot be read, of which the rest is without.

    missing: questions that are left out since a picture is not there, by task. left_out: keys of all questions that are left
    out, as far as they are known, so that answers to them are not taken for answers to something else. warnings: what else a
    person should know. is_standin: whether the set says of itself that it is none of the benchmark.
    """

    questions: list[Question] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    missing: dict[str, SkippedRows] = field(default_factory=dict)
    left_out: set[Key] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    is_standin: bool = False

    @property
    def n_missing(self) -> int:
        """How many questions were left out for their pictures."""
        return sum(sum(rows.counts.values()) for rows in self.missing.values())


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and what was read in it; None where nothing could be: an extraction failure, which is wrong.

    judge: the judge's reply, where one was asked.
    """

    is_right: bool
    extracted: str | None
    judge: str | None = None


@dataclass(frozen=True)
class JudgeRequest:
    """What a judge is asked. accept: whether a reply is usable; another is asked for again, hotter by `temperature_step`.

    without: the verdict where there is no judge; None where there is none then.
    """

    prompt: str
    without: Verdict | None = None
    accept: Callable[[str], bool] | None = None
    tries: int = 5
    temperature_step: float = 0.5
    max_tokens: int = 128


@dataclass(frozen=True)
class Generation:
    """How answers are generated: the mode, the most tokens, and the temperature, where 0 is greedy."""

    mode: str
    max_new: int
    temperature: float = 0.0
    seed: int = 0


class Bench(Protocol):
    """A benchmark. tasks: their names, in the order of the report."""

    @property
    def name(self) -> str:
        """What --bench calls it."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it has; empty where the data name them."""

    def task_of(self, name: str) -> str | None:
        """The task of that name, or of another that is in use; None where there is none."""

    def read(self, sources: Sequence[str], only: Collection[str] = (), *, needs_media: bool) -> QuestionSet:
        """The questions of folders or files. only: tasks to read; empty is all. needs_media: pictures must be there, for
        questions that shall be asked."""

    def rules(self, question: Question, text: str) -> Verdict:
        """The verdict of the offline scorer."""

    def reference(self, question: Question, text: str) -> Verdict | JudgeRequest:
        """The verdict of the published evaluator, or what it asks a judge."""

    def judged(self, question: Question, reply: str) -> Verdict:
        """The verdict that a judge's reply means."""
