"""A tree over devices: leaves with data, aggregators above them that are devices themselves, one root.

Legend: n devices, T nodes, L levels of aggregators. Nodes 0 to n-1 are the leaves, device i at node i; aggregators follow,
level by level, the root last. An aggregator is one of the devices below it, so one device may have a node on every level.

`order` is each node's position in the succession of its parent: the device at position 0 has the parent's role, and when it
fails the next that works takes the role over, which every device can tell without communication. `ratios` r0, r1, …, rL: local
epochs between two uploads, then aggregations of a level between two uploads to the next; the last is 1.

Not here: files (etree/data/fleet.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from kvtools.etree.network.delay import Delays
from kvtools.etree.tree.kma import Groups, cluster
from kvtools.etree.tree.ranks import Ranks

LARGEST_COUNT = 1 << 20  # of a ratio, or of aggregators on a level: products of a few still fit in 64 bits


@dataclass(frozen=True)
class Tree:
    """Nodes as above; all int32."""

    parent: np.ndarray  # (T,), -1 for the root
    level: np.ndarray  # (T,), leaves 0
    device: np.ndarray  # (T,)
    ratios: np.ndarray  # (L+1,)
    order: np.ndarray  # (T,), 0 for the root
    public: np.ndarray  # devices that train for every group

    @property
    def n_devices(self) -> int:
        """Leaves."""
        return int((self.level == 0).sum())

    @property
    def n_levels(self) -> int:
        """Levels of aggregators."""
        return int(self.level.max())

    @property
    def group(self) -> np.ndarray:
        """The group of each device, numbered from 0, int64 (n,)."""
        return self.parent[: self.n_devices].astype(np.int64) - self.n_devices

    @property
    def round_steps(self) -> int:
        """Steps in a root round: uploads of the leaves between two aggregations of the root."""
        return int(np.prod(self.ratios[1:-1], dtype=np.int64))

    def nodes(self, level: int) -> np.ndarray:
        """The nodes of a level, int64 (m,), in order."""
        return np.flatnonzero(self.level == level)

    def with_ratios(self, ratios: list[int]) -> "Tree":
        """The same tree with other ratios. Raises ValueError where they do not fit its levels."""
        if len(ratios) != len(self.ratios) or ratios[-1] != 1:
            raise ValueError(f"the tree has {len(self.ratios)} ratios, the last of them 1")
        return replace(self, ratios=np.array(ratios, np.int32))

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors of a `tree` bag."""
        tensors = {
            "parent": self.parent, "level": self.level, "device": self.device, "ratios": self.ratios, "order": self.order
        }  # fmt: skip
        return tensors | ({"public": self.public} if len(self.public) else {})


def parse_counts(text: str) -> list[int]:
    """Counts between commas, as `4,1`. Raises ValueError for anything else."""
    parts = text.split(",")
    if not all(part.isdecimal() and 0 < int(part) <= LARGEST_COUNT for part in parts):
        raise ValueError(f"these are not counts from 1 to {LARGEST_COUNT} between commas")
    return [int(part) for part in parts]


def grow(groups: Groups, delays: Delays, above: list[int], ratios: list[int], seed: int, world: Ranks) -> Tree:
    """A tree on groups: their centres clustered by k-medoids into above[0] groups, the centres of these into above[1], …, 1.

    ratios: one more than there are levels of aggregators. Source: the simulator, which uses KMA for the lowest level alone.
    """
    n_devices = len(delays)
    parent = [n_devices + groups.group]
    device, level = [np.arange(n_devices)], [np.zeros(n_devices, np.int64)]
    order = [_succession_order(groups, delays, world)]
    centre, first = groups.centre, n_devices
    for number, n_above in enumerate(above, start=1):
        between = delays.take(centre)
        upper = cluster("k-medoids", between, n_above, seed=seed, world=world)
        first += len(centre)
        parent.append(first + upper.group)
        device.append(centre)
        level.append(np.full(len(centre), number))
        order.append(_succession_order(upper, between, world))
        centre = centre[upper.centre]
    assert len(centre) == 1, "the last level is one root"
    return _tree(
        [*parent, np.array([-1])], [*level, np.array([len(above) + 1])], [*device, centre], ratios, [*order, np.array([0])]
    )


