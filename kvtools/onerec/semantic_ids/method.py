"""Semantic IDs from vectors: a method to fit codebooks, a way out of collisions, and a report.

What a fit is and what came of it, in one place for the command and for other programs; arrays in, arrays out.
Legend: N items, L levels, S tokens (L, or L + 1), K codes, D width.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from kvtools.onerec.semantic_ids import collisions, quality
from kvtools.onerec.semantic_ids.autoencoder import AutoEncoder
from kvtools.onerec.semantic_ids.balanced import Balanced
from kvtools.onerec.semantic_ids.rqkmeans import Init, Peers, Rows, RqKMeans
from kvtools.onerec.semantic_ids.rqvae import Settings


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes semantic IDs; see the options of `semid-build` with the same names."""

    levels: int = 3
    codes: int = 8192
    iterations: int = 25
    method: Literal["rq-kmeans", "balanced", "rq-vae"] = "rq-kmeans"
    init: Init = "k-means++"
    collisions: Literal["keep", "extend", "nearest"] = "keep"
    seed: int = 0
    epochs: int | None = None  # of rq-vae
    align_steps: int | None = None  # of alignment before quantising, where there are pairs

    def to_json(self) -> dict[str, Any]:
        """Option names to values; what does not apply is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SemanticIds:
    """Codebooks float32 (L, K, D), codes int32 (N, S) of all items, the report; and what vectors go through before the
    codebooks, if anything: weights named `encoder.…`, and how to use them."""

    codebooks_LKD: np.ndarray
    codes_NS: np.ndarray
    report: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    encoder: dict[str, Any] | None = None


Fit = RqKMeans | Balanced | AutoEncoder


def fit_of(recipe: Recipe, peers: Peers, tell: Callable[[int, float], None]) -> Fit:
    """The fit that a recipe asks for, not yet begun. tell: called after each epoch of rq-vae with its number and loss."""
    if recipe.method == "balanced":
        return Balanced(recipe.levels, recipe.codes, recipe.iterations, recipe.seed, recipe.init)
    if recipe.method == "rq-vae":
        return AutoEncoder(recipe.levels, recipe.codes, recipe.epochs or Settings().n_epochs, recipe.seed, tell)
    return RqKMeans(recipe.levels, recipe.codes, recipe.iterations, recipe.seed, recipe.init, peers)


def finish(rows: Rows, recipe: Recipe, fit: Fit, peers: Peers) -> SemanticIds:
    """The IDs of all rows, once the fit has gone through its steps; a collective, the same for all peers."""
    n_rows = int(peers.sum_array(np.array([len(rows)]))[0])
    codes_NL = np.zeros((n_rows, recipe.levels), np.int32)
    codes_NL[rows.numbers] = fit.codes_NL
    codes_NS = codes_NL = peers.sum_array(codes_NL)
    mse = fit.mse
    told: dict[str, int] = {}
    if recipe.collisions == "extend":
        codes_NS = collisions.extend(codes_NL)
    elif recipe.collisions == "nearest":
        codes_NS, mse, n_stuck = _move(rows, codes_NL, fit, peers)
        told = {"moved": int((codes_NS != codes_NL).any(axis=1).sum()), "stuck": n_stuck}
    report = {**recipe.to_json(), "dim": rows.n_width, "mse": mse, "reseeds": fit.reseeds, **told}
    weights = fit.found.weights if isinstance(fit, AutoEncoder) and fit.found is not None else {}
    named = {f"encoder.rq-vae.{name}": array for name, array in weights.items()}
    report |= quality.describe(codes_NS, recipe.levels, recipe.codes)
    return SemanticIds(fit.codebooks_LKD, codes_NS, report, named)


def _move(rows: Rows, codes_NL: np.ndarray, fit: Fit, peers: Peers) -> tuple[np.ndarray, float, int]:
    """Codes without collisions as far as may be, what that does to the error, and how many rows found no free code."""
    wanted_P = collisions.colliding(codes_NL)
    codebook_KD = fit.codebooks[-1]
    if isinstance(fit, AutoEncoder):
        codes_NS, n_stuck = collisions.move(codes_NL, wanted_P, fit.last_of(wanted_P), codebook_KD)
        return codes_NS, fit.error(codes_NS), n_stuck
    left_PD = peers.sum_array(rows.pick(wanted_P)).astype(np.float64)
    last_PD = left_PD + codebook_KD[codes_NL[wanted_P, -1]]
    codes_NS, n_stuck = collisions.move(codes_NL, wanted_P, last_PD, codebook_KD)
    more = np.square(last_PD - codebook_KD[codes_NS[wanted_P, -1]]).sum() - np.square(left_PD).sum()
    return codes_NS, fit.mse + float(more) / (len(codes_NL) * rows.n_width), n_stuck
