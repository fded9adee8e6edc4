"""The other quantisers, in the peers' environment: a JSON request on stdin; JSON of seconds, MSE and passes on stdout."""

import json
import sys
import time

import numpy as np


def faiss_kmeans(x, words):
    """Chained faiss.Kmeans on all rows, from the same first rows as kvtools; a last search gives the codes."""
    import faiss

    passes = 0
    begun = time.perf_counter()
    for start in words["starts"]:
        kmeans = faiss.Kmeans(x.shape[1], words["codes"], niter=words["iterations"], max_points_per_centroid=len(x))
        kmeans.train(x, init_centroids=x[start])
        _, codes = kmeans.index.search(x, 1)
        x -= kmeans.centroids[codes[:, 0]]
        passes += words["iterations"] + 1
    return time.perf_counter() - begun, x, passes


def faiss_sampled(x, words):
    """faiss.Kmeans on the sample of rows that it takes by itself, from its own first rows; then all are encoded in blocks."""
    import faiss

    begun = time.perf_counter()
    for _ in range(words["levels"]):
        kmeans = faiss.Kmeans(x.shape[1], words["codes"], niter=words["iterations"])
        kmeans.train(x)
        for begin in range(0, len(x), 1 << 18):
            block = x[begin : begin + (1 << 18)]
            block -= kmeans.centroids[kmeans.index.search(block, 1)[1][:, 0]]
    return time.perf_counter() - begun, x, None


def faiss_residual_quantizer(x, words):
    """faiss.ResidualQuantizer, beam 1; its own initialisation, all rows."""
    import faiss

    n_bits = int(np.log2(words["codes"]))
    quantizer = faiss.ResidualQuantizer(x.shape[1], words["levels"], n_bits)
    quantizer.max_beam_size = 1
    quantizer.train_type = faiss.ResidualQuantizer.Train_default
    quantizer.cp.niter = words["iterations"]
    quantizer.cp.max_points_per_centroid = len(x)
    begun = time.perf_counter()
    quantizer.train(x)
    rebuilt = quantizer.decode(quantizer.compute_codes(x))
    return time.perf_counter() - begun, x - rebuilt, words["levels"] * (words["iterations"] + 1)


def mini_batch(x, words):
    """scikit-learn's MiniBatchKMeans with its defaults but for as many epochs; approximate by design."""
    from sklearn.cluster import MiniBatchKMeans

    begun = time.perf_counter()
    for start in words["starts"]:
        kmeans = MiniBatchKMeans(words["codes"], init=x[start], n_init=1, max_iter=words["iterations"], random_state=0)
        x -= kmeans.fit(x).cluster_centers_[kmeans.predict(x)]
    return time.perf_counter() - begun, x, None


NAMES = {
    "faiss.Kmeans": faiss_kmeans,
    "faiss.Kmeans, a sample": faiss_sampled,
    "faiss.ResidualQuantizer": faiss_residual_quantizer,
    "MiniBatchKMeans": mini_batch,
}

asked = json.load(sys.stdin)
seconds, left, n_passes = NAMES[asked["name"]](np.load(asked["x"]), asked)
print(json.dumps({"seconds": seconds, "mse": float(np.square(left, dtype=np.float64).mean()), "passes": n_passes}))
