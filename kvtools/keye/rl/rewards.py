"""Rewards of answers, by term: what --reward names, and the weighted sum of it.

    correct       1 where the answer is right by the rules of correct.py, else 0
    format        1 where the reply has the format of the mode that its prompt asks for, else 0
    consistency   1 where the thinking ends in the answer, -1 where it ends in another, 0 where there is nothing to compare: a
                  rule that stands in for a judge, and with a judge its verdict
    repetition    the share of repeated n-grams, from 0 to 1: give it a weight below 0
    length        tokens of the answer over --max-new, from 0 to 1
    cmd:PROGRAM   what a program of the user's says

A score that nobody could give (a judge that is down) is None: the answer is set aside. A score that is NaN spoils its group.
Neither is ever counted as 0. Not here: advantages (train/objectives/policy.py).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from kvtools.errors import Usage
from kvtools.keye.data import modes
from kvtools.keye.rl.correct import Expected, final_answer, is_correct, matches
from kvtools.keye.rl.prompts import Prompt

NAMES = ("correct", "format", "consistency", "repetition", "length")
N_GRAM = 3
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+|[^\w\s]")
_TAG = re.compile(r"</?(?:think|answer|analysis|code|sandbox_output)>")  # part of the format, no repetition
_LAST_LINES = 3  # of the thinking, in which its result is looked for


@dataclass(frozen=True)
class Reply:
    """An answer to a prompt, as rewards see it."""

    key: str
    prompt: Prompt
    text: str
    n_tokens: int
    max_new: int


class Scorer(Protocol):
    """One term of the reward. is_slow: it waits for others, and may run in a thread beside the rollouts."""

    name: str
    is_slow: bool

    @property
    def fault(self) -> str | None:
        """Why it first could not score a reply, as a clause, where it knows."""

    def score(self, replies: Sequence[Reply]) -> list[float | None]:
        """The score of each reply; None for one that could not be scored."""


@dataclass(frozen=True)
class RewardSpec:
    """What one --reward says: a name of NAMES, or `cmd` and a program, and a weight."""

    name: str
    weight: float = 1.0
    program: str | None = None

    @staticmethod
    def parse(text: str) -> "RewardSpec":
        """NAME[:WEIGHT] or cmd:PROGRAM[:WEIGHT]; in `cmd:a --x 1:2` the last word is an argument. Raises Usage."""
        name, _, rest = text.partition(":")
        program, weight = None, rest
        if name == "cmd":
            head, _, tail = rest.rpartition(":")
            last = f" {head}".rpartition(" ")[2]  # of a number or an option, what follows the colon is a part
            has_weight = bool(head) and _is_number(tail) and not _is_number(last) and not last.startswith("-")
            program, weight = (head, tail) if has_weight else (rest, "1")
            if not program.strip():
                raise Usage(f"--reward {text}: the program is missing. Give cmd:PROGRAM, as cmd:./score.py.")
            files = [word.rpartition("/")[2] for word in program.split() if not word.startswith("-")]
            name = f"cmd:{next((file for file in files if '.' in file), files[0] if files else program.split()[0])}"
        elif name not in NAMES:
            raise Usage(f"--reward {text}: there is no reward {name}. The rewards are {', '.join(NAMES)} and cmd:PROGRAM.")
        elif ":" not in text:
            weight = "1"
        if not _is_number(weight):
            raise Usage(f"--reward {text}: {weight!r} is no weight. Give NAME:WEIGHT with a finite number, as format:0.5.")
        return RewardSpec(name, float(weight), program)


@dataclass(frozen=True)
class Scored:
    """The scores of one reply by term, and their weighted sum; None where a term could not be scored."""

    scores: Mapping[str, float | None]
    reward: float | None


class Rewards:
    """The terms of a run's reward. judge: the model that judges. Close it: slow terms have a thread of their own."""

    def __init__(self, terms: Sequence[tuple[Scorer, float]], judge: str | None = None) -> None:
        self.terms, self.judge = list(terms), judge
        self._pool = ThreadPoolExecutor(1) if any(scorer.is_slow for scorer, _ in terms) else None

    @property
    def names(self) -> list[str]:
        """The terms' names, in order."""
        return [scorer.name for scorer, _ in self.terms]

    @property
    def has_slow(self) -> bool:
        """Whether a term waits for others, so that it pays to hand in replies in parts."""
        return self._pool is not None

    @property
    def fault(self) -> str | None:
        """Why a reply could first not be scored, as a clause, where a term knows."""
        return next((scorer.fault for scorer, _ in self.terms if scorer.fault is not None), None)

    def submit(self, replies: Sequence[Reply]) -> Callable[[], list[Scored]]:
        """Begin to score; call what is returned for the scores. Rules are done on return, slow terms run in a thread."""
        columns: list[list[float | None] | Future[list[float | None]]] = []
        for scorer, _ in self.terms:
            if scorer.is_slow and self._pool is not None:
                columns.append(self._pool.submit(scorer.score, list(replies)))
            else:
                columns.append(scorer.score(replies))

        def scores() -> list[Scored]:
            done = [column.result() if isinstance(column, Future) else column for column in columns]
            return [self._sum(row) for row in zip(*done, strict=True)] if done else []

        return scores

    def close(self) -> None:
        """Stop the thread of slow terms."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _sum(self, row: Sequence[float | None]) -> Scored:
        scores = dict(zip(self.names, row, strict=True))
        if any(score is None for score in row):
            return Scored(scores, None)
        return Scored(scores, sum(weight * (score or 0.0) for (_, weight), score in zip(self.terms, row, strict=True)))


class Rule:
    """A term that a rule of one reply gives."""

    is_slow, fault = False, None

    def __init__(self, name: str, rule: Callable[[Reply], float]) -> None:
        self.name, self._rule = name, rule

    def score(self, replies: Sequence[Reply]) -> list[float | None]:
        """The rule's value of each reply."""
        return [self._rule(reply) for reply in replies]


