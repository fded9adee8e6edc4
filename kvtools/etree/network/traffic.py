"""How long messages take that set out together: along shortest paths, or hop by hop with queues, as the authors' simulator
has it.

In the simulator's second model (branch dev, ETreeRouting) a hop costs 1 ms of propagation, 100 ms of transmission and 5 ms
of processing, and at each node that a message comes to 100 ms more for every two flows beyond two that go through it at that
level. Many children of one hub queue there; so do flows that share a link. The lengths of edges only choose the path.

A network without edges is taken for one where everybody is a hop from everybody. Last miles are no hops. Not here:
bandwidth, which course.py adds to either model. Legend: m messages, S sites.
"""

from typing import Any

import numpy as np

from kvtools.etree.network.delay import Delays

HOP_MS = 1 + 100 + 5
_QUEUE_MS = 100
_FREE = 2  # flows through a node that do not wait


class Paths:
    """Messages take the delay of the shortest path, whatever else is on its way."""

    def __init__(self, delays: Delays) -> None:
        self._delays = delays

    def each(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """float64 (m,), ms: from source[i] to target[i]."""
        return self._delays.each(source, target)


class Queues:
    """Messages go from hop to hop, and wait where many go through."""

    def __init__(self, delays: Delays, edges: tuple[np.ndarray, np.ndarray] | None) -> None:
        """edges: int32 (E, 2) and float32 (E,) ms between sites, or None."""
        self._delays = delays
        self._graph: Any = None
        if edges is not None:
            from scipy.sparse import coo_array

            weights = np.maximum(edges[1].astype(np.float64), 1e-12)
            ends, n_sites = edges[0], delays.n_sites
            self._graph = coo_array((weights, (ends[:, 0], ends[:, 1])), shape=(n_sites, n_sites)).tocsr()

    def each(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """float64 (m,), ms, of messages that set out together; 0 to oneself. Costs a search of the graph a target."""
        a, b = self._delays.site[source], self._delays.site[target]
        hops, at, flow = self._routes(a, b)
        load = np.bincount(at, minlength=self._delays.n_sites)
        wait = _QUEUE_MS * np.ceil(np.maximum(load - _FREE, 0) / 2)
        taken = hops * HOP_MS + np.bincount(flow, weights=wait[at], minlength=len(source))
        return np.where(source == target, 0.0, taken)

    def _routes(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How many hops each message makes; and the sites that messages come to, beside the numbers of the messages."""
        is_away = np.flatnonzero(a != b)
        if self._graph is None:
            return (a != b).astype(np.float64), b[is_away], is_away
        from scipy.sparse.csgraph import dijkstra

        hops = np.zeros(len(a))
        at: list[np.ndarray] = []
        flow: list[np.ndarray] = []
        for site in np.unique(b[is_away]).tolist():
            _, toward = dijkstra(self._graph, directed=False, indices=site, return_predecessors=True)
            left = is_away[b[is_away] == site]
            here = a[left]
            while len(left):
                here = toward[here]
                hops[left] += 1
                at.append(here.astype(np.int64))
                flow.append(left)
                is_on = here != site
                left, here = left[is_on], here[is_on]
        none = np.empty(0, np.int64)
        return hops, np.concatenate([none, *at]), np.concatenate([none, *flow])
