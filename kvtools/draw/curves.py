"""Federated training: accuracy against rounds, local epochs, bytes and simulated seconds, one curve an algorithm.

The four panels differ: a root round of a tree has more local work than a round of FedAvg, so that the best by rounds need not
be the best by work, bytes or time.
"""

from typing import Any

from kvtools.draw.page import page

PANELS = (
    ("round", "rounds", 1),
    ("local_epochs", "local epochs", 1),
    ("bytes", "MB sent", 1e6),
    ("simulated_s", "simulated s", 1),
)
_KEYS = ("algorithm", "accuracy", "wan_bytes", *(name for name, _, _ in PANELS))


def draw_curves(lines: list[dict[str, Any]]) -> Any:
    """A figure of the lines of a log, in order; a new curve begins where the rounds of an algorithm start again.

    Raises ValueError where a line lacks a key.
    """
    missing = next((key for line in lines for key in _KEYS if key not in line), None)
    if missing is not None:
        raise ValueError(f"some lines have no {missing!r}")
    figure, axes = page(2, 2, f"test accuracy, {len(lines):,} evaluations")
    curves: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        name = line["algorithm"]
        runs = [key for key in curves if key.split(" #")[0] == name]
        if not runs or curves[runs[-1]][-1]["round"] >= line["round"]:
            runs.append(f"{name} #{len(runs) + 1}" if runs else name)
        curves.setdefault(runs[-1], []).append(line)
    for axis, (key, title, unit) in zip(axes.flat, PANELS, strict=True):
        for name, curve in curves.items():
            axis.plot([line[key] / unit for line in curve], [line["accuracy"] for line in curve], marker=".", label=name)
        axis.set(xlabel=title, ylabel="accuracy", xlim=(0, None))
    for name, curve in curves.items():
        color = next(drawn.get_color() for drawn in axes.flat[2].lines if drawn.get_label() == name)
        values = [line["wan_bytes"] / 1e6 for line in curve]
        axes.flat[2].plot(values, [line["accuracy"] for line in curve], linestyle=":", color=color)
    axes.flat[2].set_title("dotted: between groups only", fontsize="medium")
    axes.flat[0].legend(frameon=False, loc="lower right")
    return figure
