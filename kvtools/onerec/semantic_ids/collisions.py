"""Items that got the same semantic ID: kept so, told apart by one more token, or moved to the nearest free code.

The OneRec report says nothing of collisions; `extend` is TIGER's remedy (arXiv 2305.05065), `nearest` that of FORGE. Items
that have IDs already, of an earlier run, keep them: newcomers give way.
"""

import numpy as np


def colliding(codes_NL: np.ndarray, n_old: int = 0) -> np.ndarray:
    """Rows that must give way so that all IDs differ, ascending: of each bucket all but the first. The first n_old rows give
    way to nobody."""
    is_first = np.zeros(len(codes_NL), bool)
    is_first[np.unique(codes_NL, axis=0, return_index=True)[1]] = True
    return np.flatnonzero(~is_first[n_old:]) + n_old


def extend(codes_NL: np.ndarray, old_MS: np.ndarray | None = None) -> np.ndarray:
    """Codes with one more token, int32 (N, L + 1): 0, 1, 2 … within a bucket in the order of the rows, going on from the
    old items' tokens (M, L + 1)."""
    n_levels = codes_NL.shape[1]
    old_MS = np.empty((0, n_levels + 1), np.int32) if old_MS is None else old_MS
    together = np.concatenate([old_MS[:, :n_levels], codes_NL])
    _, bucket = np.unique(together, axis=0, return_inverse=True)
    bucket = bucket.reshape(-1)
    used = np.zeros(bucket.max(initial=-1) + 1, np.int64)
    np.maximum.at(used, bucket[: len(old_MS)], old_MS[:, n_levels] + 1)
    mine = bucket[len(old_MS) :]
    order = np.argsort(mine, kind="stable")
    starts = np.flatnonzero(np.r_[True, mine[order][1:] != mine[order][:-1]]) if len(mine) else np.empty(0, np.int64)
    place = np.arange(len(mine)) - np.repeat(starts, np.diff(np.r_[starts, len(mine)]))
    tokens = np.empty(len(mine), np.int64)
    tokens[order] = place + used[mine[order]]
    return np.concatenate([codes_NL, tokens[:, None]], axis=1).astype(np.int32)


def move(codes_NL: np.ndarray, rows_P: np.ndarray, last_PD: np.ndarray, codebook_KD: np.ndarray) -> tuple[np.ndarray, int]:
    """Codes in which the rows have the nearest last-level code that nobody with their other codes has.

    rows_P: those that give way, as `colliding` names them, in whose order codes are given out. last_PD: float32, what the
    last level quantises for each. Where all K codes are taken the row stays as it is; returns the codes and how many did.
    """
    codes = codes_NL.copy()
    taken: dict[bytes, set[int]] = {}
    prefixes = [row.tobytes() for row in codes_NL[:, :-1]]
    wanted = {prefixes[row] for row in rows_P}
    for prefix, code in zip(prefixes, codes_NL[:, -1].tolist(), strict=True):
        if prefix in wanted:
            taken.setdefault(prefix, set()).add(code)
    wide_KD = codebook_KD.astype(np.float64)
    norm_K = np.square(wide_KD).sum(axis=1)
    n_stuck = 0
    for begin in range(0, len(rows_P), 1024):
        apart_BK = norm_K - 2 * last_PD[begin : begin + 1024].astype(np.float64) @ wide_KD.T
        for row, apart_K in zip(rows_P[begin : begin + 1024], apart_BK, strict=True):
            others = taken[prefixes[row]]
            free = next((int(code) for code in np.argsort(apart_K, kind="stable") if int(code) not in others), None)
            if free is None:
                n_stuck += 1
                continue
            codes[row, -1] = free
            others.add(free)
    return codes, n_stuck
