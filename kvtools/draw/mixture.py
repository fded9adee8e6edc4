"""A cold-start mixture by its report: samples and tokens of each mode, and what was left out."""

from collections.abc import Mapping
from typing import Any

from kvtools.draw.page import page

_MOST_REASONS = 10


def draw_mixture(report: Mapping[str, Any], name: str) -> Any:
    """A figure of the report of `coldstart-mix`. Raises ValueError where it is none."""
    try:
        modes = list(report["by_mode"])
        parts = [report["by_mode"][mode] for mode in modes]
        samples = [part["samples"] for part in parts]
        visual = [part["visual_tokens"] for part in parts]
        text = [part["tokens"] - part["visual_tokens"] for part in parts]
        wanted = [report.get("wanted", {}).get(mode, n) for mode, n in zip(modes, samples, strict=True)]
        reasons = dict(report["rejects"]) | {"duplicate": report["duplicates"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it has no {error} of a mixture") from None
    figure, axes = page(1, 3, f"{name}: {report['n']:,} records")
    labels = [mode.replace("_", " ") for mode in modes]
    positions = range(len(modes))

    first, second, third = axes.flat
    first.barh(positions, wanted, color="none", edgecolor="black", linestyle="--", linewidth=1, label="asked for")
    first.barh(positions, samples, color="tab:blue", label="written")
    for position, n in zip(positions, samples, strict=True):
        first.annotate(f" {n:,} ({n / max(1, report['n']):.1%})", (n, position), va="center", fontsize="small")
    first.set(xlabel="records", yticks=[*positions], yticklabels=labels, xlim=(0, 1.45 * max(1, *wanted)))
    if wanted != samples:
        first.legend(frameon=False, loc="lower right", fontsize="small")

    second.barh(positions, text, color="tab:orange", label="text")
    second.barh(positions, visual, left=text, color="tab:green", label="pictures and videos")
    second.set(xlabel="tokens", yticks=[*positions], yticklabels=labels)
    second.legend(frameon=False, fontsize="small")

    commonest = sorted((item for item in reasons.items() if item[1]), key=lambda item: -item[1])[:_MOST_REASONS]
    third.barh(range(len(commonest)), [n for _, n in commonest], color="tab:red")
    labels = [_shortened(reason) for reason, _ in commonest]
    third.set(xlabel="documents left out", yticks=[*range(len(commonest))], yticklabels=labels)
    if not commonest:
        third.remove()
    for axis in (first, second, third):
        axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        axis.invert_yaxis()
        axis.tick_params(axis="y", length=0, labelsize="small")
    return figure


def _shortened(reason: str) -> str:
    return reason if len(reason) <= 34 else f"{reason[:33]}\u2026"
