"""What training costs: bytes of messages, and simulated seconds until every device has its next model.

How long messages travel comes from the delays, or from etree/network/traffic.py. Two terms are our own: `bandwidth`, since a
device's link carries one model at a time, and `compute`, the local work on a sample. A model sent to oneself is free. Bytes
are those of float32 weights. Wide-area bytes are those of messages between devices of different accounting groups: the groups
of the tree that was given, whatever the algorithm.

Not here: models. The costs of a step follow from the list of its aggregations (`Aggregation`) alone.

Legend: n devices, T nodes of a tree, m nodes of a level, c children of these.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvtools.etree.network.delay import Delays
from kvtools.etree.network.traffic import Queues
from kvtools.etree.train.failures import Status
from kvtools.etree.tree.tree import Tree


@dataclass(frozen=True)
class CostModel:
    """What messages and work take. Zero leaves a term out."""

    bandwidth: float = 0.0  # bits per second of a device's link, each way
    compute: float = 0.0  # seconds per sample and epoch
    deadline: float = 1.0  # seconds that an aggregator waits for missing children, after the last should have come
    barrier: Literal["global", "subtree"] = "global"  # who waits for whom: all of a level, or the children of one parent


@dataclass
class Costs:
    """What a run has cost so far."""

    steps: int = 0
    epochs: int = 0
    n_bytes: int = 0
    wan_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Aggregation:
    """One level's aggregation in a step: whose models arrived in time, and which aggregators have a new mean."""

    level: int
    is_sent: np.ndarray  # bool (c,), for each node of the level below
    is_done: np.ndarray  # bool (m,), for each node of this level


class Meter:
    """Adds up the costs of a run, message by message."""

    def __init__(
        self, model: CostModel, delays: Delays, queues: Queues | None, accounting_group_n: np.ndarray, n_parameters: int
    ) -> None:
        """queues: None where messages take the delay of the shortest path, whatever other messages are on their way.
        accounting_group_n: int (n,), the group of each device that wide-area bytes are counted by."""
        self.model, self.costs = model, Costs()
        self.model_bytes = 4 * n_parameters
        self._travel_ms, self._group_n = queues.travel_ms if queues else delays.elementwise, accounting_group_n

    @property
    def send_s(self) -> float:
        """Seconds that a link takes for one model."""
        return 8 * self.model_bytes / self.model.bandwidth if self.model.bandwidth else 0.0

    def count(self, source: np.ndarray, target: np.ndarray) -> None:
        """Count the bytes of one model from source[i] to target[i] each, device numbers (m,)."""
        self.costs.n_bytes += self.model_bytes * len(source)
        self.costs.wan_bytes += self.model_bytes * int((self._group_n[source] != self._group_n[target]).sum())

    def travel_s(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """How long models take from source[i] to target[i] that set out together, float64 (m,), seconds."""
        return self._travel_ms(source, target) / 1000

    def upload(
        self, tree: Tree, aggregation: Aggregation, ready_s: np.ndarray, status: Status, device_T: np.ndarray,
        *, is_masked: bool,
    ) -> np.ndarray:  # fmt: skip
        """When the aggregators of a level have all models that they get, float64 (m,), seconds; counts the bytes.

        ready_s: when each child sends, (c,). device_T: the device in each node's role. is_masked: updates take 64 bits a
        number.
        """
        children, nodes = tree.nodes(aggregation.level - 1), tree.nodes(aggregation.level)
        index = tree.parent[children] - nodes[0]
        source, target = device_T[children], device_T[tree.parent[children]]
        is_sent = aggregation.is_sent & (target >= 0)
        is_remote = is_sent & (source != target)
        arrived = np.where(is_sent, ready_s, 0)
        arrived[is_remote] += self.travel_s(source[is_remote], target[is_remote])
        complete = np.zeros(len(nodes))
        np.maximum.at(complete, index, arrived)
        n_copies = is_remote * (2 if is_masked else 1) * _n_copies(source, status)
        complete += self.send_s * np.bincount(index, weights=n_copies, minlength=len(nodes))
        self.count(np.repeat(source, n_copies), np.repeat(target, n_copies))
        if status.is_degraded:
            # an aggregator waits for missing children, but not for groups that were dissolved
            expected = np.zeros(len(nodes))
            np.maximum.at(expected, index, ready_s)
            is_expected = np.ones(len(children), bool) if aggregation.level == 1 else np.isin(children, tree.parent)
            is_incomplete = np.bincount(index, weights=~is_sent & is_expected, minlength=len(nodes)) > 0
            complete = np.where(is_incomplete, np.maximum(complete, expected + self.model.deadline), complete)
            # where the role passed to another device in this step, all children send again
            is_replaced = np.isin(nodes, status.replaced(tree, device_T))
            is_again = is_remote & is_replaced[index]
            complete[is_replaced] += self.model.deadline
            self.count(source[is_again], target[is_again])
        return self._barrier(complete)

    def download(
        self, tree: Tree, top: Aggregation, ready_s: np.ndarray, status: Status, device_T: np.ndarray
    ) -> np.ndarray:  # fmt: skip
        """When the leaves have the means of the last aggregation, float64 (n,), seconds; counts the bytes.

        ready_s: when each of its aggregators sends, (m,).
        """
        is_reached, time = top.is_done, ready_s
        for level in range(top.level, 0, -1):
            children = tree.nodes(level - 1)
            index = tree.parent[children] - tree.nodes(level)[0]
            source, target = device_T[tree.parent[children]], device_T[children]
            is_reached = is_reached[index] & (source >= 0) & (target >= 0) & ~status.is_cut(tree, level - 1)
            is_remote = is_reached & (source != target)
            n_copies = is_remote * _n_copies(source, status)
            arrived = time[index] + self.send_s * np.bincount(index, weights=n_copies, minlength=len(time))[index]
            arrived[is_remote] += self.travel_s(source[is_remote], target[is_remote])
            self.count(np.repeat(source, n_copies), np.repeat(target, n_copies))
            time = arrived
        return self._barrier(time)

    def _barrier(self, time: np.ndarray) -> np.ndarray:
        return np.full(len(time), time.max()) if self.model.barrier == "global" else time


def _n_copies(source: np.ndarray, status: Status) -> np.ndarray:
    """How often what each device sends arrives: a message that was repeated in the step before arrives once more."""
    return np.asarray(1 + np.isin(source, status.repeated).astype(np.int64) + np.isin(source, status.stale))
