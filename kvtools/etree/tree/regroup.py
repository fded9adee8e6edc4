"""Groups that too few live in are given up while that lasts: whoever is left in one joins the nearest group that goes on.

Only the groups concerned change: those given up, and those that take somebody in. Everybody else keeps group, aggregator and
place in line. What comes out depends on the tree and on who is dead now, not on what was before, so that a device that is back
finds its group again as soon as enough of it lives, and a run can be replayed to the bit.

`joined` is for good: devices that a tree has not yet join it, and again only the groups that they join change.

Not here: KMA anew.
Legend: n devices, G groups, T nodes.
"""

from dataclasses import replace

import numpy as np

from kvtools.etree.network.delay import Delays
from kvtools.etree.tree.balanced import bounds
from kvtools.etree.tree.kma import cluster
from kvtools.etree.tree.tree import Tree


def regrouped(tree: Tree, delays: Delays, dead_n: np.ndarray, office_T: np.ndarray, share: float) -> Tree:
    """The tree in which nobody is left in a group of which less than `share` lives. office_T: the device at each node, -1 where
    none lives. The same object where nothing changes, or where no group would be left."""
    n, group = tree.n_devices, tree.group
    n_members = np.bincount(group, minlength=len(tree.nodes(1)))
    n_living = np.bincount(group[~dead_n], minlength=len(n_members))
    is_given_up = n_living < np.ceil(share * n_members - 1e-9)
    going_on = np.flatnonzero(~is_given_up & (n_living > 0))
    orphans = np.flatnonzero(~dead_n & is_given_up[group])
    if not len(orphans) or not len(going_on):
        return tree
    parent, order = tree.parent.copy(), tree.order.copy()
    parent[orphans] = n + going_on[delays.nearest(office_T[n + going_on], orphans)]
    order[orphans] += order[:n].max() + 1  # guests stand in line behind those at home
    assert np.array_equal(
        np.bincount(parent[:n][~dead_n] - n, minlength=len(n_members))[is_given_up], np.zeros(is_given_up.sum())
    )
    return replace(tree, parent=parent, order=order)


def joined(tree: Tree, delays: Delays, slack: float, seed: int) -> Tree:
    """The tree of all devices that `delays` knows, of which it has the first.

    Each new one joins the group whose aggregator is nearest. A group that they make larger than (1 + slack) n / K is split by
    k-medoids among its own. Who is the middle of a group, and the line for it, is found anew in these groups alone; above
    them an aggregator changes only where the device that it was is none any more. Raises ValueError for fewer devices.
    """
    n_old, n = tree.n_devices, len(delays)
    if n < n_old:
        raise ValueError(f"{n} devices found, at least the {n_old} of the tree expected")
    centre = tree.device[tree.nodes(1)].astype(np.int64)
    host = np.arange(len(centre))  # the group whose parent a group has
    group = np.concatenate([tree.group, delays.nearest(centre, np.arange(n_old, n))])
    order_n = np.concatenate([tree.order[:n_old], np.zeros(n - n_old, np.int32)])
    touched = np.unique(group[n_old:]).tolist()
    most = bounds(n, len(centre), slack)[1]
    for k in list(touched):
        members = np.flatnonzero(group == k)
        n_parts = -(-len(members) // most)
        if n_parts > 1:
            some = cluster("k-medoids", delays.take(members), n_parts, seed=seed).group
            is_home = some == some[members == centre[k]][0]
            number = np.cumsum(~np.isin(np.arange(n_parts), some[is_home])) - 1 + len(host)
            group[members[~is_home]] = number[some[~is_home]]
            touched += range(len(host), len(host) + n_parts - 1)
            host = np.concatenate([host, [k] * (n_parts - 1)])
    before = centre
    centre = np.concatenate([centre, np.zeros(len(host) - len(centre), np.int64)])
    for k in touched:
        line = delays.line(np.flatnonzero(group == k))
        centre[k], order_n[line] = line[0], np.arange(len(line))
    # nodes of level 1 come after the leaves, those that were split off last; everything above moves along
    shift, n_groups = n - n_old + len(host) - len(before), len(before)
    above = tree.nodes(1)[-1] + 1
    parent_G = tree.parent[tree.nodes(1)][host] + shift
    parent = np.concatenate([n + group, parent_G, tree.parent[above:] + shift])
    parent[-1] = -1
    device = np.concatenate([np.arange(n), centre, tree.device[above:]])
    level = np.concatenate([np.zeros(n), np.ones(len(host)), tree.level[above:]])
    order_G = np.concatenate([tree.order[tree.nodes(1)], n_groups + np.arange(len(host) - n_groups)])
    order = np.concatenate([order_n, order_G, tree.order[above:]])
    heirs = {int(old): int(new) for old, new in zip(before, centre, strict=False)}
    for node in range(n + len(host), len(parent)):
        children = np.flatnonzero(parent == node)
        if not (device[children] == device[node]).any():
            device[node] = heirs[int(device[node])]
    nodes = [array.astype(np.int32) for array in (parent, level, device)]
    return Tree(nodes[0], nodes[1], nodes[2], tree.ratios, order.astype(np.int32), tree.public)


def changed(before: Tree, after: Tree) -> np.ndarray:
    """int64: the groups whose members differ."""
    n = before.n_devices
    moved = np.flatnonzero(before.parent[:n] != after.parent[:n])
    return np.unique(np.concatenate([before.group[moved], after.group[moved]]))
