"""How training went: accuracy against rounds, local epochs, bytes and simulated seconds, a curve an algorithm.

The four panels are there because they differ: a root round of a tree holds more local work than a round of FedAvg, so that what
leads by rounds need not lead by work, by bytes or by time.
"""

from typing import Any

from kvtools.draw.page import page

PANELS = (
    ("round", "rounds", 1),
    ("local_epochs", "local epochs", 1),
    ("bytes", "MB sent", 1e6),
    ("simulated_s", "simulated s", 1),
)
NEEDED = ("algorithm", "accuracy", "wan_bytes", *(name for name, _, _ in PANELS))


def draw_curves(lines: list[dict[str, Any]]) -> Any:
    """A figure of the lines of a log, in their order. A curve begins anew where its algorithm's rounds do."""
    figure, axes = page(2, 2, f"test accuracy, {len(lines):,} evaluations")
    curves: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        name = line["algorithm"]
        runs = [key for key in curves if key.split(" #")[0] == name]
        if not runs or curves[runs[-1]][-1]["round"] >= line["round"]:
            runs.append(f"{name} #{len(runs) + 1}" if runs else name)
        curves.setdefault(runs[-1], []).append(line)
    for axis, (key, words, unit) in zip(axes.flat, PANELS, strict=True):
        for name, curve in curves.items():
            axis.plot([line[key] / unit for line in curve], [line["accuracy"] for line in curve], marker=".", label=name)
        axis.set(xlabel=words, ylabel="accuracy", xlim=(0, None))
    for name, curve in curves.items():
        color = next(drawn.get_color() for drawn in axes.flat[2].lines if drawn.get_label() == name)
        values = [line["wan_bytes"] / 1e6 for line in curve]
        axes.flat[2].plot(values, [line["accuracy"] for line in curve], linestyle=":", color=color)
    axes.flat[2].set_title("dotted: between groups only", fontsize="medium")
    axes.flat[0].legend(frameon=False, loc="lower right")
    return figure
