"""Training over a tree, step by step: who trains, what is averaged, and what that costs.

Schedule (the authors' simulator, arXiv 2008.01553): in each step every leaf makes r0 passes over its samples, its aggregator
averages what arrived, and every r_l-th aggregation of level l is followed by one of level l + 1. The level that averaged last
sends the mean down to all leaves below. A root round is r1 ... r_(L-1) steps. Between steps all members of a group hold the
same weights, so the models of the groups are the only state.

Means are weighted by samples, or uniform as the paper has them; a mean of uniform means of unequal groups is not the mean of
all. Sums are float64, in the order of the senders and one update a sender, so that repeated and reordered messages change no
bit. At every aggregation the weights are asserted to be those of the updates that arrived, and to come to 1.

A step makes two passes over one list of aggregations: the first computes models, the second costs (costs.py).

Legend: n devices, G groups (aggregators of level 1), P parameters, m nodes of a level, J jobs (a device that trains from the
model of a group), B jobs of a chunk. FedAvg is a tree of one group, HierFAVG one of two levels whose root is the server.
Algorithms without a tree are in decentralised.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from kvtools.etree.network.delay import Delays
from kvtools.etree.network.traffic import Queues
from kvtools.etree.train.costs import Aggregation, CostModel, Costs, Meter
from kvtools.etree.train.failures import HEALTHY, Status
from kvtools.etree.train.local import LocalTrainer
from kvtools.etree.train.secure_aggregation import SecureSums
from kvtools.etree.tree.ranks import Ranks
from kvtools.etree.tree.regroup import changed_groups, regrouped
from kvtools.etree.tree.tree import Tree

Weights = Literal["samples", "uniform"]


@dataclass
class TreeSimulation:
    """Training over a tree, under way. `models_GP`, `ready_n`, `root_P` and `late` are its state; `step` continues it."""

    tree: Tree
    delays: Delays
    trainer: LocalTrainer
    cost_model: CostModel
    weights: Weights
    accounting_group_n: np.ndarray  # int (n,), the group of each device that wide-area bytes are counted by
    world: Ranks
    has_root: bool = True  # without it groups never meet
    quorum: float = 0.0  # fraction of its children without which an aggregator keeps the model it had
    late_updates: Literal["drop", "carry"] = "drop"
    regroup: float = 0.0  # fraction of a group that must work, else the group is dissolved
    is_secure: bool = False  # aggregators of level 1 see masked sums alone
    log: Callable[[str], None] = lambda _: None
    queues: Queues | None = None  # None: messages take the delay of the shortest path

    def __post_init__(self) -> None:
        tree, n = self.tree, self.tree.n_devices
        start = torch.from_numpy(self.trainer.model.init(self.trainer.seed)).to(self.trainer.torch_device)
        self.models_GP = start.expand(len(tree.nodes(1)), -1).clone()  # float32
        self.root_P = start.cpu().numpy()
        self.ready_n = np.zeros(n)  # when each device has its next model, seconds
        self.late: dict[int, torch.Tensor] = {}  # updates of the step before, by device
        sizes = np.diff(self.trainer.offsets).astype(np.float64)
        self.weight_n = sizes if self.weights == "samples" else np.ones(n)
        # public devices work once for each group
        n_models = np.ones(n)
        n_models[tree.public] = len(tree.nodes(1))
        self._work_n = sizes * self.cost_model.compute * int(tree.ratios[0]) * n_models
        n_parameters = self.trainer.model.n_parameters
        self.meter = Meter(self.cost_model, self.delays, self.queues, self.accounting_group_n, n_parameters)
        self.current = tree  # the tree of this step, in which groups may be dissolved
        self._own_groups = _own_groups(np.bincount(tree.group, weights=sizes, minlength=len(self.models_GP)), self.world)

    @property
    def costs(self) -> Costs:
        """What the run has cost so far."""
        return self.meter.costs

    @property
    def round_steps(self) -> int:
        """Steps in a root round."""
        return self.tree.round_steps

    def step(self, status: Status = HEALTHY) -> None:
        """One step: local training, every aggregation that is due, and the costs of both. Raises ValueError as SecureSums."""
        self._regroup(status)
        aggregations = self._aggregate(self.costs.steps + 1, status)
        self._count(aggregations, status)

    def model(self) -> tuple[np.ndarray, np.ndarray]:
        """The models there are, float32 (M, P), and the weight of each, float64 (M,): the root's alone, or every group's."""
        if self.has_root:
            return self.root_P[None], np.ones(1)
        rows = self._on_all_ranks(self.models_GP.double().cpu().numpy())
        return rows.astype(np.float32), np.bincount(self.tree.group, weights=self.weight_n, minlength=len(rows))

    def state(self) -> dict[str, np.ndarray]:
        """All that another simulation needs to continue from here. A collective: every rank must call it."""
        models = self._on_all_ranks(self.models_GP.double().cpu().numpy()).astype(np.float32)
        devices = self.world.gather_array(np.array(sorted(self.late), np.int64))
        own_rows = [self.late[device].cpu().numpy() for device in sorted(self.late)]
        rows = self.world.gather_array(np.stack(own_rows) if own_rows else np.empty((0, len(self.root_P)), np.float32))
        return {"models": models, "ready": self.ready_n, "root": self.root_P, "late": devices, "late_rows": rows}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from such a state."""
        self.models_GP.copy_(torch.from_numpy(state["models"].copy()))
        self.ready_n, self.root_P = state["ready"].copy(), state["root"].copy()
        for device, row in zip(state["late"].tolist(), state["late_rows"], strict=True):
            if self.tree.group[device] in self._own_groups:
                self.late[device] = torch.from_numpy(row.copy()).to(self.models_GP.device)

    def _regroup(self, status: Status) -> None:
        """Set the tree of this step, in which groups with too few working devices are dissolved; log what changes."""
        before, self.current = self.current, self.tree
        if self.regroup and status.failed_n is not None:
            devices = status.role_devices(self.tree)
            self.current = regrouped(self.tree, self.delays, status.failed_n, devices, self.regroup)
        for group in changed_groups(before, self.current).tolist() if self.current is not before else []:
            old, new = (int((tree.group == group).sum()) for tree in (before, self.current))
            self.log(f"step {self.costs.steps + 1}: group {group}: {old} devices before, {new} now")

    def _aggregate(self, number: int, status: Status) -> list[Aggregation]:
        """Train, and average on every level that is due; the aggregations, from level 1 up."""
        tree = self.current
        is_sent = status.counts(tree.n_devices)
        means, weight = self._local_means(number, is_sent, status)
        aggregations = [self._aggregation(1, is_sent, weight)]
        self._keep(1, means, aggregations[-1], status)
        for level in range(2, tree.n_levels + 1 if self.has_root else 2):
            if number % int(np.prod(tree.ratios[1:level], dtype=np.int64)):
                break
            weight = weight if self.weights == "samples" else (weight > 0).astype(np.float64)
            weight = weight * (aggregations[-1].is_done & ~status.is_cut(tree, level - 1))
            is_sent = weight > 0
            nodes = tree.nodes(level)
            means, weight = _means(means, tree.parent[tree.nodes(level - 1)] - nodes[0], weight, len(nodes))
            aggregations.append(self._aggregation(level, is_sent, weight))
            self._keep(level, means, aggregations[-1], status)
        if self.has_root and len(aggregations) == tree.n_levels and aggregations[-1].is_done[0]:
            self.root_P = means[0].astype(np.float32)
        return aggregations

    def _count(self, aggregations: list[Aggregation], status: Status) -> None:
        """Add the costs of a step with these aggregations."""
        tree, meter, costs = self.current, self.meter, self.meter.costs
        device_T = status.role_devices(tree)
        ready = np.where(status.trains(tree.n_devices), self.ready_n + self._work_n, 0)
        for aggregation in aggregations:
            is_masked = self.is_secure and aggregation.level == 1
            ready = meter.upload(tree, aggregation, ready, status, device_T, is_masked=is_masked)
        self.ready_n = meter.download(tree, aggregations[-1], ready, status, device_T)
        # public devices send to and hear from the aggregators of all other groups
        n_bytes = 2 * meter.model_bytes * len(tree.public) * (len(tree.nodes(1)) - 1)
        costs.n_bytes += n_bytes
        costs.wan_bytes += n_bytes
        costs.steps += 1
        costs.epochs += int(tree.ratios[0])
        costs.seconds = float(self.ready_n.max())

    def _local_means(self, number: int, is_sent: np.ndarray, status: Status) -> tuple[np.ndarray, np.ndarray]:
        """Each group's mean after local training, float64 (G, P), and its weight, float64 (G,), the same on all ranks.

        is_sent: bool (n,), whose updates arrive in time.
        """
        jobs, group_J, fraction_J = self._jobs(status.trains(self.tree.n_devices))
        # an update that arrives too late has weight 0 in this step: it is dropped, or carried over by _add_late
        weight_J = self.weight_n[jobs] * is_sent[jobs] * fraction_J
        sums = _GroupSums(self.models_GP)
        self._add_late(sums)
        expected_G = sums.weight_G + np.bincount(group_J, weights=weight_J, minlength=len(self.models_GP))
        members = {group: jobs[group_J == group] for group in np.unique(group_J).tolist()} if self.is_secure else {}
        secure = SecureSums(members, self.trainer.seed, number)
        for chunk in self.trainer.train(self.models_GP, jobs, group_J, int(self.current.ratios[0]), number):
            devices, groups, weight = jobs[chunk.jobs], group_J[chunk.jobs], weight_J[chunk.jobs]
            if self.is_secure:
                rows = chunk.rows.double().cpu().numpy()
                for i in np.flatnonzero(weight).tolist():
                    secure.add(int(devices[i]), int(groups[i]), rows[i], float(weight[i]))
                continue
            sums.add(chunk.rows.double(), groups, weight)
            if self.late_updates == "carry" and status.late_n is not None:
                is_late = status.late_n[devices] & (self.tree.group[devices] == groups)
                self.late |= {int(devices[i]): chunk.rows[i].clone() for i in np.flatnonzero(is_late)}
        for group, sum_P, weight in secure.totals():
            sums.set(group, sum_P, weight)
        assert np.allclose(sums.weight_G, expected_G, atol=1e-6), "every update counts once"
        weight_G = self.world.sum_array(sums.weight_G)
        means_GP = sums.sum_GP.cpu().numpy() / np.maximum(weight_G, 1e-300)[:, None]
        return self._on_all_ranks(means_GP), weight_G

    def _jobs(self, is_training: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """This rank's jobs: device, group whose model it trains, and the fraction of its weight that counts there, (J,)
        each."""
        tree, groups = self.current, self._own_groups.tolist()
        jobs = np.flatnonzero(is_training & np.isin(tree.group, self._own_groups))
        group_J = tree.group[jobs]
        # a public device trains the model of every group, and counts in each by an equal fraction
        public = tree.public[is_training[tree.public]].tolist()
        extra = [(device, group) for device in public for group in groups if tree.group[device] != group]
        if extra:
            jobs = np.concatenate([jobs, [device for device, _ in extra]])
            group_J = np.concatenate([group_J, [group for _, group in extra]])
        fraction_n = np.ones(tree.n_devices)
        fraction_n[tree.public] = 1 / len(self.models_GP)
        return jobs, group_J, fraction_n[jobs]

    def _add_late(self, sums: "_GroupSums") -> None:
        """Add the updates of the step before at half their weight, but not in a group that trains from another model now."""
        for device, row_P in self.late.items():
            group = self.current.group[device]
            if group == self.tree.group[device]:
                sums.add(row_P.double()[None], group[None], 0.5 * self.weight_n[[device]])
        self.late = {}

    def _on_all_ranks(self, rows_GP: np.ndarray) -> np.ndarray:
        """Rows of which each rank knows those of its own groups, complete on all ranks."""
        if self.world.size == 1:
            return rows_GP
        own = np.zeros_like(rows_GP)
        own[self._own_groups] = rows_GP[self._own_groups]
        return self.world.sum_array(own)

    def _aggregation(self, level: int, is_sent: np.ndarray, weight: np.ndarray) -> Aggregation:
        """Which aggregators of a level have a new mean: those that a quorum of their children, and any weight, arrived at."""
        below, nodes = self.current.nodes(level - 1), self.current.nodes(level)
        index = self.current.parent[below] - nodes[0]
        n_children, n_arrived = np.bincount(index, minlength=len(nodes)), np.bincount(index[is_sent], minlength=len(nodes))
        is_done = (weight > 0) & (n_arrived >= np.ceil(self.quorum * n_children - 1e-9))
        for i in np.flatnonzero(~is_done & (n_children > 0)).tolist():
            where = f"step {self.costs.steps + 1}: level {level}"
            self.log(f"{where}: {n_arrived[i]} of {n_children[i]} updates arrived; the model stays")
        return Aggregation(level, is_sent, is_done)

    def _keep(self, level: int, means: np.ndarray, aggregation: Aggregation, status: Status) -> None:
        """Make the means of a level the models of the groups below. A group that is cut off, or whose aggregator has no new
        mean, keeps its model. A dissolved group takes the model of the first group that took its devices in."""
        tree = self.current
        source_G = np.where(aggregation.is_done, np.arange(len(means)), -1)
        for below in range(level - 1, 0, -1):
            source_G = source_G[tree.parent[tree.nodes(below)] - tree.nodes(below + 1)[0]]
            source_G = np.where(status.is_cut(tree, below), -1, source_G)
        groups = np.flatnonzero(source_G >= 0)
        rows = torch.from_numpy(means[source_G[groups]].astype(np.float32)).to(self.models_GP.device)
        self.models_GP[torch.from_numpy(groups).to(self.models_GP.device)] = rows
        if tree is not self.tree:
            guests = np.flatnonzero(tree.group != self.tree.group)
            dissolved, first = np.unique(self.tree.group[guests], return_index=True)
            self.models_GP[torch.from_numpy(dissolved)] = self.models_GP[torch.from_numpy(tree.group[guests[first]])]


class _GroupSums:
    """Sums of updates times weights, float64 (G, P), and of weights, float64 (G,), by group."""

    def __init__(self, models_GP: torch.Tensor) -> None:
        self.sum_GP = torch.zeros_like(models_GP, dtype=torch.float64)
        self.weight_G = np.zeros(len(models_GP))

    def add(self, rows_BP: torch.Tensor, group_B: np.ndarray, weight_B: np.ndarray) -> None:
        """Add updates, float64, to their groups."""
        groups, index = np.unique(group_B, return_inverse=True)
        weight = np.zeros((len(groups), len(group_B)))
        weight[index, np.arange(len(group_B))] = weight_B
        self.sum_GP[torch.from_numpy(groups).to(self.sum_GP.device)] += (
            torch.from_numpy(weight).to(self.sum_GP.device) @ rows_BP
        )
        np.add.at(self.weight_G, group_B, weight_B)

    def set(self, group: int, sum_P: np.ndarray, weight: float) -> None:
        """Take a group's sum from elsewhere."""
        self.sum_GP[group] = torch.from_numpy(sum_P).to(self.sum_GP.device)
        self.weight_G[group] = weight


def _means(rows_cP: np.ndarray, parent_c: np.ndarray, weight_c: np.ndarray, n_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means of children by parent, float64 (m, P), and the sums of their weights, (m,), in the children's order."""
    total = np.bincount(parent_c, weights=weight_c, minlength=n_nodes)
    fraction_c = weight_c / np.maximum(total, 1e-300)[parent_c]
    check = np.bincount(parent_c, weights=fraction_c, minlength=n_nodes)
    assert np.allclose(check[total > 0], 1), "weights come to 1"
    means = np.zeros((n_nodes, rows_cP.shape[1]))
    for child in np.flatnonzero(weight_c).tolist():
        means[parent_c[child]] += fraction_c[child] * rows_cP[child]
    return means, total


def _own_groups(load_G: np.ndarray, world: Ranks) -> np.ndarray:
    """This rank's groups, int64, sorted: the heaviest first, each to the rank with the least load, ties to the lower rank."""
    loads, own = np.zeros(world.size), []
    for group in np.argsort(-load_G, kind="stable").tolist():
        rank = int(loads.argmin())
        loads[rank] += load_G[group]
        if rank == world.rank:
            own.append(group)
    return np.array(sorted(own), np.int64)
