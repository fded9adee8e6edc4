"""How evenly the codes of semantic IDs are used, a panel a level, and how many items share an ID."""

from typing import Any

import numpy as np

from kvtools.draw.page import page

_MOST_BARS = 300  # of codes; more bars would be thinner than a pixel


def draw_codes(codes_NS: np.ndarray, n_levels: int, n_codes: int, report: dict[str, Any]) -> Any:
    """A figure with, for each level, the number of items of each code, most used first, and the number of IDs by items.

    codes_NS: int (N, S), the first n_levels columns below n_codes. report: the quality report of `semid-build`.
    """
    n_panels = n_levels + 1
    figure, axes = page(-(-n_panels // 2), 2, f"{len(codes_NS):,} items, {n_levels} levels of {n_codes:,} codes")
    for level in range(n_levels):
        axis = axes.flat[level]
        counts = np.sort(np.bincount(codes_NS[:, level], minlength=n_codes))[::-1]
        if n_codes > _MOST_BARS:
            axis.fill_between(np.arange(n_codes), counts, step="post", color="tab:blue", linewidth=0)
        else:
            axis.bar(np.arange(n_codes), counts, width=1.0, align="edge", color="tab:blue")
        axis.axhline(len(codes_NS) / n_codes, color="black", linewidth=1, linestyle="--", label="even spread")
        axis.set(xlabel="codes, most used first", ylabel="items", xlim=(0, n_codes), ylim=(0, None))
        evenness, used = report["entropy_share"][level], report["utilisation"][level]
        axis.set_title(f"level {level + 1}: {used:.1%} used, entropy {evenness:.1%} of ln K", fontsize="medium")
        axis.legend(frameon=False, loc="upper right")
    axis = axes.flat[n_levels]
    sizes = np.unique(codes_NS, axis=0, return_counts=True)[1]
    n_buckets = np.bincount(sizes)[1:]
    axis.bar(np.arange(1, len(n_buckets) + 1), n_buckets, width=0.9, color="tab:orange")
    axis.set(xlabel="items that share an ID", ylabel="IDs", yscale="log", xlim=(0.4, max(len(n_buckets), 3) + 0.6))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_title(f"{report['distinct_share']:.1%} distinct IDs, mse {report['mse']:.4g}", fontsize="medium")
    for axis in axes.flat[n_panels:]:
        axis.remove()
    return figure
