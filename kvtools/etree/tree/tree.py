"""A tree over devices: leaves with data, aggregators above them that are devices themselves, one root; to tensors and back.

Legend: n devices, T nodes, L levels of aggregators. Nodes 0 to n-1 are the leaves, device i at node i; aggregators follow,
level by level, the root last. An aggregator is one of the devices below it, so one device may have a node on every level.

`order` is each node's place in the line for its parent's office: 0 holds it, and when its device dies the next in line that
lives takes over, which everybody can tell without talking. `ratios` r0, r1, …, rL: local epochs between two uploads, then how
many aggregations of a level come between two uploads to the next; the last is 1.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kvtools.artifact import Bag, kinds
from kvtools.artifact.digest import Digest
from kvtools.errors import Corrupt, Usage
from kvtools.etree.data import devices as roster
from kvtools.etree.network.delay import Delays
from kvtools.etree.tree.kma import Groups, Peers, cluster

MOST = 1 << 20  # of a ratio, or of aggregators on a level: products of a few are still counts


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
        return int((self.level == 0).sum())

    @property
    def n_levels(self) -> int:
        """Levels of aggregators."""
        return int(self.level.max())

    @property
    def group(self) -> np.ndarray:
        """int64 (n,): the group of each device, from 0."""
        return self.parent[: self.n_devices].astype(np.int64) - self.n_devices

    def with_ratios(self, words: str) -> "Tree":
        """The same tree with other ratios, `R,...,1`. Raises Usage for what are none."""
        given = counts(words, "--ratios")
        if len(given) != len(self.ratios) or given[-1] != 1:
            raise Usage(f"--ratios {words}: {len(self.ratios)} counts, the last of them 1, expected.")
        return replace(self, ratios=np.array(given, np.int32))

    def nodes(self, level: int) -> np.ndarray:
        """The nodes of a level, in order."""
        return np.flatnonzero(self.level == level)

    def tensors(self) -> dict[str, np.ndarray]:
        found = {"parent": self.parent, "level": self.level, "device": self.device, "ratios": self.ratios, "order": self.order}
        return found | ({"public": self.public} if len(self.public) else {})


def counts(words: str, option: str) -> list[int]:
    """What an option of counts says, as `4,1`. Raises Usage for anything else."""
    parts = words.split(",")
    if not all(part.isdecimal() and 0 < int(part) <= MOST for part in parts):
        raise Usage(f"{option} {words}: counts between commas, as 4,1, expected.")
    return [int(part) for part in parts]


def grow(groups: Groups, delays: Delays, above: list[int], ratios: list[int], seed: int, peers: Peers) -> Tree:
    """A tree on groups: their centres clustered by k-medoids into above[0] groups, the centres of these into above[1], and
    so on.

    Source: the simulator, which uses KMA for the lowest level alone.
    """
    n_devices = len(delays)
    parent = [n_devices + groups.group]
    device, level = [np.arange(n_devices)], [np.zeros(n_devices, np.int64)]
    order = [_lines(groups, delays, peers)]
    centre, first = groups.centre, n_devices
    for number, n_above in enumerate(above, start=1):
        between = delays.take(centre)
        some = cluster("k-medoids", between, n_above, seed=seed)
        first += len(centre)
        parent.append(first + some.group)
        device.append(centre)
        level.append(np.full(len(centre), number))
        order.append(_lines(some, between, peers))
        centre = centre[some.centre]
    assert len(centre) == 1, "the last level is one root"
    parent.append(np.array([-1]))
    device.append(centre)
    level.append(np.array([len(above) + 1]))
    order.append(np.array([0]))
    nodes = [np.concatenate(part).astype(np.int32) for part in (parent, level, device)]
    return Tree(
        nodes[0], nodes[1], nodes[2], np.array(ratios, np.int32), np.concatenate(order).astype(np.int32), np.empty(0, np.int32)
    )


def _lines(groups: Groups, delays: Delays, peers: Peers) -> np.ndarray:
    """The place of each device in the line of its group, the centre first. Groups are shared among the peers."""
    found = np.zeros(len(groups.group), np.int64)
    by_group = np.argsort(groups.group, kind="stable")
    ends = np.searchsorted(groups.group[by_group], np.arange(len(groups.centre) + 1))
    for k in range(peers.rank, len(groups.centre), peers.size):
        line = delays.line(by_group[ends[k] : ends[k + 1]])
        # sums added in another order may have put an equal before it
        line = np.concatenate([groups.centre[k : k + 1], line[line != groups.centre[k]]])
        found[line] = np.arange(len(line))
    return peers.sum_array(found)


def read_tree(src: str, peers: roster.Peers) -> tuple[Tree, Bag]:
    """A `tree` bag. Raises Corrupt for other artifacts, and for nodes that make no tree."""
    name = "stdin" if src == "-" else src
    bag = roster.read_bag_of("tree", "kma-cluster", src, peers)
    try:
        kinds.check("tree", "bag", bag.tensors, bag.fields)
        return _tree(bag.tensors), bag
    except ValueError as fault:
        raise Corrupt(f"{name}: {fault}.") from None


def same_fleet(found: roster.Roster, bag: Bag, name: str, tree: Tree, tree_bag: Bag, tree_name: str) -> list[str]:
    """The digests of devices and tree. Raises Corrupt for a tree that was made of others."""
    if found.delays is None or len(found) != tree.n_devices:
        what = f"{len(found)} devices" if found.delays is not None else "devices without a network"
        raise Corrupt(f"{name}: {what} found, the {tree.n_devices} of {tree_name}, with their delays, expected.")
    digests = [str(Digest.of_bag(each.tensors)) for each in (bag, tree_bag)]
    if tree_bag.fields.get("made_of", digests[0]) != digests[0]:
        raise Corrupt(
            f"{name}: other devices than those that {tree_name} was made of. Give that bag, or make a tree of this one."
        )
    return digests


def _tree(tensors: dict[str, Any]) -> Tree:
    parent, level, device = (tensors[name].astype(np.int64) for name in ("parent", "level", "device"))
    n_devices, n_nodes = int((level == 0).sum()), len(level)
    is_root = np.arange(n_nodes) == n_nodes - 1
    if n_nodes < 2 or not n_devices or (np.diff(level) < 0).any() or (np.diff(np.unique(level)) != 1).any() or level[0] != 0:
        raise ValueError("level: leaves first, then level by level expected")
    if not np.array_equal(device[:n_devices], np.arange(n_devices)) or device.min() < 0 or device.max() >= n_devices:
        raise ValueError(f"device: leaves 0 to {n_devices - 1} in order, and aggregators among them, expected")
    if parent[-1] != -1 or (parent[~is_root] < 0).any() or (parent >= n_nodes).any() or (level == level[-1]).sum() != 1:
        raise ValueError("parent: one root, the last node, expected")
    if not np.array_equal(level[parent[~is_root]], level[~is_root] + 1):
        raise ValueError("parent: nodes of the next level expected")
    if len(np.unique(parent[~is_root])) != n_nodes - n_devices:
        raise ValueError("parent: an aggregator without children found, at least one each expected")
    held = set(zip(parent[~is_root].tolist(), device[~is_root].tolist(), strict=True))
    if not all(pair in held for pair in enumerate(device[n_devices:].tolist(), start=n_devices)):
        raise ValueError("device: aggregators that are the device of one of their children expected")
    ratios = tensors["ratios"]
    if len(ratios) != level[-1] + 1 or (ratios < 1).any() or ratios[-1] != 1:
        raise ValueError(f"ratios: {int(level[-1]) + 1} from 1 on, the last of them 1, expected")
    order = tensors.get("order", np.zeros(n_nodes, np.int32))
    public = tensors.get("public", np.empty(0, np.int32))
    if len(order) != n_nodes or (len(public) and (public.min() < 0 or public.max() >= n_devices)):
        raise ValueError("order, public: a place for each node, and devices of the tree, expected")
    return Tree(tensors["parent"], tensors["level"], tensors["device"], ratios, order, public)
