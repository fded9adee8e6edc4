"""A course of training over a tree: who trains, what is averaged, and what that costs in bytes and in simulated seconds.

Schedule (the authors' simulator, arXiv 2008.01553): in each step every leaf makes r0 passes over its samples, its aggregator
averages what came, and every r_l-th aggregation of level l is followed by one of level l + 1; whoever averaged last pushes
the mean down to all leaves below. A root round is r1 ... r_(L-1) steps. Between steps all members of a group hold the same
weights, so that the models of the groups are all there is to keep.

Means are weighted by samples, or uniform, as the paper has them; a mean of uniform means of unequal groups is not the mean of
all. Sums are float64, in the order of the senders and one update a sender, so that repeated and reordered messages cost bytes
and time and change no bit; at every aggregation the weights are asserted to be those of who was heard and to come to 1.

Costs: how long messages travel, see traffic.py; and two terms of our own: `bandwidth`: a device's link carries one model at
a time; `compute`: local work a sample. A model to oneself is free. Bytes are those of float32 weights. Wide-area bytes are
those of messages between devices of different groups of the tree that was given, whatever the algorithm.

Legend: n devices, G groups (aggregators of level 1), P parameters, m nodes of a level. FedAvg is a tree of one group,
HierFAVG one of two levels whose root is the hub; courses without a tree are in peers.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from kvtools.etree.data.devices import Peers
from kvtools.etree.network.delay import Delays
from kvtools.etree.network.traffic import Paths, Queues
from kvtools.etree.train import secure_aggregation as masks
from kvtools.etree.train.failures import ALL_WELL, Status
from kvtools.etree.train.local import Trainer
from kvtools.etree.tree.regroup import changed, regrouped
from kvtools.etree.tree.tree import Tree

Weights = Literal["samples", "uniform"]


@dataclass(frozen=True)
class Costs:
    """What messages and work take. Zero leaves a term out."""

    bandwidth: float = 0.0  # bits a second of a device's link, each way
    compute: float = 0.0  # seconds a sample and epoch
    deadline: float = 1.0  # seconds after the last of its children should have come that an aggregator waits for the missing
    barrier: Literal["global", "subtree"] = "global"  # who waits for whom: all of a level, or those below one parent


@dataclass
class Spent:
    """What a course has cost so far."""

    steps: int = 0
    epochs: int = 0
    n_bytes: int = 0
    wan_bytes: int = 0
    seconds: float = 0.0


@dataclass
class TreeCourse:
    """A course under way. `models_GP` and `ready_n` are its state; `step` goes on."""

    tree: Tree
    delays: Delays
    trainer: Trainer
    costs: Costs
    weights: Weights
    home_n: np.ndarray  # the group of each device that wide-area bytes are counted by
    peers: Peers
    has_top: bool = True  # without it groups never meet
    quorum: float = 0.0  # share of its children without which an aggregator keeps the model it had
    carried: Literal["drop", "carry"] = "drop"
    regroup: float = 0.0  # share of a group that must live, else who is left joins the groups nearby
    is_masked: bool = False  # aggregators of level 1 see sums alone, see masks.py
    tell: Callable[[str], None] = lambda _: None
    spent: Spent = field(default_factory=Spent)
    traffic: Paths | Queues | None = None  # how long messages take; along shortest paths unless told

    def __post_init__(self) -> None:
        self.traffic = self.traffic or Paths(self.delays)
        tree, n = self.tree, self.tree.n_devices
        start = torch.from_numpy(self.trainer.model.init(self.trainer.seed)).to(self.trainer.place)
        self.models_GP = start.expand(len(tree.nodes(1)), -1).clone()
        self.ready_n = np.zeros(n)
        sizes = np.diff(self.trainer.offsets).astype(np.float64)
        self.weight_n = sizes if self.weights == "samples" else np.ones(n)
        self.work_n = sizes * self.costs.compute * int(tree.ratios[0])
        # public devices work once for each group, and send to and hear from each
        self._n_trained = np.ones(n)
        self._n_trained[tree.public] = len(tree.nodes(1))
        self.model_bytes = 4 * self.trainer.model.n_parameters
        self.send_s = 8 * self.model_bytes / self.costs.bandwidth if self.costs.bandwidth else 0.0
        self.late: dict[int, torch.Tensor] = {}
        self.now = tree  # as it is while groups are given up
        self.root_P = start.cpu().numpy()
        self._mine = _share(np.bincount(tree.group, weights=sizes, minlength=len(self.models_GP)), self.peers)

    @property
    def round_steps(self) -> int:
        """Steps in a root round."""
        return int(np.prod(self.tree.ratios[1:-1], dtype=np.int64))

    def step(self, status: Status = ALL_WELL) -> None:
        """One step: local training, and every aggregation that is due."""
        number = self.spent.steps + 1
        tree, n = self._at_present(status), self.tree.n_devices
        present_n = status.trains(n)
        counts_n = status.counts(n)
        device_T = status.offices(tree)
        values, total_G = self._train(number, present_n, counts_n, status)
        is_done = self._heard(1, np.bincount(tree.group, weights=counts_n, minlength=len(total_G)), total_G)
        done_n = np.where(present_n, self.ready_n + self.work_n * self._n_trained, 0)
        time = self._gather(1, done_n, device_T, counts_n, status)
        self._keep(1, values, is_done, status)
        top = 1
        weight = total_G if self.weights == "samples" else (total_G > 0).astype(np.float64)
        for level in range(1, tree.n_levels if self.has_top else 1):
            if number % int(np.prod(tree.ratios[1 : level + 1], dtype=np.int64)):
                break
            children = tree.nodes(level)
            place = tree.parent[children] - tree.nodes(level + 1)[0]
            counted = weight * (is_done & ~status.is_cut(tree, level))
            values, total = _means(values, place, counted, len(tree.nodes(level + 1)))
            heard = np.bincount(place, weights=counted > 0, minlength=len(total))
            is_done = self._heard(level + 1, heard, total)
            time = self._gather(level + 1, time, device_T, counted > 0, status)
            weight = total if self.weights == "samples" else (total > 0).astype(np.float64)
            top = level + 1
            self._keep(top, values, is_done, status)
        if self.has_top and top == tree.n_levels and is_done[0]:
            self.root_P = values[0].astype(np.float32)
        self._push(top, time, is_done, device_T, status)
        foreign = 2 * self.model_bytes * len(tree.public) * (len(tree.nodes(1)) - 1)
        self.spent.n_bytes += foreign
        self.spent.wan_bytes += foreign
        self.spent.steps = number
        self.spent.epochs += int(tree.ratios[0])
        self.spent.seconds = float(self.ready_n.max())

    def model(self) -> tuple[np.ndarray, np.ndarray]:
        """The models there are, float32 (M, P), and how many samples stand behind each: one after a root round."""
        if self.has_top:
            return self.root_P[None], np.ones(1)
        rows = self._everyones(self.models_GP.double().cpu().numpy())
        return rows.astype(np.float32), np.bincount(self.tree.group, weights=self.weight_n, minlength=len(rows))

    def state(self) -> dict[str, np.ndarray]:
        """All that another course needs to go on from here."""
        models = self._everyones(self.models_GP.double().cpu().numpy()).astype(np.float32)
        ids = self.peers.gather_array(np.array(sorted(self.late), np.int64))
        rows = [self.late[device].cpu().numpy() for device in sorted(self.late)]
        mine = np.stack(rows) if rows else np.empty((0, len(self.root_P)), np.float32)
        late = {"late": ids, "late_rows": self.peers.gather_array(mine)}
        return {"models": models, "ready": self.ready_n, "root": self.root_P, **late}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from such a state."""
        self.models_GP.copy_(torch.from_numpy(state["models"].copy()))
        self.ready_n, self.root_P = state["ready"].copy(), state["root"].copy()
        for device, row in zip(state["late"].tolist(), state["late_rows"], strict=True):
            if self.tree.group[device] in self._mine:
                self.late[device] = torch.from_numpy(row.copy()).to(self.models_GP.device)

    def _at_present(self, status: Status) -> Tree:
        """The tree of this step: groups that too few live in are given up, and what changes is told."""
        before, self.now = self.now, self.tree
        if self.regroup and status.dead_n is not None:
            self.now = regrouped(self.tree, self.delays, status.dead_n, status.offices(self.tree), self.regroup)
        for group in changed(before, self.now).tolist() if self.now is not before else []:
            old, new = (int((tree.group == group).sum()) for tree in (before, self.now))
            self.tell(f"step {self.spent.steps + 1}: group {group}: {old} devices before, {new} now")
        return self.now

    def _train(self, number: int, present_n: np.ndarray, counts_n: np.ndarray, status: Status) -> tuple[np.ndarray, np.ndarray]:
        """Each group's mean after local training, float64 (G, P), and the weight behind it, float64 (G,), on all ranks."""
        tree, n_groups = self.now, len(self.models_GP)
        jobs = np.flatnonzero(present_n & np.isin(tree.group, self._mine))
        group_J = tree.group[jobs]
        # a public device trains from the model of every group, and counts a share of itself in each
        extra = [(device, group) for device in tree.public[present_n[tree.public]].tolist() for group in self._mine.tolist()]
        extra = [(device, group) for device, group in extra if tree.group[device] != group]
        if extra:
            jobs = np.concatenate([jobs, [device for device, _ in extra]])
            group_J = np.concatenate([group_J, [group for _, group in extra]])
        share_n = np.ones(tree.n_devices)
        share_n[tree.public] = 1 / n_groups
        sums = torch.zeros(self.models_GP.shape, dtype=torch.float64, device=self.models_GP.device)
        total_G = np.zeros(n_groups)
        secret: dict[int, np.ndarray] = {}
        for device, row in self.late.items():
            # an update of the step before counts half, beside those of now; not in a group that trains from another model
            if tree.group[device] != self.tree.group[device]:
                continue
            sums[tree.group[device]] += 0.5 * self.weight_n[device] * row.double()
            total_G[tree.group[device]] += 0.5 * self.weight_n[device]
        self.late = {}
        weight_J = self.weight_n[jobs] * counts_n[jobs] * share_n[jobs]
        due_G = total_G + np.bincount(group_J, weights=weight_J, minlength=n_groups)
        for chunk in self.trainer.train(self.models_GP, jobs, group_J, int(tree.ratios[0]), number):
            devices, own = jobs[chunk.jobs], group_J[chunk.jobs]
            weight = weight_J[chunk.jobs]
            rows = chunk.rows.double()
            if self.is_masked:
                self._send_masked(secret, number, devices, own, rows.cpu().numpy(), weight, jobs, group_J)
                continue
            groups, place = np.unique(own, return_inverse=True)
            share = np.zeros((len(groups), len(devices)))
            share[place, np.arange(len(devices))] = weight
            sums[torch.from_numpy(groups).to(sums.device)] += torch.from_numpy(share).to(sums.device) @ rows
            np.add.at(total_G, own, weight)
            if self.carried == "carry" and status.late_n is not None:
                is_late = status.late_n[devices] & (self.tree.group[devices] == own)
                self.late |= {int(devices[i]): chunk.rows[i].clone() for i in np.flatnonzero(is_late)}
        for group, masked_P in secret.items():
            members = jobs[group_J == group]
            here, gone = members[counts_n[members]], members[~counts_n[members]]
            plain, total_G[group] = masks.unmasked(masked_P, here.tolist(), gone.tolist(), self.trainer.seed, number)
            sums[group] = torch.from_numpy(plain).to(sums.device)
        assert np.allclose(total_G, due_G, atol=1e-6), "every update counts once"
        total_G = self.peers.sum_array(total_G)
        means = sums.cpu().numpy() / np.maximum(total_G, 1e-300)[:, None]
        return self._everyones(means), total_G

    def _send_masked(
        self, secret: dict[int, np.ndarray], number: int, devices: np.ndarray, own: np.ndarray, rows: np.ndarray,
        weight: np.ndarray, jobs: np.ndarray, group_J: np.ndarray,
    ) -> None:  # fmt: skip
        """Add what devices send to the sums of their groups, masked: nothing here holds a plain update and its group's sum."""
        for place in np.flatnonzero(weight).tolist():
            device, group = int(devices[place]), int(own[place])
            members = jobs[group_J == group].tolist()
            plain = masks.whole(rows[place], float(weight[place]), len(members))
            sent = masks.masked(plain, device, members, self.trainer.seed, number)
            secret[group] = secret[group] + sent if group in secret else sent

    def _everyones(self, rows_GP: np.ndarray) -> np.ndarray:
        """Rows of which each rank knows its own groups', complete on all."""
        if self.peers.size == 1:
            return rows_GP
        mine = np.zeros_like(rows_GP)
        mine[self._mine] = rows_GP[self._mine]
        return self.peers.sum_array(mine)

    def _heard(self, level: int, heard: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Which aggregators of a level have heard enough of their children."""
        below, nodes = self.now.nodes(level - 1), self.now.nodes(level)
        n_children = np.bincount(self.now.parent[below] - nodes[0], minlength=len(nodes))
        is_enough = (total > 0) & (heard >= np.ceil(self.quorum * n_children - 1e-9))
        for place in np.flatnonzero(~is_enough & (n_children > 0)).tolist():
            self.tell(
                f"step {self.spent.steps + 1}: level {level}: {heard[place]:.0f} of {n_children[place]} heard; the model stays"
            )
        return np.asarray(is_enough)

    def _gather(self, level: int, below_s: np.ndarray, device_T: np.ndarray, is_sent: np.ndarray, status: Status) -> np.ndarray:
        """When the aggregators of a level have all that they get, seconds; counts the bytes."""
        children, nodes = self.now.nodes(level - 1), self.now.nodes(level)
        parent = self.now.parent[children]
        place = parent - nodes[0]
        source, target = device_T[children], device_T[parent]
        is_sent = is_sent.astype(bool) & (target >= 0)
        is_far = is_sent & (source != target)
        arrived = np.where(is_sent, below_s, 0)
        arrived[is_far] += self._travel(source[is_far], target[is_far])
        when = np.zeros(len(nodes))
        np.maximum.at(when, place, arrived)
        # masked updates are of 64 bits a number
        n_models = 2 if self.is_masked and level == 1 else 1
        n_times = n_models * _n_times(source, status)
        when += self.send_s * np.bincount(place, weights=is_far * n_times, minlength=len(nodes))
        self._count(np.repeat(source, is_far * n_times), np.repeat(target, is_far * n_times))
        if status.is_ill:
            # who misses somebody waits; an office that fell just now means that all of its children send once more
            expected = np.zeros(len(nodes))
            np.maximum.at(expected, place, below_s)
            # nobody waits for a group that was given up
            is_there = np.ones(len(children), bool) if level == 1 else np.isin(children, self.now.parent)
            is_missing = np.bincount(place, weights=~is_sent & is_there, minlength=len(nodes)) > 0
            when = np.where(is_missing, np.maximum(when, expected + self.costs.deadline), when)
            fell = np.isin(nodes, status.fallen(self.now, device_T))
            again = is_far & fell[place]
            when[fell] += self.costs.deadline
            self._count(source[again], target[again])
        return np.full(len(nodes), when.max()) if self.costs.barrier == "global" else when

    def _push(self, top: int, time: np.ndarray, is_done: np.ndarray, device_T: np.ndarray, status: Status) -> None:
        """What it takes to bring the means of the level that averaged last down to the leaves."""
        tree = self.now
        source = np.where(is_done, np.arange(len(time)), -1)
        for level in range(top, 0, -1):
            children, first = tree.nodes(level - 1), tree.nodes(level)[0]
            place = tree.parent[children] - first
            a, b = device_T[tree.parent[children]], device_T[children]
            is_reached = (source[place] >= 0) & (a >= 0) & (b >= 0) & ~status.is_cut(tree, level - 1)
            is_far = is_reached & (a != b)
            n_times = is_far * _n_times(a, status)
            arrived = time[place] + self.send_s * np.bincount(place, weights=n_times, minlength=len(time))[place]
            arrived[is_far] += self._travel(a[is_far], b[is_far])
            self._count(np.repeat(a, n_times), np.repeat(b, n_times))
            source, time = np.where(is_reached, source[place], -1), arrived
        self.ready_n = np.full(len(time), time.max()) if self.costs.barrier == "global" else time

    def _keep(self, top: int, values: np.ndarray, is_done: np.ndarray, status: Status) -> None:
        """The means of a level become the models of the groups below; whoever is cut off, or did not hear enough, keeps its
        own. A group that was given up follows the first of those that took its devices in."""
        tree = self.now
        source_G = np.where(is_done, np.arange(len(is_done)), -1)
        for level in range(top, 1, -1):
            children = tree.nodes(level - 1)
            source_G = source_G[tree.parent[children] - tree.nodes(level)[0]]
            source_G = np.where(status.is_cut(tree, level - 1), -1, source_G)
        got = np.flatnonzero(source_G >= 0)
        fresh = torch.from_numpy(values[source_G[got]].astype(np.float32)).to(self.models_GP.device)
        self.models_GP[torch.from_numpy(got).to(self.models_GP.device)] = fresh
        if tree is not self.tree:
            guests = np.flatnonzero(tree.group != self.tree.group)
            left, first = np.unique(self.tree.group[guests], return_index=True)
            self.models_GP[torch.from_numpy(left)] = self.models_GP[torch.from_numpy(tree.group[guests[first]])]

    def _travel(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        assert self.traffic is not None, "set in the beginning"
        return self.traffic.each(source, target) / 1000

    def _count(self, source: np.ndarray, target: np.ndarray) -> None:
        self.spent.n_bytes += self.model_bytes * len(source)
        self.spent.wan_bytes += self.model_bytes * int((self.home_n[source] != self.home_n[target]).sum())


def _n_times(source: np.ndarray, status: Status) -> np.ndarray:
    """How often what each device sends arrives: a message that was repeated in the step before comes once more."""
    return np.asarray(1 + np.isin(source, status.repeated).astype(np.int64) + np.isin(source, status.stale))


def _means(values: np.ndarray, place: np.ndarray, weight: np.ndarray, n_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means of children, float64 (m, P), and their weights' sums, in the order of the children."""
    total = np.bincount(place, weights=weight, minlength=n_nodes)
    share = weight / np.maximum(total, 1e-300)[place]
    is_empty = total == 0
    assert np.allclose(np.bincount(place, weights=share, minlength=n_nodes)[~is_empty], 1), "weights come to 1"
    means = np.zeros((n_nodes, values.shape[1]))
    for child in np.flatnonzero(weight).tolist():
        means[place[child]] += share[child] * values[child]
    return means, total


def _share(load_G: np.ndarray, peers: Peers) -> np.ndarray:
    """This rank's groups: the heaviest first, each to the rank with least to do, ties to the lower rank."""
    loads, mine = np.zeros(peers.size), []
    for group in np.argsort(-load_G, kind="stable").tolist():
        rank = int(loads.argmin())
        loads[rank] += load_G[group]
        if rank == peers.rank:
            mine.append(group)
    return np.array(sorted(mine), np.int64)


def star(tree: Tree, hub: int) -> Tree:
    """FedAvg's tree: one group, whose aggregator is the hub."""
    n = tree.n_devices
    ratios = np.array([tree.ratios[0], 1], np.int32)
    parent = np.array([*[n] * n, -1], np.int32)
    level = np.array([*[0] * n, 1], np.int32)
    device = np.array([*range(n), hub], np.int32)
    order = np.array([*((np.arange(n) - hub) % n), 0], np.int32)
    return Tree(parent, level, device, ratios, order, np.empty(0, np.int32))


def two_levels(tree: Tree, hub: int) -> Tree:
    """HierFAVG's tree: the groups as they are, and above them the hub alone, after as many aggregations as a root round has."""
    n, groups = tree.n_devices, len(tree.nodes(1))
    keep = n + groups
    ratios = np.array([tree.ratios[0], np.prod(tree.ratios[1:-1], dtype=np.int64), 1], np.int32)
    parent = np.concatenate([tree.parent[:n], [keep] * groups, [-1]]).astype(np.int32)
    level = np.concatenate([tree.level[:keep], [2]]).astype(np.int32)
    device = np.concatenate([tree.device[:keep], [hub]]).astype(np.int32)
    order = np.concatenate([tree.order[:n], np.arange(groups), [0]]).astype(np.int32)
    return Tree(parent, level, device, ratios, order, np.empty(0, np.int32))
