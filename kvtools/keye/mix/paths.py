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
from kvtools.keye.rl.correct import Expected, expected_answer, matches

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


def same_answers(answers: Sequence[str | None]) -> list[int | None]:
    """For each answer the number of the first one that says the same, such as 1/2 and 0.5; None for one that says nothing."""
    firsts: list[tuple[int, Expected]] = []
    known: dict[str, int] = {}
    groups: list[int | None] = []
    for number, answer in enumerate(answers):
        if answer is None or not answer.strip():
            groups.append(None)
            continue
        if answer not in known:
            same = next((first for first, expected in firsts if matches(expected, answer)), number)
            if same == number:
                firsts.append((number, expected_answer({}, answer)))
            known[answer] = same
        groups.append(known[answer])
    return groups


def commonest(groups: Sequence[int | None]) -> tuple[int | None, float]:
    """The group of most answers, of equals the first, and its share of all answers."""
    met = Counter(group for group in groups if group is not None)
    if not met:
        return None, 0.0
    best = max(sorted(met), key=met.__getitem__)
    return best, met[best] / len(groups)
