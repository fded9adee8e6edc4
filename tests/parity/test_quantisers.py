"""RQ-KMeans against other people's k-means, from the same first codes; and on real items against what is known of them."""

import json

import faiss
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from kvtools.onerec.semantic_ids.nearest import Backend, fastest
from kvtools.onerec.semantic_ids.rqkmeans import RqKMeans
from kvtools.onerec.semantic_ids.vector_store import VectorStore
from kvtools.world import World

CHOSEN = Backend(torch.device("cpu"), torch.bfloat16)


def clumps(n, width, n_clumps, seed=0):
    rng = np.random.default_rng(seed)
    return (2 * rng.normal(size=(n_clumps, width))[rng.integers(0, n_clumps, n)] + rng.normal(size=(n, width))).astype(
        np.float32
    )


def one_level(x, start, n_iterations):
    rows = VectorStore(x.shape[1])
    rows.append(0, x)
    fit = RqKMeans(1, len(start), n_iterations, 0, begun=(0, start), reseeds=[0])
    for _ in fit.fit(rows, fastest("cpu", x.shape[1], len(start)), World()):
        pass
    return fit


def test_the_error_is_that_of_faiss_from_the_same_first_codes():
    x = clumps(30_000, 48, 300)
    start = x[np.random.default_rng(1).choice(len(x), 256, replace=False)]
    kmeans = faiss.Kmeans(48, 256, niter=15, max_points_per_centroid=len(x))
    kmeans.train(x, init_centroids=start)
    distances, _ = kmeans.index.search(x, 1)
    theirs = float(np.mean(distances, dtype=np.float64)) / 48
    ours = one_level(x, start, 15).mse
    assert ours <= theirs * 1.001, (ours, theirs)


def test_codes_are_those_of_scikit_learn_from_the_same_first_codes():
    x = clumps(4000, 24, 60, seed=2)
    start = x[:50].copy()
    kmeans = KMeans(50, init=start, n_init=1, max_iter=10, tol=0, algorithm="lloyd").fit(x.astype(np.float64))
    fit = one_level(x, start, 10)
    if fit.reseeds == [0]:
        assert np.array_equal(fit.codes_NL[:, 0], kmeans.labels_)
        np.testing.assert_allclose(fit.codebooks[0], kmeans.cluster_centers_, atol=1e-5)
    else:
        pytest.fail("a seed that leaves no cell empty is wanted here")


@pytest.mark.data
def test_real_items_give_the_error_and_the_collisions_that_are_known(sh, data):
    """Reference: MSE 0.001135 a dimension and 18.4 % collisions, K=256 L=3. It was measured on vectors of a decomposition that
    had not converged; two power iterations give the like of them. Seeds alone move the error by a percent, so three."""
    items = data / "rec" / "amazon_beauty_2014" / "item_keywords.json"
    errors, collisions = [], []
    for seed in range(3):
        done = sh(
            f"kvtools embed --words --power-iterations 2 --seed {seed} {items} |"
            f" kvtools semid-build --codes 256 --seed {seed} -o {seed}.ids --json"
        )
        assert done.code == 0, done.err
        told = json.loads(done.out)
        errors.append(told["mse"])
        collisions.append(1 - told["distinct_share"])
        assert told["utilisation"] == [1, 1, 1]
    # a lower error is no fault: k-means++ that keeps the best of a few draws is better than the reference's
    assert np.mean(errors) <= 0.001135 * 1.01
    assert np.mean(collisions) == pytest.approx(0.184, abs=0.02)
