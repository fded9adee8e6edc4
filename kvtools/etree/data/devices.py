"""A `device` bag: which samples each device holds, and how far devices are from one another; to tensors and back.

Legend: n devices, C classes, S sites. `labels` is (n, 0) where there are no data, only places. Not here: bytes.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kvtools.artifact import Bag, kinds, open_artifact
from kvtools.errors import Corrupt
from kvtools.etree.data import partition
from kvtools.etree.network.delay import Delays, checked


class Peers(Protocol):
    """Those who share the work; World is one."""

    rank: int
    size: int
    local_size: int

    def broadcast(self, value: Any) -> Any: ...
    def sum_array(self, array: np.ndarray) -> np.ndarray: ...
    def gather_array(self, array: np.ndarray) -> np.ndarray: ...


METRICS = ("matrix", "euclidean", "sphere", "graph")


@dataclass(frozen=True)
class Roster:
    """Devices with their samples and their delays; `delays` is None where nothing is known of the network."""

    labels: np.ndarray  # int32 (n, C)
    index: np.ndarray  # int64: samples, device after device
    offsets: np.ndarray  # int64 (n+1,)
    delays: Delays | None = None
    edges: tuple[np.ndarray, np.ndarray] | None = None  # int32 (E, 2), float32 (E,) ms

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_data(self) -> bool:
        return bool(self.labels.shape[1])

    @property
    def sizes(self) -> np.ndarray:
        """int64 (n,): how many samples each device holds; 1 each where there are no data."""
        return np.diff(self.offsets) if self.has_data else np.ones(len(self), np.int64)

    def tensors(self) -> dict[str, np.ndarray]:
        """What a bag holds, see kinds.py."""
        found = {"labels": self.labels, "index": self.index, "offsets": self.offsets}
        if self.delays is not None:
            if self.delays.matrix is not None:
                found["delay"] = self.delays.matrix
            if self.delays.points is not None:
                found["coordinates"] = self.delays.points
            if not (np.array_equal(self.delays.site, np.arange(self.delays.n_sites)) and not self.delays.last.any()):
                found |= {"site": self.delays.site.astype(np.int32), "last_mile": self.delays.last.astype(np.float32)}
        if self.edges is not None:
            found |= {"edges": self.edges[0], "edge_ms": self.edges[1]}
        return found


def read_bag_of(kind: str, maker: str, src: str, peers: Peers) -> Bag:
    """A bag of one kind, read by the first of the peers, who alone has a stdin, and handed round. Raises Corrupt for others."""
    bag = None
    if peers.rank == 0:
        artifact = open_artifact(src)
        if not isinstance(artifact, Bag) or artifact.kind != kind:
            found = artifact.kind if isinstance(artifact, Bag) else artifact.head.kind
            name = "stdin" if src == "-" else src
            raise Corrupt(f"{name}: {found or 'a foreign bag'} found, {kind} expected. Make it with kvtools {maker}.")
        bag = artifact
    if peers.size == 1 and bag is not None:
        return bag
    mine = {} if bag is None else bag.tensors
    heads = peers.broadcast({name: [array.dtype.str, list(array.shape)] for name, array in mine.items()})
    fields = peers.broadcast({} if bag is None else bag.fields)
    tensors = {}
    for name, (dtype, shape) in heads.items():
        flat = mine[name].reshape(-1) if bag is not None else np.empty(0, dtype)
        tensors[name] = peers.gather_array(flat).reshape(shape)
    return Bag(tensors, fields)


def read_roster(src: str, peers: Peers) -> tuple[Roster, Bag]:
    """A `device` bag and what it holds. Raises Corrupt for other artifacts and for numbers that do not hang together."""
    name = "stdin" if src == "-" else src
    bag = read_bag_of("device", "devices", src, peers)
    try:
        kinds.check("device", "bag", bag.tensors, bag.fields)
        return _roster(bag), bag
    except ValueError as fault:
        raise Corrupt(f"{name}: {fault}.") from None


def _roster(bag: Bag) -> Roster:
    tensors, n_devices = bag.tensors, len(bag.tensors["labels"])
    if not n_devices:
        raise ValueError("no devices in it")
    index, offsets = tensors["index"], tensors["offsets"]
    if len(offsets) != n_devices + 1 or offsets[0] != 0 or offsets[-1] != len(index) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets: {n_devices + 1} rising from 0 to {len(index)} expected")
    if tensors["labels"].shape[1]:
        partition.checked(index, offsets, len(index))
        if not np.array_equal(tensors["labels"].sum(axis=1), np.diff(offsets)):
            raise ValueError("labels: as many as each device has samples expected")
    edges = (tensors["edges"], tensors["edge_ms"]) if "edges" in tensors else None
    return Roster(tensors["labels"], index, offsets, _delays(tensors, bag.fields.get("network") or {}, n_devices), edges)


def _delays(tensors: dict[str, np.ndarray], network: dict[str, Any], n_devices: int) -> Delays | None:
    metric = network.get("metric")
    if metric is None:
        return None
    if metric not in METRICS:
        raise ValueError(f"network: metric {metric!r} found, one of {', '.join(METRICS)} expected")
    site = tensors["site"].astype(np.int64) if "site" in tensors else np.arange(n_devices)
    last = tensors["last_mile"].astype(np.float64) if "last_mile" in tensors else np.zeros(n_devices)
    if len(site) != n_devices or len(last) != n_devices:
        raise ValueError(f"site, last_mile: {n_devices} of each expected")
    if metric == "graph":
        from scipy.sparse import coo_array

        ends, ms = tensors["edges"], tensors["edge_ms"]
        if (ends < 0).any():
            raise ValueError("edges: nodes from 0 expected")
        n_nodes = int(ends.max(initial=0)) + 1
        weights = np.maximum(ms.astype(np.float64), 1e-12)
        graph = coo_array((weights, (ends[:, 0], ends[:, 1])), shape=(n_nodes, n_nodes)).tocsr()
        return checked(Delays("graph", site, last, graph=graph))
    name = "delay" if metric == "matrix" else "coordinates"
    if name not in tensors:
        raise ValueError(f"{name}: missing where the network is a {metric}")
    if metric == "matrix":
        return checked(Delays("matrix", site, last, matrix=tensors["delay"]))
    return checked(Delays(metric, site, last, points=tensors["coordinates"].astype(np.float64)))
