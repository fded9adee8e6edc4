"""Reports of eval-kcmm: accuracy by task as bars with their intervals, one colour a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvtools.draw.page import page


def is_of_accuracies(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the lines are a report of eval-kcmm."""
    return all("task" in line and "accuracy" in line for line in lines)


def draw_accuracies(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """A figure of reports by name. Tasks without a figure have no bar. Raises ValueError where a line has no task."""
    tasks = list(dict.fromkeys(str(line["task"]) for lines in reports.values() for line in lines))
    modes = sorted({str(line.get("mode", "")) for lines in reports.values() for line in lines} - {""})
    figure, axes = page(1, 1, f"accuracy with 95 % intervals, scored by {' and '.join(modes) or 'an unknown scorer'}")
    figure.set_size_inches(max(5.2, 1.1 * len(tasks) + 2), 4.2)
    axis, width = axes[0, 0], 0.8 / len(reports)
    for number, (name, lines) in enumerate(reports.items()):
        shown = [line for line in lines if line["accuracy"] is not None]
        at = [tasks.index(str(line["task"])) + (number - (len(reports) - 1) / 2) * width for line in shown]
        heights = [100 * line["accuracy"] for line in shown]
        intervals = [[100 * x for x in line.get("ci95") or (line["accuracy"], line["accuracy"])] for line in shown]
        below = [max(0.0, height - low) for height, (low, _) in zip(heights, intervals, strict=True)]
        above = [max(0.0, high - height) for height, (_, high) in zip(heights, intervals, strict=True)]
        axis.bar(at, heights, 0.9 * width, yerr=[below, above], capsize=3, label=name, error_kw={"linewidth": 1})
    axis.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right")
    axis.set(ylabel="accuracy, %", ylim=(0, 100))
    if len(reports) > 1:
        axis.legend(frameon=False)
    return figure
