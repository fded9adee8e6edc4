"""Pretraining: loss and accuracy against steps, one stage after the other.

Thin: steps; thick: their running mean over a twentieth of the stage; dots: held-out data. The loss of stage 0 is not that of
the other stages, so that a jump between stages means nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvtools.draw.page import page

_N_WINDOWS = 20  # of the running mean, in a stage


@dataclass
class Stage:
    """The log of one stage of a run; of a step that was done twice, the later line."""

    name: str
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)  # step → line
    epochs: dict[int, dict[str, Any]] = field(default_factory=dict)  # step → line about held-out data


def split_stages(lines: Sequence[dict[str, Any]], name: str) -> list[Stage]:
    """The stages of a log; one begins where its name changes, or at a first step. name: of lines without a stage.

    Raises ValueError for lines without a step.
    """
    stages: list[Stage] = []
    for line in lines:
        step, stage = line.get("step"), str(line.get("stage", name))
        if type(step) is not int:
            raise ValueError("some lines have no 'step'")
        is_step = "rate" in line or "loss" in line
        if not stages or stages[-1].name != stage or (is_step and step == 1 and stages[-1].steps):
            stages.append(Stage(stage))
        (stages[-1].steps if is_step else stages[-1].epochs)[step] = line
    return [stage for stage in stages if stage.steps]


def draw_losses(stages: Sequence[Stage]) -> Any:
    """A figure of the stages, one after the other: loss, and accuracy or score."""
    n_steps = sum(max(stage.steps) for stage in stages)
    is_scored = not any("accuracy" in line for stage in stages for line in stage.steps.values())
    panels = (("loss", "loss", "valid_loss"), ("score",) * 3 if is_scored else ("accuracy", "accuracy", "valid_accuracy"))
    figure, axes = page(2, 1, f"{n_steps:,} steps, {', '.join(dict.fromkeys(stage.name for stage in stages))}")
    figure.set_size_inches(9, 6.5)
    for axis, (title, trained, held) in zip(axes.flat, panels, strict=True):
        lowest, first = np.inf, 0
        for number, stage in enumerate(stages):
            color = f"C{number % 10}"
            points = [(first + step, line[trained]) for step, line in sorted(stage.steps.items()) if trained in line]
            if points:
                x, y = np.array(points, np.float64).T
                axis.plot(x, y, color=color, linewidth=0.6, alpha=0.35)
                axis.plot(x, smoothed(y), color=color, linewidth=1.8, label=stage.name if title == "loss" else None)
                lowest = min(lowest, float(y.min()))
            held_out = [(first + step, line[held]) for step, line in sorted(stage.epochs.items()) if held in line]
            if held_out:
                axis.plot(*np.array(held_out, np.float64).T, color=color, marker="o", markersize=4, linestyle=":", linewidth=1)
            first += max(stage.steps)
            if number + 1 < len(stages):
                axis.axvline(first, color="black", linewidth=0.5, linestyle="--")
        axis.set(xlabel="steps", ylabel=title, xlim=(0, first))
        if title == "loss" and 0 < lowest < np.inf:
            axis.set_yscale("log")
    axes.flat[0].set_title("thick: running mean; dots: held-out data", fontsize="medium")
    axes.flat[0].legend(frameon=False, loc="upper right")
    return figure


def smoothed(y: np.ndarray) -> np.ndarray:
    """The running mean of y, float64 (n,), over the last twentieth, and over fewer values at the beginning."""
    width = max(1, len(y) // _N_WINDOWS)
    sums = np.concatenate([[0.0], y.cumsum()])
    ends = np.arange(1, len(y) + 1)
    begins = np.maximum(0, ends - width)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins))