def correct(reply: Reply) -> float:
    """1 where the reply ends in the expected answer, else 0; NaN without an expected answer."""
    expected = reply.prompt.expected
    return math.nan if expected is None else float(is_correct(expected, reply.text))


def well_formed(reply: Reply) -> float:
    """1 where the reply has the format of its mode, else 0."""
    return float(is_well_formed(reply.text, reply.prompt.mode))


def is_well_formed(text: str, mode: str) -> bool:
    """Whether a reply has the format of a mode."""
    try:
        modes.parse(text, mode)
    except modes.FormatError:
        return False
    return True


def consistency_proxy(reply: Reply) -> float:
    """1 where the last lines of the thinking say the answer, -1 where they say another result, 0 without thinking or answer.

    A rule, and so a proxy: it compares results, not arguments.
    """
    thinking, answer = split_thinking(reply.text)
    if not thinking or not answer:
        return 0.0
    tail = "\n".join(thinking.strip().splitlines()[-_LAST_LINES:])
    if re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", tail, re.IGNORECASE):
        return 1.0
    kind = reply.prompt.expected.kind if reply.prompt.expected is not None else "text"
    return 1.0 if matches(Expected(kind, answer), tail) else -1.0


def split_thinking(text: str) -> tuple[str, str]:
    """The thinking and the final answer of a reply; empty where there is none."""
    thinking = text.rpartition("<think>")[2].partition("</think>")[0] if "<think>" in text and "</think>" in text else ""
    return thinking, final_answer(text) or ""


def repetition(text: str, n: int = N_GRAM) -> float:
    """The share of a text's n-grams of words that stood there before, from 0 to 1; letters of Chinese, Japanese and Korean are
    words."""
    words = _WORD.findall(_TAG.sub(" ", text).casefold())
    n_grams = [tuple(words[begin : begin + n]) for begin in range(len(words) - n + 1)]
    return 1 - len(set(n_grams)) / len(n_grams) if n_grams else 0.0


RULES: dict[str, Callable[[Reply], float]] = {
    "correct": correct,
    "format": well_formed,
    "consistency": consistency_proxy,
    "repetition": lambda reply: repetition(reply.text),
    "length": lambda reply: reply.n_tokens / reply.max_new,
}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
