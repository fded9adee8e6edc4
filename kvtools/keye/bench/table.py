"""A report as a table for people, in per cent. Not here: the figures (report.py)."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvtools.keye.bench.kcmm import PUBLISHED, PUBLISHED_OTHERS, TASKS


def report_lines(
    rows: Sequence[Mapping[str, Any]], excluded: Mapping[str, int], lost: Mapping[str, int], *, has_published: bool
) -> list[str]:
    """The lines of a table: a row a task and the macro mean; then the published figures, marked so.

    excluded: questions that were left out since a picture is missing, by task; lost: those that no server has
    answered or judged.
    """
    width = max(len(str(row["task"])) for row in rows)
    title = f"{'task':<{width}}  {'n':>6}  accuracy  95 %         failures  thought  tokens  seconds"
    lines = [title + ("  published think / auto" if has_published else "")]
    for row in rows:
        interval = "" if row["ci95"] is None else f"{100 * row['ci95'][0]:.1f}-{100 * row['ci95'][1]:.1f}"
        accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f}"
        thought = f"{100 * row['thought']:.0f} %" if row.get("thought") is not None else ""
        more = [_number(row.get("tokens")), _number(row.get("seconds"))]
        line = (
            f"{row['task']:<{width}}  {row['n']:>6}  {accuracy:>8}  {interval:<11}  {row['failures']:>8}  {thought:>7}  "
            f"{more[0]:>6}  {more[1]:>7}"
        )
        lines.append((line + (f"  {_published(str(row['task']), rows)}" if has_published else "")).rstrip())
    n_unanswered = sum(row.get("unanswered", 0) for row in rows)
    lines += [f"{task}: {n} questions were left out, since pictures of theirs are missing." for task, n in excluded.items()]
    lines += [
        f"{task}: {n} questions were left out, since no server has answered them or judged the answers."
        for task, n in lost.items()
    ]
    if n_unanswered:
        lines.append(f"{n_unanswered} questions have no answer, and count as wrong.")
    return lines


def published_lines() -> list[str]:
    """The table of the report, in per cent."""
    width = max(map(len, TASKS))
    lines = ["", "published by the authors, with their evaluator and its judge (per cent):"]
    lines.append(f"{'':<{width}}  " + "  ".join(PUBLISHED_OTHERS))
    for number, task in enumerate(TASKS):
        cells = (f"{figures[number]:>{len(name)}.2f}" for name, figures in PUBLISHED_OTHERS.items())
        lines.append(f"{task:<{width}}  " + "  ".join(cells))
    means = (f"{sum(figures) / len(figures):>{len(name)}.2f}" for name, figures in PUBLISHED_OTHERS.items())
    lines.append(f"{'macro':<{width}}  " + "  ".join(means))
    return lines


def comparison_lines(rows: Sequence[Mapping[str, Any]], names: tuple[str, str]) -> list[str]:
    """The lines of a comparison of two systems."""
    width = max(len(str(row["task"])) for row in rows)
    lines = [f"A is {names[0]}, B is {names[1]}", f"{'task':<{width}}  {'n':>6}  {'A':>6}  {'B':>6}   B - A  95 %            p"]
    for row in rows:
        low, high = (100 * x for x in row["ci95"])
        lines.append(
            f"{row['task']:<{width}}  {row['n']:>6}  {100 * row['a']:>6.2f}  {100 * row['b']:>6.2f}  "
            f"{100 * row['difference']:>+6.2f}  {f'{low:+.2f} to {high:+.2f}':<14}  {row['p']:.3f}"
        )
    return lines


def _published(task: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if task in PUBLISHED:
        return f"{PUBLISHED[task]['think']:.2f} / {PUBLISHED[task]['auto']:.2f}"
    if len(rows) == len(TASKS) + 1:
        think, auto = (sum(row[mode] for row in PUBLISHED.values()) / len(PUBLISHED) for mode in ("think", "auto"))
        return f"{think:.2f} / {auto:.2f}"
    return ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
