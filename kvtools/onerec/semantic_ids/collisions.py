"""Items that got the same semantic ID: it is kept, extended by one more token, or moved to the nearest free code.

The OneRec report says nothing of collisions; `extend` is TIGER's remedy (arXiv 2305.05065), `nearest` that of FORGE. Items
that have IDs already, of an earlier run, keep them: newcomers give way. Codes are int32.
Legend: N items, M old items, P items that give way, L levels, S = L + 1, K codes, D width.
"""

import numpy as np


def colliding(codes_NL: np.ndarray, n_old: int = 0) -> np.ndarray:
    """int64 (P,), rising: the rows that must give way so that all IDs differ, all but the first of each ID; never one of the
    first n_old rows."""
    is_first = np.zeros(len(codes_NL), bool)
    is_first[np.unique(codes_NL, axis=0, return_index=True)[1]] = True
    return np.flatnonzero(~is_first[n_old:]) + n_old


def extend(codes_NL: np.ndarray, old_MS: np.ndarray | None = None) -> np.ndarray:
    """int32 (N, S): codes with one more token, 0, 1, 2 … among the items of one ID in the order of the rows, going on from
    the tokens of the old items."""
    n_levels = codes_NL.shape[1]
    old_MS = np.empty((0, n_levels + 1), np.int32) if old_MS is None else old_MS
    _, bucket = np.unique(np.concatenate([old_MS[:, :n_levels], codes_NL]), axis=0, return_inverse=True)
    bucket = bucket.reshape(-1)
    used = np.zeros(bucket.max(initial=-1) + 1, np.int64)
    np.maximum.at(used, bucket[: len(old_MS)], old_MS[:, n_levels] + 1)
    bucket_N = bucket[len(old_MS) :]
    order = np.argsort(bucket_N, kind="stable")
    ordered = bucket_N[order]
    tokens_N = np.empty(len(codes_NL), np.int64)
    tokens_N[order] = np.arange(len(codes_NL)) - np.searchsorted(ordered, ordered) + used[ordered]
    return np.concatenate([codes_NL, tokens_N[:, None]], axis=1).astype(np.int32)


def move(codes_NL: np.ndarray, rows_P: np.ndarray, last_PD: np.ndarray, codebook_KD: np.ndarray) -> tuple[np.ndarray, int]:
    """int32 (N, L): codes in which each row of P has the nearest last-level code that no item with its other codes has; and
    how many rows stay as they are, since all K codes are taken.

    rows_P: as `colliding` names them; codes are given out in this order. last_PD: float, what the last level quantises of each.
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
        distance_BK = norm_K - 2 * last_PD[begin : begin + 1024].astype(np.float64) @ wide_KD.T
        for row, distance_K in zip(rows_P[begin : begin + 1024], distance_BK, strict=True):
            others = taken[prefixes[row]]
            free = next((code for code in np.argsort(distance_K, kind="stable").tolist() if code not in others), None)
            if free is None:
                n_stuck += 1
            else:
                codes[row, -1] = free
                others.add(free)
    return codes, n_stuck


def move_residuals(
    codes_NL: np.ndarray, rows_P: np.ndarray, left_PD: np.ndarray, codebook_KD: np.ndarray
) -> tuple[np.ndarray, int, float, float]:
    """What `move` returns, and the squared errors of the rows before and after. left_PD: float64, the residual of each row."""
    last_PD = left_PD + codebook_KD[codes_NL[rows_P, -1]]
    codes, n_stuck = move(codes_NL, rows_P, last_PD, codebook_KD)
    after = float(np.square(last_PD - codebook_KD[codes[rows_P, -1]]).sum())
    return codes, n_stuck, float(np.square(left_PD).sum()), after
