"""A `device` bag: which samples each device holds, and how far devices are from one another; to tensors and back.

Legend: n devices, C classes, S sites, E edges. `labels` is (n, 0) where there are no data, only a network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from kvtools.artifact import Bag
from kvtools.artifact.open import open_bag, source_name
from kvtools.errors import Corrupt, raising
from kvtools.etree.data import partition
from kvtools.etree.data.labelled import LabelledData, read_labelled
from kvtools.etree.network.delay import Delays, Metric, checked, graph_of
from kvtools.world import World


@dataclass(frozen=True)
class Devices:
    """Devices with their samples and their delays; `delays` is None where the network is unknown."""

    labels: np.ndarray  # int32 (n, C), samples of each label
    index: np.ndarray  # int64: samples, device after device
    offsets: np.ndarray  # int64 (n+1,), where each device's samples begin in `index`
    delays: Delays | None = None
    edges: tuple[np.ndarray, np.ndarray] | None = None  # int32 (E, 2) sites, float32 (E,) ms

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_data(self) -> bool:
        """Whether devices hold samples."""
        return bool(self.labels.shape[1])

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors of a `device` bag, see kinds.py."""
        tensors = {"labels": self.labels, "index": self.index, "offsets": self.offsets}
        if self.delays is not None:
            if self.delays.matrix is not None:
                tensors["delay"] = self.delays.matrix
            if self.delays.points is not None:
                tensors["coordinates"] = self.delays.points
            site, last_mile = self.delays.site, self.delays.last_mile
            if not np.array_equal(site, np.arange(self.delays.n_sites)) or last_mile.any():
                tensors |= {"site": site.astype(np.int32), "last_mile": last_mile.astype(np.float32)}
        if self.edges is not None:
            tensors |= {"edges": self.edges[0], "edge_ms": self.edges[1]}
        return tensors


def read_on_all_ranks(src: str, kind: str, made_by: str, world: World) -> Bag:
    """The bag of one kind that rank 0, which alone has a stdin, reads from src. Raises Corrupt as open_bag."""
    bag = open_bag(src, kind, made_by=made_by) if world.is_root else Bag({})
    if world.size == 1:
        return bag
    heads = world.broadcast({name: [array.dtype.str, list(array.shape)] for name, array in bag.tensors.items()})
    fields = world.broadcast(bag.fields)
    tensors = {}
    for name, (dtype, shape) in heads.items():
        flat = bag.tensors[name].reshape(-1) if world.is_root else np.empty(0, dtype)
        tensors[name] = world.gather_array(flat).reshape(shape)
    return Bag(tensors, fields)


def read_devices(src: str, world: World) -> tuple[Devices, Bag]:
    """The devices of a `device` bag, and the bag. Raises Corrupt for other artifacts and for numbers that contradict others."""
    bag = read_on_all_ranks(src, "device", "kvtools devices", world)
    with raising(Corrupt, source_name(src), remedy="Make it again with kvtools devices."):
        return _devices(bag.tensors, bag.fields.get("network") or {}), bag


def delays_of(devices: Devices, name: str) -> Delays:
    """The delays between devices. Raises Corrupt, with the bag's name, where they have none."""
    if devices.delays is None:
        raise Corrupt(f"{name}: these devices have no network. Make them with kvtools devices --delay or --graph.")
    return devices.delays


def read_data_of(src: str, bag: Bag, bag_name: str) -> LabelledData:
    """The labelled data that a `device` bag was made of. Raises Corrupt for other data."""
    digest = (bag.fields.get("data") or {}).get("digest")
    if digest is None:
        raise Corrupt(f"{bag_name}: these devices hold no data. Make them with kvtools devices --data.")
    data = read_labelled(src)
    if data.digest != digest:
        raise Corrupt(
            f"{src}: these data have the digest {data.digest[:12]}, and {bag_name} was made of data with {str(digest)[:12]}. "
            "Give the same data, or make the devices again."
        )
    return data


def _devices(tensors: Mapping[str, np.ndarray], network: Mapping[str, Any]) -> Devices:
    labels, index, offsets = tensors["labels"], tensors["index"], tensors["offsets"]
    n_devices = len(labels)
    if not n_devices:
        raise ValueError("it holds no devices")
    if len(offsets) != n_devices + 1 or offsets[0] != 0 or offsets[-1] != len(index) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets: these are not {n_devices + 1} numbers that rise from 0 to {len(index)}")
    if labels.shape[1]:
        partition.checked(index, offsets, len(index))
        if not np.array_equal(labels.sum(axis=1), np.diff(offsets)):
            raise ValueError("labels: a device has another number of labels than of samples")
    edges = (tensors["edges"], tensors["edge_ms"]) if "edges" in tensors else None
    return Devices(labels, index, offsets, _delays(tensors, network.get("metric"), n_devices), edges)


def _delays(tensors: Mapping[str, np.ndarray], metric: Any, n_devices: int) -> Delays | None:
    if metric is None:
        return None
    if metric not in get_args(Metric):
        raise ValueError(f"network: metric {metric!r} is none of {', '.join(get_args(Metric))}")
    site = tensors["site"].astype(np.int64) if "site" in tensors else np.arange(n_devices)
    last_mile = tensors["last_mile"].astype(np.float64) if "last_mile" in tensors else np.zeros(n_devices)
    required = {"matrix": ("delay",), "graph": ("edges", "edge_ms")}.get(metric, ("coordinates",))
    for name in required:
        if name not in tensors:
            raise ValueError(f"{name} is missing, and the metric is {metric}")
    if metric == "graph":
        ends = tensors["edges"]
        if (ends < 0).any():
            raise ValueError("edges: a node has a negative number")
        graph = graph_of(ends, tensors["edge_ms"], int(ends.max(initial=0)) + 1)
        return checked(Delays("graph", site, last_mile, graph=graph))
    if metric == "matrix":
        return checked(Delays("matrix", site, last_mile, matrix=tensors["delay"]))
    return checked(Delays(metric, site, last_mile, points=tensors["coordinates"].astype(np.float64)))
