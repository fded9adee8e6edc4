"""Scores by a judge: a model behind an OpenAI-compatible URL, of which several share the questions.

The judge is asked for JSON and read strictly: what is no verdict is asked for again, and a reply without a verdict after that,
or from a server that is down, is set aside (None), never counted as wrong. Questions after the same team's Thyme (spec/keye.md
4.3): correctness where the rule of correct.py does not find the answer right, consistency from the end of the thinking.
"""

import re
from collections.abc import Callable, Sequence

from kvtools.keye.endpoint.endpoint import Endpoint
from kvtools.keye.endpoint.request import Request
from kvtools.keye.rl.rewards import Reply, correct, split_thinking

_TAIL = 500  # letters of the thinking that the judge sees
_LONGEST = 1000  # letters of an answer; DeepEyes counts longer ones as wrong
_TRIES = 3
_CORRECT = """You check an answer against the expected answer. They agree if they mean the same.

Question: {question}

Expected answer: {expected}

Answer: {answer}

Reply with JSON alone: {{"Correctness": 1}} if the answer is right, {{"Correctness": 0}} if it is wrong."""
_CONSISTENT = """You check whether a chain of thought leads to the answer that follows it. The answer
need not be right.

Question: {question}

End of the chain of thought: {thinking}

Answer: {answer}

Reply with JSON alone: {{"Consistency": 1}} if the thought ends in this answer, {{"Consistency": 0}} if it ends in another."""


class JudgedCorrectness:
    """`correct` by the rule, and where that says no to words, by the judge."""

    name, is_slow = "correct", True

    def __init__(self, judge: Endpoint) -> None:
        self._judge = judge
        self.fault: str | None = None

    def score(self, replies: Sequence[Reply]) -> list[float | None]:
        """1 or 0 of each reply; None where the judge gave no verdict."""
        scores: list[float | None] = [correct(reply) for reply in replies]
        asked = {
            number: question
            for number, reply in enumerate(replies)
            if scores[number] == 0.0 and (question := _correctness_question(reply)) is not None
        }
        verdicts, fault = _verdicts(self._judge, "Correctness", asked)
        self.fault = self.fault or fault
        for number, verdict in verdicts.items():
            scores[number] = verdict
        return scores


class JudgedConsistency:
    """`consistency` by the judge: 1 where the thinking ends in the answer, -1 where not, 0 where there is no thinking."""

    name, is_slow = "consistency", True

    def __init__(self, judge: Endpoint) -> None:
        self._judge = judge
        self.fault: str | None = None

    def score(self, replies: Sequence[Reply]) -> list[float | None]:
        """1, -1 or 0 of each reply; None where the judge gave no verdict."""
        scores: list[float | None] = [0.0] * len(replies)
        asked = {}
        for number, reply in enumerate(replies):
            thinking, answer = split_thinking(reply.text)
            if thinking and answer:
                asked[number] = _CONSISTENT.format(
                    question=reply.prompt.question, thinking=thinking[-_TAIL:], answer=answer[:_LONGEST]
                )
        verdicts, fault = _verdicts(self._judge, "Consistency", asked)
        self.fault = self.fault or fault
        for number, verdict in verdicts.items():
            scores[number] = None if verdict is None else 2 * verdict - 1
        return scores


def _correctness_question(reply: Reply) -> str | None:
    """What to ask; None where the rule's no is certain: numbers, letters and lists, and answers that never end."""
    expected = reply.prompt.expected
    _, answer = split_thinking(reply.text)
    if expected is None or expected.kind not in ("text", "math") or not answer or len(answer) > _LONGEST:
        return None
    return _CORRECT.format(question=reply.prompt.question, expected=expected.text, answer=answer)


def _verdicts(judge: Endpoint, name: str, asked: dict[int, str]) -> tuple[dict[int, float | None], str | None]:
    """The judge's 1 or 0 for each question by number, None where it gave none, and why it first gave none."""
    pattern = re.compile(rf'["\']?{name}["\']?\s*[:=]\s*"?([01])\b')
    is_verdict: Callable[[str], bool] = lambda text: pattern.search(text) is not None
    requests = [
        Request([{"role": "user", "content": question}], {"temperature": 0, "max_tokens": 64}, is_verdict, tries=_TRIES)
        for question in asked.values()
    ]
    numbers = list(asked)
    verdicts: dict[int, float | None] = dict.fromkeys(numbers)
    fault = None
    for reply in judge.ask_all(requests):
        fault = fault or reply.fault
        found = pattern.findall(reply.text) if reply.fault is None else []
        if found:
            verdicts[numbers[reply.index]] = float(found[-1])
    return verdicts, fault
