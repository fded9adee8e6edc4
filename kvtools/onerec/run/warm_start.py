"""Weights to begin with: embeddings by which items are near whose neighbours are alike in the counts of the training part.

A training from random embeddings spends its first epochs on learning which items go together, which counting knows at once.
So items get vectors whose products approximate what the counts say (eigenvectors of the damped co-occurrence, its logarithm
taken), quantised along the IDs: a code's embedding is the mean of what is left of its items' vectors after the codes before,
and the item table keeps the rest. Biases of scores begin as the logarithm of popularity. Our own; factorised counts as
embeddings are Levy and Goldberg's (2014).

Legend: I items, D width, L vectors that the counts tell.
"""

from typing import cast

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import eigsh
from threadpoolctl import threadpool_limits
from torch import nn

from kvtools.chance import rng_for
from kvtools.onerec.model.onerec import OneRec
from kvtools.onerec.recommend.item_counts import ItemCounts
from kvtools.world import World

_SHARPNESS = 100.0  # of the logarithm: how much more a count weighs than the next smaller one
_LENGTH = 1.5  # of a vector, root mean square: scores of items then begin with a deviation of about 1
_EVENNESS = 0.5  # 1: all vectors are equally long; 0: as the counts have them, long for those that have many neighbours
_DIMENSIONS = 128  # at most, whatever the width
_MOST = 1 << 16  # items whose eigenvectors are computed, the most popular ones
_DENSE = 512  # items, up to which all eigenvectors are computed


def begin_with_counts(model: OneRec, counts: ItemCounts, world: World, seed: int) -> None:
    """Set the embeddings of codes and items, and the biases of scores, before a training. A collective."""
    vectors_ID = item_vectors(counts, model.config.width, seed)
    # other processors round otherwise, and all ranks must hold the same weights
    vectors_ID = world.sum_array(vectors_ID if world.is_root else np.zeros_like(vectors_ID))
    is_known = torch.from_numpy((vectors_ID != 0).any(1))
    if not is_known.any():
        return
    left_LD, codes_LS = torch.from_numpy(vectors_ID)[is_known], model.codes_IS[is_known]
    with torch.no_grad():
        for level, table in enumerate(model.codes):
            code_L, weight_KD = codes_LS[:, level], cast("nn.Embedding", table).weight
            count_K1 = torch.bincount(code_L, minlength=len(weight_KD)).unsqueeze(1)
            mean_KD = torch.zeros_like(weight_KD).index_add_(0, code_L, left_LD) / count_K1.clamp(min=1)
            weight_KD.copy_(mean_KD)
            left_LD = left_LD - mean_KD[code_L]
        if model.config.item_table:
            model.items.weight[is_known] = left_LD
        if model.config.item_scores:
            scores = model.item_scores
            bias_I = torch.from_numpy(counts.popularity).float().log1p()
            scores.bias.copy_(bias_I[scores.scored] - bias_I.mean())
            is_rest = torch.ones(len(bias_I), dtype=torch.bool).index_fill_(0, scores.scored, False)
            if is_rest.any():
                scores.rest.fill_(float(bias_I[is_rest].mean() - bias_I.mean()))


def item_vectors(counts: ItemCounts, width: int, seed: int) -> np.ndarray:
    """float32 (I, width), 0 for items that nothing stood beside. 12,101 items of Beauty took 0.3 s on one core.

    Of a large catalogue eigenvectors are those of the most popular items, and the others are put where their neighbours among
    these are (Nystroem's extension).
    """
    damped_II, smoothing = counts.cooccurrence.damped_II, counts.cooccurrence.settings.smoothing
    near_II = sparse.csr_array(sparse.diags_array(1 / np.sqrt(counts.popularity + smoothing)) @ damped_II)
    near_II = ((near_II + near_II.T) / 2).tocsr()
    near_II.data = np.log1p(_SHARPNESS * near_II.data)
    n_items, rng = near_II.shape[0], rng_for(seed, "warm start")
    known = np.sort(np.argsort(-counts.popularity, kind="stable")[:_MOST])
    to_known_IN = near_II[:, known]
    if not to_known_IN[known].nnz:
        return np.zeros((n_items, width), np.float32)
    with threadpool_limits(1):  # the bytes do not depend on how many there are
        value_D, vector_ND = _eigenvectors(to_known_IN[known], min(width, _DIMENSIONS), rng)
        vector_ID = to_known_IN @ (vector_ND / np.sqrt(value_D))
        length_I1 = np.linalg.norm(vector_ID, axis=1, keepdims=True)
        is_known_I1 = length_I1 > 1e-6 * length_I1.max()
        vector_ID = np.where(is_known_I1, vector_ID / np.where(is_known_I1, length_I1, 1) ** _EVENNESS, 0)
        vector_ID *= _LENGTH / np.sqrt(np.square(vector_ID).sum(1)[is_known_I1[:, 0]].mean())
        # turned at random into all dimensions, so that none is like another
        turn_DD, _ = np.linalg.qr(rng.standard_normal((width, width)))
        return np.asarray(vector_ID @ turn_DD[: vector_ID.shape[1]], np.float32)


def _eigenvectors(near_NN: sparse.csr_array, n_dims: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues, those above 0 alone, float64 (D,), and their vectors, float64 (N, D), of a symmetric matrix."""
    n_items = near_NN.shape[0]
    if n_items <= max(_DENSE, 2 * n_dims):
        value_D, vector_ND = (x[..., -n_dims:] for x in np.linalg.eigh(near_NN.toarray()))
    else:
        value_D, vector_ND = eigsh(near_NN, k=n_dims, which="LA", v0=rng.standard_normal(n_items))
    is_useful_D = value_D > 1e-9 * value_D.max()
    value_D, vector_ND = value_D[is_useful_D], vector_ND[:, is_useful_D]
    # the sign of an eigenvector is any library's choice
    return value_D, vector_ND * np.sign(vector_ND[np.abs(vector_ND).argmax(0), np.arange(len(value_D))])
