"""Terms and numbers into vectors: TF-IDF, truncated SVD, unit norm (latent semantic analysis, Deerwester et al. 1990).

Legend: N items, V terms, D dimensions, C numeric columns, S = D + 20 directions sketched. The SVD is ARPACK's, which
converges; power iterations are as fast here and leave noise that depends on the seed, which a quantiser takes for
differences between items. They are offered because published figures rest on them. Linear algebra runs on one thread, so that
the bytes do not depend on how many there are; they may differ between machines in the last bits.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from kvtools.chance import rng_for
from kvtools.onerec.items.basis import NOTHING, Basis

_SPARE = 20  # directions beyond those wanted; Halko, Martinsson and Tropp advise 5 to 10, and more cost little


@dataclass(frozen=True)
class Embedded:
    """Vectors, the items they belong to, and how much they explain."""

    kept: np.ndarray  # int64 (n,): rows of the input; a row without terms and numbers is not among them
    vectors: np.ndarray  # float32 (n, D+C)
    unprojected: np.ndarray  # int64: rows whose terms lie outside of the dimensions kept
    n_terms: int
    n_unshared: int  # items with terms, none of which another item has
    explained_share: float | None  # of the variance; None for vectors by an earlier fit
    basis: Basis


def embed(
    keys: Sequence[str],
    terms: Sequence[Sequence[str]],
    x_NC: np.ndarray,
    n_dims: int,
    *,
    is_unit: bool,
    n_powers: int | None,
    seed: int,
    like: Basis | None = None,
) -> Embedded:
    """Vectors of items from their terms (N lists) and numbers (N, C). like: an earlier fit, which the items are projected by;
    its dimensions count, not n_dims.

    is_unit: the part from terms and the part from numbers have norm 1 in the mean each, and the whole row has norm 1. A row
    whose terms share nothing with the dimensions kept has no direction; scaling it up would show rounding, so it gets a
    random direction of its own (`direction`). Otherwise the parts are put side by side as they are, and such a row is
    left out. Raises ValueError as `project_terms` does.
    """
    is_described = np.array([bool(terms_of_item) for terms_of_item in terms], bool) | ~np.isnan(x_NC).all(axis=1)
    kept = np.flatnonzero(is_described)
    kept_terms = [terms[row] for row in kept.tolist()]
    frequency = Counter(term for terms_of_item in kept_terms for term in set(terms_of_item))
    n_terms = len(frequency)
    n_unshared = sum(bool(own) and all(frequency[term] == 1 for term in own) for own in kept_terms)
    if like is None:
        x_ND, basis, explained = fit(kept_terms, x_NC[kept], n_dims, n_powers, seed)
    else:
        x_ND, basis, explained = like.project(kept_terms), like, None
    numbers_NC = basis.standardise(x_NC[kept])
    if is_unit:
        x_ND = unit(np.concatenate([unit(x_ND), numbers_NC / np.sqrt(max(1, x_NC.shape[1]))], axis=1))
    else:
        x_ND = np.concatenate([x_ND, numbers_NC], axis=1)
    is_unprojected = ~x_ND.any(axis=1)
    unprojected = kept[is_unprojected]
    if is_unit:
        for n in np.flatnonzero(is_unprojected):
            x_ND[n] = direction(keys[kept[n]], x_ND.shape[1], seed)
    else:
        kept, x_ND = kept[~is_unprojected], x_ND[~is_unprojected]
    return Embedded(kept, x_ND.astype(np.float32), unprojected, n_terms, n_unshared, explained, basis)


def fit(
    terms: Sequence[Sequence[str]], x_NC: np.ndarray, n_dims: int, n_powers: int | None, seed: int
) -> tuple[np.ndarray, Basis, float | None]:
    """Terms projected as `project_terms` does, the basis of it, and the fraction of variance kept; no dimensions, and all of
    it, where there are no terms. x_NC: the numbers that later ones are scaled like."""
    mean_C, deviation_C = _scale(x_NC)
    if not any(terms):
        nothing = Basis([], np.empty(0, np.float32), np.empty((0, 0), np.float32), mean_C, deviation_C)
        return np.empty((len(terms), 0)), nothing, 1.0
    x_ND, vocabulary, weights_V, vectors_VD, explained = project_terms(terms, n_dims, n_powers, seed)
    basis = Basis(vocabulary, weights_V.astype(np.float32), vectors_VD.astype(np.float32), mean_C, deviation_C)
    return x_ND, basis, explained


def project_terms(
    terms: Sequence[Sequence[str]], n_dims: int, n_powers: int | None, seed: int
) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray, float]:
    """float64 (N, D): rows of TF-IDF, made unit norm, on the first D right singular vectors; the V terms, sorted;
    their idf, (V,); the singular vectors, (V, D); and the fraction of variance kept.

    terms: N lists. n_powers: None for singular vectors that have converged, else how many power iterations. Smooth idf,
    ln((1+N)/(1+df)) + 1. A row whose terms lie outside of what is kept, and one without terms, is exactly 0. Singular
    vectors have their largest component positive. Raises ValueError unless 0 < D < min(N, V). Costs O(D) products with a
    sparse (N, V) matrix, and 2 D (N + V) numbers.
    """
    vectorizer = TfidfVectorizer(analyzer=list)
    x_NV = vectorizer.fit_transform(terms)
    limit = min(x_NV.shape) - 1
    if not 0 < n_dims <= limit:
        n_items, n_terms = x_NV.shape
        allowed = f"from 1 to {limit} are possible" if limit else "2 or more of both are needed"
        raise ValueError(f"{n_dims} dimensions are too many for {n_items} items with {n_terms} terms, and {allowed}")
    with threadpool_limits(1):
        if n_powers is None:
            svd = TruncatedSVD(n_dims, algorithm="arpack", random_state=seed)
            x_ND, vectors_VD = svd.fit_transform(x_NV), svd.components_.T
        else:
            x_ND, vectors_VD = _sketch(x_NV, n_dims, n_powers, seed)
        x_ND[np.linalg.norm(x_ND, axis=1) < NOTHING] = 0
    explained = x_ND.var(axis=0).sum() / (x_NV.power(2).mean(axis=0) - np.square(x_NV.mean(axis=0))).sum()
    return x_ND, vectorizer.get_feature_names_out().tolist(), vectorizer.idf_, vectors_VD, float(explained)


def _sketch(x_NV: Any, n_dims: int, n_powers: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 (N, D), (V, D): x on about its first D right singular vectors, and these, by Halko, Martinsson and Tropp
    2011, algorithm 4.4."""
    q_NS = x_NV @ rng_for(seed, "sketch").standard_normal((x_NV.shape[1], n_dims + _SPARE))
    for _ in range(n_powers):
        q_NS = x_NV @ (x_NV.T @ np.linalg.qr(q_NS)[0])
    q_NS = np.linalg.qr(q_NS)[0]
    u_SS, s_S, v_SV = np.linalg.svd((x_NV.T @ q_NS).T, full_matrices=False)
    rows = np.arange(len(v_SV))
    sign_S = np.sign(v_SV[rows, np.abs(v_SV).argmax(axis=1)])
    return np.asarray((q_NS @ u_SS)[:, :n_dims] * (s_S * sign_S)[:n_dims]), (v_SV[:n_dims] * sign_S[:n_dims, None]).T


def _scale(x_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 (C,) each: the means of columns without NaN, which is an empty cell, and the deviations; 1 for a constant one."""
    is_known = ~np.isnan(x_NC)
    n_C = np.maximum(1, is_known.sum(axis=0))
    mean_C = np.where(is_known, x_NC, 0).sum(axis=0) / n_C
    deviation_C = np.sqrt((np.where(is_known, x_NC - mean_C, 0) ** 2).sum(axis=0) / n_C)
    return mean_C, np.where(deviation_C > 0, deviation_C, 1)


def unit(x_ND: np.ndarray) -> np.ndarray:
    """float64 (N, D): rows divided by their norm; rows of 0 stay 0."""
    norm_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return np.asarray(x_ND / np.where(norm_N1 > 0, norm_N1, 1))


def direction(key: str, n_dims: int, seed: int) -> np.ndarray:
    """float64 (D,): a random unit vector that depends on the key and the seed alone."""
    x_D = rng_for(seed, "direction", key).standard_normal(n_dims)
    return np.asarray(x_D / np.linalg.norm(x_D))
