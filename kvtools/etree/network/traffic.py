"""How long messages take that set out together, hop by hop with queues, as in the second model of the authors' simulator.

In that model (branch dev, ETreeRouting) a hop costs 1 ms of propagation, 100 ms of transmission and 5 ms of
processing. Each node that a message arrives at adds 100 ms for every two flows beyond two that pass through it at that level,
so messages queue at a server with many children and where flows share a link. The lengths of edges only choose the path.

In a network without edges every device is one hop from every other. Last miles are not hops. Not here: bandwidth, which
etree/train/costs.py adds to any delay. Legend: m messages, S sites.
"""

import numpy as np

from kvtools.etree.network.delay import Delays, graph_of

HOP_MS = 1 + 100 + 5
_QUEUE_MS = 100
_N_FREE = 2  # flows through a node that do not wait


class Queues:
    """Messages go from hop to hop, and wait at nodes that many of them pass."""

    def __init__(self, delays: Delays, edges: tuple[np.ndarray, np.ndarray] | None) -> None:
        """edges: sites int32 (E, 2) and lengths float32 (E,), ms; None where every site is one hop from every other."""
        self._delays = delays
        self._graph = None if edges is None else graph_of(*edges, delays.n_sites)

    def travel_ms(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Time of each message, all of which set out together, float64 (m,), ms; 0 to oneself.

        source, target: device numbers (m,). Costs one search of the graph a target.
        """
        a, b = self._delays.site[source], self._delays.site[target]
        n_hops, site, message = self._routes(a, b)
        n_flows = np.bincount(site, minlength=self._delays.n_sites)
        wait = _QUEUE_MS * np.ceil(np.maximum(n_flows - _N_FREE, 0) / 2)
        taken = n_hops * HOP_MS + np.bincount(message, weights=wait[site], minlength=len(source))
        return np.where(source == target, 0.0, taken)

    def _routes(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hops of each message, (m,); and each arrival at a site: the site, and the message that arrives."""
        is_away = np.flatnonzero(a != b)
        if self._graph is None:
            return (a != b).astype(np.float64), b[is_away], is_away
        from scipy.sparse.csgraph import dijkstra

        n_hops = np.zeros(len(a))
        sites: list[np.ndarray] = []
        messages: list[np.ndarray] = []
        for target in np.unique(b[is_away]).tolist():
            _, toward = dijkstra(self._graph, directed=False, indices=target, return_predecessors=True)
            travelling = is_away[b[is_away] == target]
            at = a[travelling]
            while len(travelling):
                at = toward[at]
                n_hops[travelling] += 1
                sites.append(at.astype(np.int64))
                messages.append(travelling)
                travelling, at = travelling[at != target], at[at != target]
        none = np.empty(0, np.int64)
        return n_hops, np.concatenate([none, *sites]), np.concatenate([none, *messages])
