"""Reasoning paths: of the correct samples of one prompt the one whose steps recur most in the others.

A step is a line or a sentence of the thinking, compared as words; a path's score is the mean over its steps of the share of
correct paths that have the step. Ties go to the shorter path, then to the lower name.

Source: Keye-VL report (arXiv 2507.01949), section 4.2.1, which keeps the path of frequent steps; what a step is, and the mean,
are our choices, and paths are not spliced.
"""

import re
from collections import Counter
from collections.abc import Sequence

from kvtools.keye.mix.words import words_of

_END = re.compile(r"\n+|(?<=[.!?;])\s+|(?<=[\u3002\uff01\uff1f\uff1b])")


def steps_of(thinking: str) -> list[str]:
    """The steps of a thinking, as words, in order."""
    return [" ".join(words) for part in _END.split(thinking) if (words := words_of(part))]


def best_path(paths: Sequence[tuple[str, str]]) -> str:
    """The name of the best of (name, thinking), all of them correct."""
    steps = {name: steps_of(thinking) for name, thinking in paths}
    met = Counter(step for found in steps.values() for step in set(found))

    def rank(name: str) -> tuple[float, int, str]:
        score = sum(met[step] for step in steps[name]) / max(1, len(steps[name])) / len(paths)
        return -score, len(steps[name]), name

    return min(steps, key=rank)


def agreement(answers: Sequence[str | None]) -> float:
    """The share of the commonest answer, white space aside, among all; None is an answer that cannot be compared."""
    met = Counter(re.sub(r"\s+", "", answer) for answer in answers if answer is not None)
    return max(met.values(), default=0) / len(answers) if answers else 0.0
