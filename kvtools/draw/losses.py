"""How pretraining went: loss against steps, and how much was got right, a stage after the other.

Steps are thin, their running mean over a twentieth of the stage thick, held-out data are dots. Losses of stage 0 are of another
kind than those of the others, so that a jump between stages says nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvtools.draw.page import page

_SMOOTHED = 20  # parts of a stage


@dataclass
class Part:
    """A stage of one run: its lines of steps and of epochs, by step; of a step that was done twice the later counts."""

    name: str
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    epochs: dict[int, dict[str, Any]] = field(default_factory=dict)


def parts_of(lines: Sequence[dict[str, Any]], name: str) -> list[Part]:
    """A log's lines in parts: a new one begins where the stage is another, or the first step comes again. name: of a part whose
    lines tell no stage. Raises ValueError for lines that tell no step."""
    parts: list[Part] = []
    for line in lines:
        step, stage = line.get("step"), str(line.get("stage", name))
        if type(step) is not int:
            raise ValueError("lines without 'step' found, the log of a training expected")
        is_step = "rate" in line or "loss" in line
        if not parts or parts[-1].name != stage or (is_step and step == 1 and parts[-1].steps):
            parts.append(Part(stage))
        (parts[-1].steps if is_step else parts[-1].epochs)[step] = line
    return [part for part in parts if part.steps]


def draw_losses(parts: Sequence[Part]) -> Any:
    """A figure of the parts, one after the other."""
    n_steps = sum(max(part.steps) for part in parts)
    is_scored = not any("accuracy" in line for part in parts for line in part.steps.values())
    panels = (("loss", "loss", "valid_loss"), ("score",) * 3 if is_scored else ("accuracy", "accuracy", "valid_accuracy"))
    figure, axes = page(2, 1, f"{n_steps:,} steps, {', '.join(dict.fromkeys(part.name for part in parts))}")
    figure.set_size_inches(9, 6.5)
    for axis, (words, trained, held) in zip(axes.flat, panels, strict=True):
        lowest, first = np.inf, 0
        for number, part in enumerate(parts):
            color = f"C{number % 10}"
            told = [(first + step, line[trained]) for step, line in sorted(part.steps.items()) if trained in line]
            if told:
                x, y = np.array(told, np.float64).T
                axis.plot(x, y, color=color, linewidth=0.6, alpha=0.35)
                axis.plot(x, _smoothed(y), color=color, linewidth=1.8, label=part.name if words == "loss" else None)
                lowest = min(lowest, float(y.min()))
            seen = [(first + step, line[held]) for step, line in sorted(part.epochs.items()) if held in line]
            if seen:
                axis.plot(*np.array(seen, np.float64).T, color=color, marker="o", markersize=4, linestyle=":", linewidth=1)
            first += max(part.steps)
            if number + 1 < len(parts):
                axis.axvline(first, color="black", linewidth=0.5, linestyle="--")
        axis.set(xlabel="steps", ylabel=words, xlim=(0, first))
        if words == "loss" and 0 < lowest < np.inf:
            axis.set_yscale("log")
    axes.flat[0].set_title("thick: running mean; dots: held-out data", fontsize="medium")
    axes.flat[0].legend(frameon=False, loc="upper right")
    return figure


def _smoothed(y: np.ndarray) -> np.ndarray:
    """The mean of the last twentieth, at each place; of as many as there are at the beginning."""
    width = max(1, len(y) // _SMOOTHED)
    sums = np.concatenate([[0.0], y.cumsum()])
    ends = np.arange(1, len(y) + 1)
    begins = np.maximum(0, ends - width)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins))
