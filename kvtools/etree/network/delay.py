"""Delays between devices, in ms: from a matrix of sites, from positions, or along a graph; never all pairs at once.

Legend: n devices, S sites, K centres, m members of a group. A device stands at a site, at the end of a last mile. The delay
between two devices is the delay between their sites plus both last miles; the delay of a device to itself is 0. All delays are
symmetric.

Callers need the delays to a few centres, the nearest centre, and the medoid of a group. Each costs O(S K), or O(n log K) for
positions. Not here: where the numbers come from (readers.py, graphs.py), and how long a message takes beyond the
delay (traffic.py).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Metric = Literal["matrix", "euclidean", "sphere", "graph"]

_EXACT = 256  # a group at up to so many sites has an exact medoid
_CANDIDATES = 64  # larger groups of positions: so many sites nearest to their mean can be the medoid
_GRAPH_CANDIDATES = 8  # larger groups of graph nodes: fewer, since each candidate costs a Dijkstra
_BLOCK = 1 << 22  # numbers in a block of distances
_N_NEAREST = 8  # centres compared where last miles may change which is nearest


@dataclass(frozen=True)
class Delays:
    """The network of a `device` bag. `checked` makes sure that it can be computed with."""

    metric: Metric
    site: np.ndarray  # int (n,)
    last_mile: np.ndarray  # float64 (n,), ms
    matrix: np.ndarray | None = None  # float32 (S, S), ms
    points: np.ndarray | None = None  # float64 (S, d), ms; on a sphere (S, 3) around its centre, the radius in ms
    graph: Any = None  # scipy CSR array (S, S), ms

    def __len__(self) -> int:
        return len(self.site)

    @property
    def n_sites(self) -> int:
        """Sites that delays are known of."""
        return int(next(x.shape[0] for x in (self.matrix, self.points, self.graph) if x is not None))

    def between(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Delays from each of a to each of b, float64 (len(a), len(b)), ms. a, b: device numbers."""
        sites, index = _unique(self.site[b])
        delay: np.ndarray = self._sites(self.site[a], sites)[:, index] + self.last_mile[a][:, None] + self.last_mile[b]
        delay[a[:, None] == b] = 0
        return delay

    def elementwise(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Delays from a[i] to b[i], float64 (m,), ms. a, b: device numbers (m,). On a graph: one Dijkstra a site of b."""
        if self.metric == "matrix":
            assert self.matrix is not None
            delay: np.ndarray = self.matrix[self.site[a], self.site[b]].astype(np.float64)
        elif self.points is not None:
            delay = self._arc(np.sqrt(np.square(self.points[self.site[a]] - self.points[self.site[b]]).sum(axis=1)))
        else:
            delay = np.empty(len(a))
            sites, index = np.unique(self.site[b], return_inverse=True)
            for i, site in enumerate(sites.tolist()):
                rows = np.flatnonzero(index == i)
                delay[rows] = self._sites(np.array([site]), self.site[a[rows]])[0]
        delay += self.last_mile[a] + self.last_mile[b]
        delay[a == b] = 0
        return delay

    def nearest(self, centres_K: np.ndarray, devices: np.ndarray | None = None) -> np.ndarray:
        """The nearest centre of each device, as an index into centres_K, int32 (len(devices),); of all devices by default.

        Ties go to the lower index, and a centre is nearest to itself.
        """
        devices = np.arange(len(self)) if devices is None else devices
        nearest = (
            self._nearest_points(centres_K, devices) if self.points is not None else self._nearest_rows(centres_K, devices)
        )
        index = {int(device): k for k, device in reversed(list(enumerate(centres_K.tolist())))}
        for row in np.flatnonzero(np.isin(devices, centres_K)).tolist():
            nearest[row] = index[int(devices[row])]
        return nearest.astype(np.int32)

    def succession(self, members: np.ndarray) -> np.ndarray:
        """Members of a group, int (m,), in the order in which they would be its centre, int (m,).

        First the medoid, which has the least total delay to the others, then the others by their totals; ties to the lower
        number. In groups at more than 256 sites the medoid is the best of a few central ones, and the others follow by their
        delay to it.
        """
        sites, count = np.unique(self.site[members], return_counts=True)
        if self.metric == "matrix" or len(sites) <= _EXACT:
            total = self._totals(members, sites, sites, count)
            return members[np.lexsort((members, total))]
        delay = self.between(np.array([self.medoid(members)]), members)[0]
        return members[np.lexsort((members, delay))]

    def medoid(self, members: np.ndarray) -> int:
        """The first of `succession`, without the cost of ordering the others. members: int (m,)."""
        own = self.site[members]
        is_apart = bool((np.diff(own) > 0).all())  # every member at a site of its own, in the order of the sites
        sites, count = (own, np.ones(len(own))) if is_apart else np.unique(own, return_counts=True)
        is_exact = self.metric == "matrix" or len(sites) <= _EXACT
        central = sites if is_exact else self._central(sites, count)
        candidates = members
        if not is_exact:
            candidates = members[np.searchsorted(own, central)] if is_apart else members[np.isin(own, central)]
        return int(candidates[np.lexsort((candidates, self._totals(candidates, central, sites, count)))[0]])

    def take(self, devices: np.ndarray) -> "Delays":
        """The delays between some devices, int (m,), which are numbered from 0 in the order given."""
        return replace(self, site=self.site[devices], last_mile=self.last_mile[devices])

    def server(self) -> int:
        """The device whose largest delay to another is least (the 1-centre), ties to the lower number.

        Of more than 256 sites without a matrix, the best of a few central ones.
        """
        sites = np.unique(self.site)
        largest = np.zeros(self.n_sites)
        np.maximum.at(largest, self.site, self.last_mile)
        candidates = sites
        if self.metric != "matrix" and len(sites) > _EXACT:
            candidates = self._central(sites, np.ones(len(sites)))
        reach = np.full(self.n_sites, np.inf)
        for rows in blocks(len(candidates), len(sites)):
            reach[candidates[rows]] = (self._sites(candidates[rows], sites) + largest[sites]).max(axis=1)
        return int(np.argmin(reach[self.site] + self.last_mile))

    def _totals(self, members: np.ndarray, own: np.ndarray, sites: np.ndarray, count: np.ndarray) -> np.ndarray:
        """For each member, whose site is in `own`, the sum of its delays to a group of `count` devices at `sites`."""
        cost = self._sites(own, sites) @ count
        return np.asarray(cost[np.searchsorted(own, self.site[members])] + (count.sum() - 2) * self.last_mile[members])

    def _central(self, sites: np.ndarray, count: np.ndarray) -> np.ndarray:
        """A few sites in the middle of a group's, sorted."""
        if self.points is None:
            # a node far from the first, the node farthest from that one: the middle is near to both ends
            end = int(self._sites(sites[:1], sites)[0].argmax())
            delay = self._sites(sites[[end]], sites)[0]
            largest = np.maximum(delay, self._sites(sites[[int(delay.argmax())]], sites)[0])
            return np.sort(sites[np.argsort(largest, kind="stable")[:_GRAPH_CANDIDATES]])
        own = self.points[sites]
        mean = (own * count[:, None]).sum(axis=0) / count.sum()
        from_mean = np.square(own - mean).sum(axis=1)
        return np.sort(sites[np.lexsort((sites, from_mean))[:_CANDIDATES]])

    def _sites(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Delays between two lists of sites, float64 (len(a), len(b)). A delay's bits do not depend on the rest of the
        lists."""
        if self.matrix is not None:
            return np.asarray(self.matrix[np.ix_(a, b)], np.float64)
        if self.points is not None:
            square = np.zeros((len(a), len(b)))
            for axis in range(self.points.shape[1]):
                square += np.square(self.points[a, axis][:, None] - self.points[b, axis])
            return self._arc(np.sqrt(square))
        from scipy.sparse.csgraph import dijkstra

        sources, index = np.unique(a, return_inverse=True)
        rows = dijkstra(self.graph, directed=False, indices=sources)
        delay: np.ndarray = rows[:, b][index]
        return delay

    def _arc(self, chord: np.ndarray) -> np.ndarray:
        """Straight distances as distances along the surface, where the positions are on a sphere."""
        if self.metric != "sphere":
            return chord
        assert self.points is not None
        diameter = 2 * float(np.sqrt(np.square(self.points[0]).sum()))
        return np.asarray(diameter * np.arcsin(np.minimum(1, chord / diameter)))

    def _nearest_rows(self, centres_K: np.ndarray, devices: np.ndarray) -> np.ndarray:
        """`nearest` by all delays to the centres."""
        sites, index = _unique(self.site[devices])
        if self.graph is not None:  # one Dijkstra a centre
            delay = self._sites(self.site[centres_K], sites) + self.last_mile[centres_K][:, None]
            return np.asarray(delay.argmin(axis=0)[index])
        return np.asarray(self._nearest_of_all(centres_K, sites)[index])

    def _nearest_of_all(self, centres_K: np.ndarray, sites: np.ndarray) -> np.ndarray:
        """The nearest centre of each site, by all delays, block by block, int64 (len(sites),)."""
        best = np.empty(len(sites), np.int64)
        for rows in blocks(len(sites), len(centres_K)):
            best[rows] = (self._sites(sites[rows], self.site[centres_K]) + self.last_mile[centres_K]).argmin(axis=1)
        return best

    def _nearest_points(self, centres_K: np.ndarray, devices: np.ndarray) -> np.ndarray:
        """`nearest` by a k-d tree: the few nearest centres of each site, and all of them where these cannot decide."""
        from scipy.spatial import cKDTree

        assert self.points is not None
        sites, index = _unique(self.site[devices])
        own = self.points[self.site[centres_K]]
        last_K = self.last_mile[centres_K]
        # last miles of one length do not change which centre is nearest; two are compared even so, to see ties
        is_even = np.ptp(last_K) == 0
        n_nearest = min(2 if is_even else _N_NEAREST, len(centres_K))
        distance, near = cKDTree(own).query(self.points[sites], k=n_nearest)
        near = near.reshape(len(sites), n_nearest)
        if n_nearest == 2 and is_even:
            best = near[:, 0].copy()
            # the k-d tree rounds in its own way: near ties are decided by the same numbers as everywhere else
            open_ = np.flatnonzero(distance[:, 1] <= distance[:, 0] * (1 + 1e-9))
        else:
            near.sort(axis=1)  # ties to the lower index
            delay = np.empty(near.shape)
            for column in range(n_nearest):
                delay[:, column] = self._arc(np.sqrt(np.square(self.points[sites] - own[near[:, column]]).sum(axis=1)))
            farthest = delay.max(axis=1)
            delay += last_K[near]
            best = near[np.arange(len(sites)), delay.argmin(axis=1)]
            # a centre farther off may still win by a short last mile
            is_open = (delay.min(axis=1) >= farthest + last_K.min()) & (n_nearest < len(centres_K))
            open_ = np.flatnonzero(is_open)
        if len(open_):
            best[open_] = self._nearest_of_all(centres_K, sites[open_])
        return np.asarray(best[index])


def _unique(sites: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sites sorted, each once, and the index of each; nothing is sorted where every device has a site of its own."""
    if (np.diff(sites) > 0).all():
        return sites, np.arange(len(sites))
    unique, index = np.unique(sites, return_inverse=True)
    return unique, index


def graph_of(ends: np.ndarray, ms: np.ndarray, n_sites: int) -> Any:
    """An undirected graph as a scipy CSR array (S, S) of lengths in ms. ends: sites, int (E, 2). ms: float (E,)."""
    from scipy.sparse import coo_array

    # scipy drops zeros from sparse graphs; a femtosecond is as good
    lengths = np.maximum(ms.astype(np.float64), 1e-12)
    return coo_array((lengths, (ends[:, 0], ends[:, 1])), shape=(n_sites, n_sites)).tocsr()


def checked(delays: Delays) -> Delays:
    """The same delays. Raises ValueError for sites out of range, and for delays that are negative or not finite."""
    if len(delays.site) and not (delays.site.min() >= 0 and delays.site.max() < delays.n_sites):
        raise ValueError(f"site {int(delays.site.max())} is out of range: there are {delays.n_sites} sites, from 0")
    for name, array in (("delay", delays.matrix), ("coordinates", delays.points), ("last_mile", delays.last_mile)):
        if array is not None and not np.isfinite(array).all():
            index = np.argwhere(~np.isfinite(array))[0].tolist()
            raise ValueError(f"{name}{index} is {array[*index]:g}, and must be finite")
        if array is not None and name != "coordinates" and (array < 0).any():
            raise ValueError(f"{name} holds {array.min():g} ms, and delays cannot be negative")
    return delays


def blocks(n: int, width: int) -> list[slice]:
    """Ranges of n rows such that the distances of a range to `width` centres fit in a block of 4 Mi numbers."""
    step = max(1, _BLOCK // max(1, width))
    return [slice(begin, min(n, begin + step)) for begin in range(0, n, step)]
