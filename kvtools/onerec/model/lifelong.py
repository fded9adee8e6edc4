"""A user's lifelong history compressed: similar items in clusters, each represented by one of its items.

Hierarchical k-means (OneRec, arXiv 2506.13695, section 2.2.1, after TWIN-V2): a node of n items is split into
floor(cuberoot(n)) clusters, and these again, until a node has at most M items. The source names neither M nor k-means' start
and length. Ours: M = LEAF_ITEMS; k-means++ and at most 10 iterations; two clusters where the root says one,
which it does below 8 items. Its k-means++ is not that of semantic_ids/initial_centroids.py, which samples rows over ranks: here
a node has few items, and the model imports nothing of semantic IDs.

Legend: N items of one user, in time order; D dimensions; C clusters; n items of a node; k clusters of a node. The invariant:
every item is in one cluster, and no cluster has more than M items unless all of its items are the same. Not here: whose items
these are and where their vectors come from. Give only items that lie before the item to be predicted.
"""

import math
from dataclasses import dataclass

import numpy as np

from kvtools.chance import rng_for

# below 8 items the source's root gives one cluster, which splits nothing: 7 is the smallest M that it reaches by itself
LEAF_ITEMS = 7
_ITERATIONS = 10


@dataclass(frozen=True)
class Clusters:
    """The clusters of one user's items, numbered by their first item."""

    labels: np.ndarray  # int32 (N,): the cluster of each item
    representatives: np.ndarray  # int32 (C,): the item that stands for each cluster

    def __len__(self) -> int:
        return len(self.representatives)


def compress(x_ND: np.ndarray, *, leaf_items: int = LEAF_ITEMS, seed: int, key: str) -> Clusters:
    """Clusters of at most leaf_items items, or of any number where all are the same.

    x_ND: float32 (N, D), any N; key: the user's name, so that random numbers do not depend on other users. A cluster is
    represented by the item nearest to its mean, ties to the lower number. Computed in float64: the same on one machine, and on
    others up to rounding. It ends for any vectors, since every split makes two parts or more.
    100,000 items of 64 dimensions took 6 s on one core with leaves of 7 (24,000 clusters), 3 s with leaves of 50 (4,700);
    memory O(N * (D + cuberoot(N))). Raises ValueError for other shapes, values that are not finite, and leaf_items below 1.
    """
    if x_ND.ndim != 2 or not np.isfinite(x_ND).all():
        raise ValueError(f"vectors are {x_ND.dtype} {list(x_ND.shape)}, and finite numbers (N, D) are needed")
    if leaf_items < 1:
        raise ValueError(f"leaf_items is {leaf_items}, and 1 or more is needed")
    leaves: list[tuple[np.ndarray, int]] = []  # the items of each, ascending, and which of them represents it
    nodes: list[tuple[np.ndarray, tuple[int, ...]]] = [(np.arange(len(x_ND)), ())] if len(x_ND) else []
    while nodes:
        rows, path = nodes.pop()
        x_nD = x_ND[rows]
        is_same = bool((x_nD == x_nD[0]).all())
        # about their mean: differences that are small beside the vectors themselves survive the squares
        x_nD = x_nD - x_nD.mean(axis=0, dtype=np.float64)
        if is_same or len(rows) <= leaf_items:
            leaves.append((rows, int(rows[np.square(x_nD).sum(axis=1).argmin()])))
            continue
        labels = _split(x_nD, max(2, _cube_root(len(rows))), rng_for(seed, "lifelong", key, *path))
        nodes += [(rows[labels == child], (*path, int(child))) for child in np.unique(labels)]
    leaves.sort(key=lambda leaf: int(leaf[0][0]))
    labels_N = np.empty(len(x_ND), np.int32)
    for number, (rows, _) in enumerate(leaves):
        labels_N[rows] = number
    return Clusters(labels_N, np.array([representative for _, representative in leaves], np.int32))


def average(values_N: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """The mean of each cluster's values, float64 (n, ...). values_N: (N, ...); labels: int (N,), below n.

    Raises ValueError where a cluster has no item.
    """
    counts = np.bincount(labels, minlength=n)
    if len(counts) != n or not counts.all():
        raise ValueError(f"{np.count_nonzero(counts)} of {len(counts)} clusters have items, and {n} are needed")
    sums = np.zeros((n, *values_N.shape[1:]))
    np.add.at(sums, labels, values_N)
    return np.asarray(sums / counts.reshape(n, *[1] * (values_N.ndim - 1)))


def _split(x_nD: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Labels int (n,) by Lloyd's k-means: two or more of the k clusters have items. x_nD: float64, not all rows the same."""
    centroids_kD = _initial_centroids(x_nD, k, rng)
    labels = _assign(x_nD, centroids_kD)
    for _ in range(_ITERATIONS):
        members_kn = (labels == np.arange(len(centroids_kD))[:, None]).astype(np.float64)
        counts = members_kn.sum(axis=1, keepdims=True)
        # a centroid without items stays where it is, and may get items again
        centroids_kD = np.where(counts > 0, members_kn @ x_nD / np.maximum(counts, 1), centroids_kD)
        before, labels = labels, _assign(x_nD, centroids_kD)
        if (labels == before).all():
            break
    if (labels == labels[0]).all():
        # only rounding puts distinct items together: the middle of the widest axis always separates some
        low_D, high_D = x_nD.min(axis=0), x_nD.max(axis=0)
        axis = int((high_D - low_D).argmax())
        labels = (x_nD[:, axis] > low_D[axis] + (high_D[axis] - low_D[axis]) / 2).astype(np.int64)
    return labels


def _initial_centroids(x_nD: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """float64 (k, D), or fewer rows where fewer are distinct: k-means++ (Arthur and Vassilvitskii 2007)."""
    chosen = [int(rng.integers(len(x_nD)))]
    distances_n = np.square(x_nD - x_nD[chosen[0]]).sum(axis=1)
    while len(chosen) < k and distances_n.any():
        ends_n = np.cumsum(distances_n)
        chosen.append(int(np.searchsorted(ends_n, rng.random() * ends_n[-1], side="right")))
        distances_n = np.minimum(distances_n, np.square(x_nD - x_nD[chosen[-1]]).sum(axis=1))
    return x_nD[chosen]


def _assign(x_nD: np.ndarray, centroids_kD: np.ndarray) -> np.ndarray:
    """int64 (n,): the nearest centroid of each row, by ||c||^2 - 2xc; ties to the lower number."""
    return np.asarray((np.square(centroids_kD).sum(axis=1) - 2 * (x_nD @ centroids_kD.T)).argmin(axis=1))


def _cube_root(n: int) -> int:
    """floor(cuberoot(n)): that of 64 may come out as 3.9999..."""
    root = round(math.cbrt(n))
    return root if root**3 <= n else root - 1
