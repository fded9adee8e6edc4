"""Figures over verdicts: accuracy with its interval, failures, the macro mean; and whether two systems differ.

Pure. Intervals of one system are Wilson's, which hold for few questions and for accuracies near 0 and 1; of a macro mean and of
a difference, percentiles of a bootstrap over questions, within each task and, for a difference, in pairs. Legend: N questions,
R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvtools.chance import rng_for

_Z = 1.959964  # the normal distribution's 97.5th percentile
_N_RESAMPLES = 2000


@dataclass(frozen=True)
class Scored:
    """One answer with its verdict, and what is known of how it was made. is_given: whether there was an answer at all."""

    task: str
    index: str
    is_right: bool
    is_failure: bool
    is_given: bool = True
    has_thought: bool = False
    tokens: int | None = None
    seconds: float | None = None
    category: str = ""


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if n == 0:
        return 0.0, 1.0
    share, square = n_right / n, _Z * _Z / n
    half = _Z * (share * (1 - share) / n + square / (4 * n)) ** 0.5
    low, high = ((share + square / 2 + sign * half) / (1 + square) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def task_row(task: str, scored: Sequence[Scored], mode: str) -> dict[str, Any]:
    """The line of a task: see DESIGN's JSON. thought: the share of answers with thinking; means of tokens, sums of seconds."""
    n, n_right = len(scored), sum(each.is_right for each in scored)
    tokens = [each.tokens for each in scored if each.tokens is not None]
    seconds = [each.seconds for each in scored if each.seconds is not None]
    row: dict[str, Any] = {
        "task": task, "n": n, "accuracy": n_right / n if n else None,
        "ci95": [round(x, 6) for x in wilson(n_right, n)] if n else None,
        "failures": sum(each.is_failure for each in scored), "mode": mode,
        "unanswered": sum(not each.is_given for each in scored),
        "thought": sum(each.has_thought for each in scored) / n if n else 0.0,
        "tokens": sum(tokens) if tokens else None, "seconds": round(sum(seconds), 3) if seconds else None,
    }  # fmt: skip
    categories = sorted({each.category for each in scored if each.category})
    if categories:
        right = {name: [each.is_right for each in scored if each.category == name] for name in categories}
        row["categories"] = {name: {"n": len(them), "accuracy": sum(them) / len(them)} for name, them in right.items()}
    return row


def macro_row(rows: Sequence[Mapping[str, Any]], by_task: Mapping[str, Sequence[Scored]], mode: str) -> dict[str, Any]:
    """The plain mean over tasks, with a bootstrap interval, or that of the only task; None where a task has no figure."""
    accuracies = [row["accuracy"] for row in rows]
    is_whole = bool(rows) and None not in accuracies
    resampled_TR = [_resampled(np.array([each.is_right for each in by_task[row["task"]]], float), row["task"]) for row in rows]
    if len(rows) == 1:
        interval = rows[0]["ci95"]  # a bootstrap has no width at 0 and 1
    else:
        interval = np.percentile(np.mean(resampled_TR, axis=0), [2.5, 97.5]).tolist() if is_whole else None
    return {
        "task": "macro", "n": sum(row["n"] for row in rows), "tasks": len(rows),
        "accuracy": float(np.mean(accuracies)) if is_whole else None, "ci95": interval,
        "failures": sum(row["failures"] for row in rows), "mode": mode,
    }  # fmt: skip


def compare(one: Mapping[str, Mapping[str, bool]], two: Mapping[str, Mapping[str, bool]]) -> list[dict[str, Any]]:
    """The difference `two` less `one`, a line a task, and of the mean. one, two: task → index → is right.

    Only questions that both have count. p: of no difference, from the bootstrap, two-sided. Raises ValueError where the two
    have no question in common.
    """
    rows: list[dict[str, Any]] = []
    resampled_TR, means_T2 = [], []
    for task in [task for task in one if task in two]:
        common = [index for index in one[task] if index in two[task]]
        if not common:
            continue
        pairs_N2 = np.array([(one[task][index], two[task][index]) for index in common], float)
        drawn_R = _resampled(pairs_N2[:, 1] - pairs_N2[:, 0], task)
        resampled_TR.append(drawn_R)
        means_T2.append(pairs_N2.mean(0))
        rows.append(_difference(task, len(common), pairs_N2.mean(0), drawn_R))
    if not rows:
        raise ValueError("the two have no question in common")
    if len(rows) > 1:
        n = sum(row["n"] for row in rows)
        rows.append(_difference("macro", n, np.mean(means_T2, axis=0), np.mean(resampled_TR, axis=0)))
    return rows


def _difference(task: str, n: int, means_2: np.ndarray, drawn_R: np.ndarray) -> dict[str, Any]:
    tail = min((drawn_R <= 0).mean(), (drawn_R >= 0).mean())
    a, b = means_2.tolist()
    low, high = np.percentile(drawn_R, [2.5, 97.5]).tolist()
    return {
        "task": task, "n": n, "a": a, "b": b, "difference": b - a, "ci95": [low, high], "p": float(min(1.0, 2 * tail)),
    }  # fmt: skip


def _resampled(values_N: np.ndarray, name: str) -> np.ndarray:
    """Means of values drawn with replacement, float64 (R,). Values are few, so how often each is drawn is all that counts."""
    if not len(values_N):
        return np.zeros(_N_RESAMPLES)
    values, counts = np.unique(values_N, return_counts=True)
    drawn_RV = rng_for(0, "bootstrap", name).multinomial(len(values_N), counts / len(values_N), _N_RESAMPLES)
    return drawn_RV @ values / len(values_N)  # type: ignore[no-any-return]
