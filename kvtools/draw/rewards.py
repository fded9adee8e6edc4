"""Reinforcement learning: reward, legality, drift and answers against steps, one curve a log.

Thin: steps; thick: their running mean; dots: held-out data. A panel is there where any log has its numbers; of those after the
first two, where the numbers are not all the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvtools.draw.losses import smoothed
from kvtools.draw.page import page

# title, the key of a step, the key of a line about held-out data
_PANELS = (
    ("reward", "reward", "valid_reward"),
    ("share of legal answers", "legal_share", "valid_legal_share"),
    ("accuracy", "accuracy", "valid_accuracy"),
    ("HR@10", "", "valid_hr@10"),
    ("KL to the start", "kl", ""),
    ("clip fraction", "clip_fraction", ""),
    ("entropy, nats", "entropy", ""),
    ("length, tokens", "length", "valid_length"),
    ("repetition", "repetition", "valid_repetition"),
)
_N_COLUMNS = 2
_N_ALWAYS = 2  # panels that are drawn also where nothing changes


def is_of_rewards(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a log is that of reinforcement learning."""
    return any("reward" in line or "valid_reward" in line for line in lines)


def draw_rewards(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """A figure of the logs. Raises ValueError for lines without a step."""
    lines = [line for log in logs.values() for line in log]
    if not all(type(line.get("step")) is int for line in lines):
        raise ValueError("some lines have no 'step'")
    panels = [panel for n, panel in enumerate(_PANELS) if len(_values(lines, panel)) > (n >= _N_ALWAYS)]
    figure, axes = page(-(-len(panels) // _N_COLUMNS), _N_COLUMNS, "thick: running mean; dots: held-out data")
    for axis, (title, step_key, held_key) in zip(axes.flat, panels, strict=False):
        for number, (name, log) in enumerate(logs.items()):
            color = f"C{number % 10}"
            x, y = _points(log, step_key)
            if len(x) > 1:
                axis.plot(x, y, color=color, linewidth=0.6, alpha=0.35)
                axis.plot(x, smoothed(y), color=color, linewidth=1.8)
            x, y = _points(log, held_key)
            axis.plot(x, y, color=color, marker="o", markersize=4, linestyle=":", linewidth=1, label=name)
        axis.set(xlabel="steps", ylabel=title)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    if len(logs) > 1:
        axes.flat[0].legend(frameon=False)
    return figure


def _values(lines: Sequence[Mapping[str, Any]], panel: tuple[str, str, str]) -> set[Any]:
    return {line[key] for line in lines for key in panel[1:] if line.get(key) is not None}


def _points(log: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a key, float64 (n,) each; of a step that was done twice, the later value. The last line of a run is
    left out: it is of the weights that were kept, which may be those of another step."""
    points = {line["step"]: line[key] for line in log if line.get(key) is not None and "valid_reward_before" not in line}
    return np.array(sorted(points), np.float64), np.array([points[step] for step in sorted(points)], np.float64)
