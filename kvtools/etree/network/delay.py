"""Delays between devices, in ms: from a matrix of sites, from positions, or along a graph; never all pairs at once.

Legend: n devices, S sites, K centres, m members of a group. A device sits at a site, at the end of a last mile: the delay
between two devices is that between their sites and both last miles; to itself it is 0. All delays are symmetric.

What is asked for is rows to a few centres, the nearest centre, and the middle of a group; each costs O(S K), or for positions
O(n log K). Not here: where the numbers come from (network.py), and how long a message takes beyond the delay (cost.py).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Metric = Literal["matrix", "euclidean", "sphere", "graph"]

_EXACT = 256  # sites of a group up to which its middle is sought among all of them
_CANDIDATES = 64  # of larger groups of positions: sites nearest to their mean
_GRAPH_CANDIDATES = 8  # of larger groups of a graph's nodes: each costs a Dijkstra
_BLOCK = 1 << 22  # numbers in a block of distances
_ASKED = 8  # nearest centres looked at where last miles may change their order


@dataclass(frozen=True)
class Delays:
    """What `devices` writes of a network. Site numbers are below the sizes of the rest: see `checked`."""

    metric: Metric
    site: np.ndarray  # int (n,)
    last: np.ndarray  # float64 (n,), ms
    matrix: np.ndarray | None = None  # float32 (S, S), ms
    points: np.ndarray | None = None  # float64 (S, d), ms; on a sphere (S, 3) around its centre, the radius in ms
    graph: Any = None  # scipy CSR array (S, S), ms

    def __len__(self) -> int:
        return len(self.site)

    @property
    def n_sites(self) -> int:
        return next(
            len(x) if not hasattr(x, "shape") else x.shape[0] for x in (self.matrix, self.points, self.graph) if x is not None
        )

    def between(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """float64 (len(a), len(b)): the delay of each pair of two lists of devices."""
        sites, place = _unique(self.site[b])
        apart: np.ndarray = self._sites(self.site[a], sites)[:, place] + self.last[a][:, None] + self.last[b]
        apart[a[:, None] == b] = 0
        return apart

    def each(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """float64 (m,): the delay of a[i] to b[i]. Costs a row of sites for every device that occurs in the shorter list."""
        some, place = np.unique(self.site[b], return_inverse=True)
        apart = np.empty(len(a))
        if self.metric == "matrix":
            assert self.matrix is not None
            apart = self.matrix[self.site[a], self.site[b]].astype(np.float64)
        elif self.points is not None:
            apart = self._bent(np.sqrt(np.square(self.points[self.site[a]] - self.points[self.site[b]]).sum(axis=1)))
        else:
            for i, site in enumerate(some.tolist()):
                mine = np.flatnonzero(place == i)
                apart[mine] = self._sites(np.array([site]), self.site[a[mine]])[0]
        apart += self.last[a] + self.last[b]
        apart[a == b] = 0
        return apart

    def nearest(self, centres_K: np.ndarray, some: np.ndarray | None = None) -> np.ndarray:
        """int32: the centre, by place in the list, nearest to each of some devices (all unless told); ties to the lower place,
        and a centre is its own."""
        some = np.arange(len(self)) if some is None else some
        found = self._nearest_points(centres_K, some) if self.points is not None else self._nearest_rows(centres_K, some)
        place = {int(device): k for k, device in reversed(list(enumerate(centres_K.tolist())))}
        for row in np.flatnonzero(np.isin(some, centres_K)).tolist():
            found[row] = place[int(some[row])]
        return found.astype(np.int32)

    def line(self, members: np.ndarray) -> np.ndarray:
        """Members in the order in which they would be the middle of their group: first the medoid, the one with the least total
        delay to the others, then by their totals, ties to the lower number. Of groups at more than 256 sites the medoid is
        the best of a few central ones, and the others follow by their delay to it."""
        sites, count = np.unique(self.site[members], return_counts=True)
        if self.metric == "matrix" or len(sites) <= _EXACT:
            total = self._totals(members, sites, sites, count)
            return members[np.lexsort((members, total))]
        apart = self.between(np.array([self.medoid(members)]), members)[0]
        return members[np.lexsort((members, apart))]

    def medoid(self, members: np.ndarray) -> int:
        """The first of their line, without the others' order."""
        own = self.site[members]
        is_alone = bool((np.diff(own) > 0).all())  # every member at a site of its own, and in their order
        sites, count = (own, np.ones(len(own))) if is_alone else np.unique(own, return_counts=True)
        is_exact = self.metric == "matrix" or len(sites) <= _EXACT
        central = sites if is_exact else self._central(sites, count)
        some = members
        if not is_exact:
            some = members[np.searchsorted(own, central)] if is_alone else members[np.isin(own, central)]
        return int(some[np.lexsort((some, self._totals(some, central, sites, count)))[0]])

    def take(self, devices: np.ndarray) -> "Delays":
        """The delays between some of the devices, numbered anew."""
        return replace(self, site=self.site[devices], last=self.last[devices])

    def hub(self) -> int:
        """The device whose largest delay to another is least (the 1-centre), ties to the lower number; of more than 256 sites
        that have no matrix, the best of a few central ones."""
        sites = np.unique(self.site)
        farthest = np.zeros(self.n_sites)
        np.maximum.at(farthest, self.site, self.last)
        some = sites
        if self.metric != "matrix" and len(sites) > _EXACT:
            some = self._central(sites, np.ones(len(sites)))
        reach = np.full(self.n_sites, np.inf)
        for begin in range(0, len(some), max(1, _BLOCK // len(sites))):
            part = some[begin : begin + max(1, _BLOCK // len(sites))]
            reach[part] = (self._sites(part, sites) + farthest[sites]).max(axis=1)
        return int(np.argmin(reach[self.site] + self.last))

    def _totals(self, members: np.ndarray, own: np.ndarray, sites: np.ndarray, count: np.ndarray) -> np.ndarray:
        """For each member, whose site is in `own`, the sum of its delays to a group of `count` devices at `sites`."""
        cost = self._sites(own, sites) @ count
        return np.asarray(cost[np.searchsorted(own, self.site[members])] + (count.sum() - 2) * self.last[members])

    def _central(self, sites: np.ndarray, count: np.ndarray) -> np.ndarray:
        """A few sites in the middle of a group's, sorted."""
        if self.points is None:
            apart = self._sites(sites[:1], sites)[0]  # a node, the node farthest from it, the node farthest from that …
            chosen = [int(apart.argmax())]
            apart = self._sites(sites[chosen], sites)[0]
            middle = np.maximum(apart, self._sites(sites[[int(apart.argmax())]], sites)[0])
            return np.sort(sites[np.argsort(middle, kind="stable")[:_GRAPH_CANDIDATES]])
        own = self.points[sites]
        mean = (own * count[:, None]).sum(axis=0) / count.sum()
        far = np.square(own - mean).sum(axis=1)
        return np.sort(sites[np.lexsort((sites, far))[:_CANDIDATES]])

    def _sites(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """float64 (len(a), len(b)): delays between two lists of sites. The bits do not depend on what else is in the lists."""
        if self.matrix is not None:
            return np.asarray(self.matrix[np.ix_(a, b)], np.float64)
        if self.points is not None:
            square = np.zeros((len(a), len(b)))
            for axis in range(self.points.shape[1]):
                square += np.square(self.points[a, axis][:, None] - self.points[b, axis])
            return self._bent(np.sqrt(square))
        from scipy.sparse.csgraph import dijkstra

        sources, place = np.unique(a, return_inverse=True)
        rows = dijkstra(self.graph, directed=False, indices=sources)
        found: np.ndarray = rows[:, b][place]
        return found

    def _bent(self, chord: np.ndarray) -> np.ndarray:
        """Along the surface, where the positions are on a sphere."""
        if self.metric != "sphere":
            return chord
        assert self.points is not None
        diameter = 2 * float(np.sqrt(np.square(self.points[0]).sum()))
        return np.asarray(diameter * np.arcsin(np.minimum(1, chord / diameter)))

    def _nearest_rows(self, centres_K: np.ndarray, some: np.ndarray) -> np.ndarray:
        sites, place = _unique(self.site[some])
        best = np.empty(len(sites), np.int64)
        if self.graph is not None:
            apart = self._sites(self.site[centres_K], sites) + self.last[centres_K][:, None]
            return np.asarray(apart.argmin(axis=0)[place])
        step = max(1, _BLOCK // len(centres_K))
        for begin in range(0, len(sites), step):
            part = slice(begin, begin + step)
            best[part] = (self._sites(sites[part], self.site[centres_K]) + self.last[centres_K]).argmin(axis=1)
        return np.asarray(best[place])

    def _nearest_points(self, centres_K: np.ndarray, some: np.ndarray) -> np.ndarray:
        from scipy.spatial import cKDTree

        assert self.points is not None
        sites, place = _unique(self.site[some])
        own = self.points[self.site[centres_K]]
        # last miles of one length change no order; two are asked for even so, to see ties
        n_asked = min(2 if np.ptp(self.last[centres_K]) == 0 else _ASKED, len(centres_K))
        far, near = cKDTree(own).query(self.points[sites], k=n_asked)
        near = near.reshape(len(sites), n_asked)
        if n_asked == 2 and np.ptp(self.last[centres_K]) == 0:
            # two that are as good as equally far are told apart below, with everybody else's numbers; few are
            best = near[:, 0].copy()
            unsure = np.flatnonzero(far[:, 1] <= far[:, 0] * (1 + 1e-9))
            for begin in range(0, len(unsure), max(1, _BLOCK // len(centres_K))):
                rows = unsure[begin : begin + max(1, _BLOCK // len(centres_K))]
                best[rows] = self._sites(sites[rows], self.site[centres_K]).argmin(axis=1)
            return np.asarray(best[place])
        near.sort(axis=1)  # ties to the lower place
        apart = np.empty(near.shape)
        for column in range(n_asked):
            apart[:, column] = self._bent(np.sqrt(np.square(self.points[sites] - own[near[:, column]]).sum(axis=1)))
        farthest = apart.max(axis=1)
        apart += self.last[centres_K][near]
        best = near[np.arange(len(sites)), apart.argmin(axis=1)]
        # a centre farther off may still win by a short last mile
        unsure = np.flatnonzero(apart.min(axis=1) >= farthest + self.last[centres_K].min())
        if n_asked < len(centres_K) and len(unsure):
            step = max(1, _BLOCK // len(centres_K))
            for begin in range(0, len(unsure), step):
                rows = unsure[begin : begin + step]
                best[rows] = (self._sites(sites[rows], self.site[centres_K]) + self.last[centres_K]).argmin(axis=1)
        return np.asarray(best[place])


def _unique(sites: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted, each once, and the place of each; nothing to do where every device has a site of its own."""
    if (np.diff(sites) > 0).all():
        return sites, np.arange(len(sites))
    found, place = np.unique(sites, return_inverse=True)
    return found, place


def checked(delays: Delays) -> Delays:
    """The same, once it is sure that it can be computed with. Raises ValueError."""
    if len(delays.site) and not (delays.site.min() >= 0 and delays.site.max() < delays.n_sites):
        raise ValueError(f"site: {int(delays.site.max())} found, sites below {delays.n_sites} expected")
    for name, array in (("delay", delays.matrix), ("coordinates", delays.points), ("last_mile", delays.last)):
        if array is not None and not np.isfinite(array).all():
            raise ValueError(f"{name}: NaN or infinite")
        if array is not None and name != "coordinates" and (array < 0).any():
            raise ValueError(f"{name}: {array.min():g} ms found, no negative delay expected")
    return delays


def blocks(n: int, width: int) -> list[slice]:
    """Ranges of rows whose distances to `width` centres fit in a block."""
    step = max(1, _BLOCK // max(1, width))
    return [slice(begin, min(n, begin + step)) for begin in range(0, n, step)]
