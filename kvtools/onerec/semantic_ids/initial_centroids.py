"""The centroids that a level of k-means begins with: rows drawn at random, or by k-means++.

Source: Arthur & Vassilvitskii 2007; each row is drawn in proportion to its squared distance to those drawn before, and of
2 + ln K draws the one that leaves least is kept, as their section 5 proposes. Distances are exact integers of rows rounded to
16 bits, so that every machine draws the same. Where one row at a time would take too many passes over the rows, several are
drawn and kept at once, as k-means|| does (Bahmani et al. 2012). The k-means++ of model/lifelong.py is another: its nodes have
few items, in one process, and need no exact integers, samples or ranks.

Legend: R rows of the sample, K codes, D width, M candidates.
"""

import math
from typing import Literal

import numpy as np

from kvtools.chance import rng_for
from kvtools.onerec.semantic_ids.exact_sums import Ranks, Vectors

Init = Literal["k-means++", "random"]

_SAMPLE_BYTES = 64 << 20  # of rows that centroids are drawn from
_SAMPLE_ROWS = 64  # for each code, at most
_TRAFFIC_BYTES = 8e9  # memory traffic that a level may cost; beyond, several centroids are drawn at once
_INT = 2**15 - 1


def initial_centroids(
    vectors: Vectors, n_rows: int, n_codes: int, init: Init, seed: int, level: int, ranks: Ranks
) -> np.ndarray:
    """float32 (K, D): rows drawn from a sample of all n_rows, the same on all ranks. A collective."""
    rng = rng_for(seed, "semid-build", "init", level)
    n_sample = n_codes
    if init == "k-means++":
        n_sample = max(n_codes, min(_SAMPLE_ROWS * n_codes, _SAMPLE_BYTES // (4 * vectors.n_width)))
    row_numbers = np.sort(rng.choice(n_rows, size=min(n_sample, n_rows), replace=False))
    sample_RD = ranks.sum_array(vectors.pick(row_numbers))
    return sample_RD if init == "random" else sample_RD[plus_plus(sample_RD, n_codes, rng)]


def plus_plus(x_RD: np.ndarray, n_codes: int, rng: np.random.Generator) -> np.ndarray:
    """int64 (K,): distinct rows of x (float32), by k-means++."""
    exponent = int(np.frexp(np.abs(x_RD).max(initial=0.0))[1])
    x_RD = np.ldexp(x_RD, -exponent)  # of size 1 at most: the factor of denormal values would exceed float32
    whole_RD = np.rint(x_RD * (_INT / (float(np.abs(x_RD).max(initial=0.0)) or 1.0))).astype(np.float64)
    norm_R = np.square(whole_RD).sum(axis=1)
    n_at_once = math.ceil(whole_RD.nbytes * n_codes / _TRAFFIC_BYTES)
    rows = [int(rng.integers(len(x_RD)))]
    distance_R = _squared_distances(whole_RD, norm_R, np.array(rows))[:, 0]
    while len(rows) < n_codes:
        reached_R = np.cumsum(distance_R.astype(np.int64))
        if reached_R[-1] == 0:  # fewer distinct rows than codes: the rest equal others, and their cells stay empty
            rest = np.setdiff1d(np.arange(len(x_RD)), rows)[: n_codes - len(rows)]
            return np.array([*rows, *rest])
        n_draws = 2 + int(math.log(n_codes)) if n_at_once == 1 else min(n_at_once, n_codes - len(rows))
        draws = rng.integers(reached_R[-1], size=n_draws)
        fresh_M = np.unique(np.searchsorted(reached_R, draws, side="right"))
        left_RM = np.minimum(distance_R[:, None], _squared_distances(whole_RD, norm_R, fresh_M))
        if n_at_once == 1:
            best = int(left_RM.astype(np.int64).sum(axis=0).argmin())
            fresh_M, left_RM = fresh_M[best : best + 1], left_RM[:, best : best + 1]
        distance_R = left_RM.min(axis=1)
        rows += fresh_M.tolist()
    return np.array(rows)


def _squared_distances(whole_RD: np.ndarray, norm_R: np.ndarray, rows_M: np.ndarray) -> np.ndarray:
    """float64 (R, M): of all rows to some of them; exact, being sums of integers below 2^53."""
    distance_RM: np.ndarray = norm_R[:, None] - 2 * (whole_RD @ whole_RD[rows_M].T) + norm_R[rows_M]
    return distance_RM