def star(tree: Tree, server: int) -> Tree:
    """FedAvg's tree over the same devices: one group, whose aggregator is the server, a device."""
    n = tree.n_devices
    devices, top = np.arange(n), [np.array([-1])]
    ratios = [int(tree.ratios[0]), 1]
    return _tree(
        [np.full(n, n), *top], [np.zeros(n), np.ones(1)], [devices, np.array([server])], ratios,
        [(devices - server) % n, np.zeros(1)],
    )  # fmt: skip


def two_levels(tree: Tree, server: int) -> Tree:
    """HierFAVG's tree: the same groups, and above them the server alone, which aggregates once a root round of the tree."""
    n, n_groups = tree.n_devices, len(tree.nodes(1))
    n_below = n + n_groups
    return _tree(
        [tree.parent[:n], np.full(n_groups, n_below), np.array([-1])],
        [tree.level[:n_below], np.array([2])],
        [tree.device[:n_below], np.array([server])],
        [int(tree.ratios[0]), tree.round_steps, 1],
        [tree.order[:n], np.arange(n_groups), np.zeros(1)],
    )


def from_tensors(tensors: Mapping[str, np.ndarray]) -> Tree:
    """The tree of a `tree` bag's tensors. Raises ValueError for nodes that do not form a tree."""
    parent, level, device = (tensors[name].astype(np.int64) for name in ("parent", "level", "device"))
    n_devices, n_nodes = int((level == 0).sum()), len(level)
    if n_nodes < 2 or not n_devices or (np.diff(level) < 0).any() or (np.diff(np.unique(level)) != 1).any() or level[0] != 0:
        raise ValueError("level: the nodes are not in the order of their levels, leaves first")
    if not np.array_equal(device[:n_devices], np.arange(n_devices)) or device.min() < 0 or device.max() >= n_devices:
        raise ValueError(f"device: the leaves are not the devices 0 to {n_devices - 1} in order, with aggregators among them")
    below = parent[:-1]
    if parent[-1] != -1 or (below < 0).any() or (parent >= n_nodes).any() or (level == level[-1]).sum() != 1:
        raise ValueError("parent: the last node is not the only root")
    if not np.array_equal(level[below], level[:-1] + 1):
        raise ValueError("parent: a node's parent is not on the next level")
    if len(np.unique(below)) != n_nodes - n_devices:
        raise ValueError("parent: an aggregator has no children")
    children = set(zip(below.tolist(), device[:-1].tolist(), strict=True))
    if not all(pair in children for pair in enumerate(device[n_devices:].tolist(), start=n_devices)):
        raise ValueError("device: an aggregator is not the device of one of its children")
    ratios = tensors["ratios"]
    if len(ratios) != level[-1] + 1 or (ratios < 1).any() or ratios[-1] != 1:
        raise ValueError(f"ratios: {int(level[-1]) + 1} counts from 1 are needed, the last of them 1")
    order = tensors.get("order", np.zeros(n_nodes, np.int32))
    public = tensors.get("public", np.empty(0, np.int32))
    if len(order) != n_nodes or (len(public) and (public.min() < 0 or public.max() >= n_devices)):
        raise ValueError(
            "order, public: order is not one position for each node, or public names devices that the tree does not have"
        )
    return Tree(tensors["parent"], tensors["level"], tensors["device"], ratios, order, public)


def _tree(
    parent: list[np.ndarray], level: list[np.ndarray], device: list[np.ndarray], ratios: list[int], order: list[np.ndarray]
) -> Tree:
    """A tree without public devices, of the nodes of each level."""
    nodes = [np.concatenate(arrays).astype(np.int32) for arrays in (parent, level, device)]
    orders = np.concatenate(order).astype(np.int32)
    return Tree(nodes[0], nodes[1], nodes[2], np.array(ratios, np.int32), orders, np.empty(0, np.int32))


def _succession_order(groups: Groups, delays: Delays, world: Ranks) -> np.ndarray:
    """Each device's position in the succession of its group, int64 (n,), the centre at 0. The ranks share the groups."""
    order = np.zeros(len(groups.group), np.int64)
    by_group = np.argsort(groups.group, kind="stable")
    ends = np.searchsorted(groups.group[by_group], np.arange(len(groups.centre) + 1))
    for k in range(world.rank, len(groups.centre), world.size):
        succession = delays.succession(by_group[ends[k] : ends[k + 1]])
        # sums added in another order may have put an equal device before the centre
        succession = np.concatenate([groups.centre[k : k + 1], succession[succession != groups.centre[k]]])
        order[succession] = np.arange(len(succession))
    return world.sum_array(order)
