"""Groups in which too few devices work are dissolved for as long; devices that join a tree later.

`regrouped`: the devices left in a dissolved group join the nearest group that continues. Only the groups concerned change: the
dissolved ones and those that take devices in. All other devices keep group, aggregator and succession. The result depends on
the tree and on who has failed now, not on earlier steps: a device that is back finds its group again as soon as enough of it
works, and a run can be repeated to the bit.

`joined`: devices that a tree does not have yet join it for good, and again only the groups that they join change.

Not here: KMA anew. Legend: n devices, G groups, T nodes.
"""

from dataclasses import replace

import numpy as np

from kvtools.etree.network.delay import Delays
from kvtools.etree.tree.balanced import bounds
from kvtools.etree.tree.kma import cluster
from kvtools.etree.tree.ranks import Ranks
from kvtools.etree.tree.tree import Tree


def regrouped(tree: Tree, delays: Delays, failed_n: np.ndarray, device_T: np.ndarray, fraction: float) -> Tree:
    """The tree without groups of which less than `fraction` works: their working devices are in the nearest other group.

    failed_n: bool (n,). device_T: int (T,), the device in the role of each node, -1 where none works. Returns the same object
    where nothing changes, and where no group would be left.
    """
    n, group = tree.n_devices, tree.group
    n_members = np.bincount(group, minlength=len(tree.nodes(1)))
    n_working = np.bincount(group[~failed_n], minlength=len(n_members))
    is_dissolved = n_working < np.ceil(fraction * n_members - 1e-9)
    continuing = np.flatnonzero(~is_dissolved & (n_working > 0))
    guests = np.flatnonzero(~failed_n & is_dissolved[group])
    if not len(guests) or not len(continuing):
        return tree
    parent, order = tree.parent.copy(), tree.order.copy()
    parent[guests] = n + continuing[delays.nearest(device_T[n + continuing], guests)]
    order[guests] += order[:n].max() + 1  # guests come after the group's own devices in the succession
    assert not np.isin(parent[:n][~failed_n] - n, np.flatnonzero(is_dissolved)).any(), "dissolved groups are empty"
    return replace(tree, parent=parent, order=order)


def changed_groups(before: Tree, after: Tree) -> np.ndarray:
    """The groups whose members differ between two trees over the same devices and groups, int64 (m,), sorted."""
    n = before.n_devices
    moved = np.flatnonzero(before.parent[:n] != after.parent[:n])
    return np.unique(np.concatenate([before.group[moved], after.group[moved]]))


def joined(tree: Tree, delays: Delays, slack: float, seed: int, world: Ranks) -> Tree:
    """The tree over all devices of `delays`, of which it has the first n; the others join it.

    Each new device joins the group whose aggregator is nearest. A group that becomes larger than (1 + slack) n / K is split by
    k-medoids. Centre and succession are computed anew in these groups alone. Above them an aggregator changes only where its
    device is no aggregator of its child any more. Raises ValueError where `delays` has fewer devices than the tree.
    """
    n_old, n = tree.n_devices, len(delays)
    if n < n_old:
        raise ValueError(f"there are {n} devices, and the tree has {n_old}, which must come first")
    centre = tree.device[tree.nodes(1)].astype(np.int64)
    group = np.concatenate([tree.group, delays.nearest(centre, np.arange(n_old, n))])
    touched = np.unique(group[n_old:]).tolist()
    origin = np.arange(len(centre))  # the group of the old tree that each group is, or was split from
    largest = bounds(n, len(centre), slack)[1]
    for k in list(touched):
        n_groups = len(origin)
        n_parts = _split(group, k, int(centre[k]), largest, n_groups, delays, seed, world)
        touched += range(n_groups, n_groups + n_parts - 1)
        origin = np.concatenate([origin, np.full(n_parts - 1, k)])
    new_centre = np.concatenate([centre, np.zeros(len(origin) - len(centre), np.int64)])
    order_n = np.concatenate([tree.order[:n_old], np.zeros(n - n_old, np.int32)])
    for k in touched:
        succession = delays.succession(np.flatnonzero(group == k))
        new_centre[k], order_n[succession] = succession[0], np.arange(len(succession))
    return _with_groups(tree, group, origin, new_centre, order_n)


def _split(group: np.ndarray, k: int, centre: int, largest: int, n_groups: int, delays: Delays, seed: int, world: Ranks) -> int:
    """Split group k, in place, into parts of about `largest` devices, and return how many parts there are.

    The part of the centre keeps the number k; the others are numbered from n_groups.
    """
    members = np.flatnonzero(group == k)
    n_parts = -(-len(members) // largest)
    if n_parts > 1:
        part = cluster("k-medoids", delays.take(members), n_parts, seed=seed, world=world).group
        centre_part = part[members == centre][0]
        number = np.cumsum(np.arange(n_parts) != centre_part) - 1 + n_groups
        group[members[part != centre_part]] = number[part[part != centre_part]]
    return n_parts


def _with_groups(tree: Tree, group: np.ndarray, origin: np.ndarray, centre: np.ndarray, order_n: np.ndarray) -> Tree:
    """The tree with other groups: leaves first, then the groups, then all higher nodes as they were, renumbered.

    group, order_n: (n,). origin: for each new group the old group whose parent it has. centre: the device of each new group.
    """
    n, old_nodes = len(group), tree.nodes(1)
    above = old_nodes[-1] + 1
    shift = n - tree.n_devices + len(origin) - len(old_nodes)
    parent = np.concatenate([n + group, tree.parent[old_nodes][origin] + shift, tree.parent[above:] + shift])
    parent[-1] = -1
    device = np.concatenate([np.arange(n), centre, tree.device[above:]])
    level = np.concatenate([np.zeros(n), np.ones(len(origin)), tree.level[above:]])
    order_G = np.concatenate([tree.order[old_nodes], np.arange(len(old_nodes), len(origin))])
    order = np.concatenate([order_n, order_G, tree.order[above:]])
    successor = {int(old): int(new) for old, new in zip(tree.device[old_nodes], centre, strict=False)}
    for node in range(n + len(origin), len(parent)):
        if not (device[parent == node] == device[node]).any():
            device[node] = successor[int(device[node])]
    nodes = [array.astype(np.int32) for array in (parent, level, device)]
    return Tree(nodes[0], nodes[1], nodes[2], tree.ratios, order.astype(np.int32), tree.public)
