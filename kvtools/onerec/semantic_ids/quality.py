"""The quality of semantic IDs: the figures of Table 11 of the OneRec report, and how many items share an ID.

Entropy is in nats over the histogram of a level's codes (at most ln K); utilisation is the fraction of codes used at all.
A bucket is all items with one ID. Source: arXiv 2506.13695 v4 section 4.4; the bucket figures as in TorchEasyRec's report.
"""

from typing import Any

import numpy as np


def describe(codes_NL: np.ndarray, n_levels: int, n_codes: int) -> dict[str, Any]:
    """The quality report of IDs, but for the error. codes_NL: int (N, L), or (N, L + 1) with a further token; the first
    n_levels columns are codes below n_codes. Shares are in 0…1."""
    levels = [np.bincount(codes_NL[:, level], minlength=n_codes) for level in range(n_levels)]
    entropies = [entropy(counts) for counts in levels]
    buckets = bucket_sizes(codes_NL)
    return {
        "items": len(codes_NL),
        "utilisation": [float((counts > 0).mean()) for counts in levels],
        "dead_codes": [int((counts == 0).sum()) for counts in levels],
        "entropy_nats": entropies,
        "entropy_share": [nats / float(np.log(n_codes)) if n_codes > 1 else 1.0 for nats in entropies],
        "distinct_share": len(buckets) / len(codes_NL),
        "colliding_items": int(buckets[buckets > 1].sum()),
        "max_bucket": int(buckets.max()),
        "gini": gini(buckets),
    }


def entropy(counts: np.ndarray) -> float:
    """The Shannon entropy, in nats, of a histogram, int (K,)."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def bucket_sizes(codes_NL: np.ndarray) -> np.ndarray:
    """How many items share each ID that is in use, int64 (m,)."""
    return np.unique(codes_NL, axis=0, return_counts=True)[1]


def gini(sizes: np.ndarray) -> float:
    """The Gini coefficient of counts, int (n,): 0 where all are equal, near 1 where one has all."""
    ranked = np.sort(sizes.astype(np.float64))
    n = len(ranked)
    return float((2 * (np.arange(1, n + 1) * ranked).sum() / ranked.sum() - (n + 1)) / n)
