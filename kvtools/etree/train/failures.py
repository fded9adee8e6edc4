"""Which devices fail, when, and which take their roles over: a script of failures, and what each step sees of it.

`leaf:10%@5`: a tenth of the devices that are no aggregators fail in step 5. `leaf:3@5-8`: three of them, which are back in step
9. `aggregator:1@8`: one aggregator of level 1 fails; `aggregator:2@8` one of level 2, and so on. `root@12`: the device at the
root fails. `late:10%@5`: updates of a tenth come after the deadline. `partition@15-18`: half of the root's children cannot
reach it. `join:3@4`: three devices are there from step 4 on. `repeat:10%@5`: messages arrive twice, and once more in the next
step. `reorder@5-8`: messages arrive in any order. The devices are drawn by the seed and the event's position in the script
alone, so that a run can be repeated to the bit.

A device that fails in a step has trained, but its update is lost. Failed devices neither train nor aggregate. Their role passes
to the next device in the tree's succession that works, which every device can tell without communication; the children that had
sent to the failed one send again. A device that is back begins from its group's model, as every leaf does in each step. A group
all of whose devices have failed counts for nothing until one is back. `repeat` and `reorder` never change a model: an
aggregator takes each sender's update of a step once, in the order of the senders.

Not here: new groups, see regroup.py. A subtree chooses its aggregators among its own devices and is never without a parent
while one of them works. Legend: n devices, T nodes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvtools.chance import rng_for
from kvtools.etree.tree.tree import Tree

_EVENT = re.compile(
    r"(?:(?P<drawn>leaf|late|join|repeat):(?P<count>\d+(?:\.\d+)?)(?P<percent>%?)|aggregator:(?P<level>\d+)"
    r"|(?P<single>root|partition|reorder))"
    r"@(?P<begin>\d+)(?:-(?P<end>\d+))?"
)
_FORM = (
    "events are leaf:10%@5, aggregator:1@8, root@12, late:5@3-4, partition@15-18, join:3@4, repeat:10%@5 and reorder@5-8, "
    "between commas"
)
_Kind = Literal["failed", "late", "repeat", "reorder", "cut"]


@dataclass(frozen=True)
class Event:
    """What happens to some devices, or to the links of some nodes, from step `begin` to step `end`."""

    kind: _Kind
    targets: np.ndarray  # devices; nodes where the kind is "cut"
    begin: int
    end: float


@dataclass(frozen=True)
class Status:
    """What one step sees of the failures. failed_n is None where nothing is wrong."""

    failed_n: np.ndarray | None = None  # bool (n,): failed before this step or in it
    failing_n: np.ndarray | None = None  # bool (n,): fails in this step
    late_n: np.ndarray | None = None  # bool (n,)
    cut_T: np.ndarray | None = None  # bool (T,): nodes that cannot reach the root
    repeated: tuple[int, ...] = ()  # devices whose messages arrive twice
    stale: tuple[int, ...] = ()  # devices whose messages of the step before arrive again

    @property
    def is_degraded(self) -> bool:
        """Whether any event is under way."""
        return self.failed_n is not None

    def trains(self, n: int) -> np.ndarray:
        """Which devices train, bool (n,)."""
        return np.ones(n, bool) if self.failed_n is None or self.failing_n is None else ~self.failed_n | self.failing_n

    def counts(self, n: int) -> np.ndarray:
        """Which devices' updates arrive in time, bool (n,)."""
        if self.failed_n is None or self.late_n is None or self.cut_T is None:
            return np.ones(n, bool)
        return np.asarray(~self.failed_n & ~self.late_n & ~self.cut_T[:n])

    def is_cut(self, tree: Tree, level: int) -> np.ndarray:
        """Which nodes of a level cannot reach the root, bool (m,)."""
        nodes = tree.nodes(level)
        return np.zeros(len(nodes), bool) if self.cut_T is None else self.cut_T[nodes]

    def role_devices(self, tree: Tree) -> np.ndarray:
        """The device in the role of each node, int64 (T,): the successor of a failed aggregator is the first of its succession
        that works; -1 where none does."""
        device_T = tree.device.astype(np.int64)
        if self.failed_n is None:
            return device_T
        device_T[: tree.n_devices][self.failed_n] = -1
        for node in range(tree.n_devices, len(tree.parent)):
            children = np.flatnonzero(tree.parent == node)
            # a root that is none of its own children, such as a server, keeps its role while it works
            if not self.failed_n[tree.device[node]] and not (tree.device[children] == tree.device[node]).any():
                continue
            succession = children[np.lexsort((children, tree.order[children]))]
            working = succession[device_T[succession] >= 0]
            device_T[node] = device_T[working[0]] if len(working) else -1
        return device_T

    def replaced(self, tree: Tree, device_T: np.ndarray) -> np.ndarray:
        """Aggregators whose device fails in this step and whose role another has now (device_T), int64."""
        if self.failing_n is None:
            return np.empty(0, np.int64)
        return np.flatnonzero((tree.level > 0) & self.failing_n[tree.device] & (device_T >= 0))


HEALTHY = Status()


def read_script(script: str, tree: Tree, seed: int) -> list[Event]:
    """The events of a script. Raises ValueError for other text and for levels that the tree does not have."""
    if not script.strip():
        raise ValueError(f"the script is empty; {_FORM}")
    return [_event(text.strip(), position, tree, seed) for position, text in enumerate(script.split(","))]


def _event(text: str, position: int, tree: Tree, seed: int) -> Event:
    match = _EVENT.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no event; {_FORM}")
    begin = int(match["begin"])
    end = float(match["end"]) if match["end"] else np.inf
    if begin < 1 or end < begin:
        raise ValueError(f"{text!r}: steps are counted from 1, and a range does not end before it begins")
    rng = rng_for(seed, "etree", "fail", position, text)
    step_end = end if match["end"] else begin  # of events that last one step unless a range is given
    if match["level"]:
        return Event("failed", _aggregator(text, int(match["level"]), tree, rng), begin, end)
    name = match["drawn"] or match["single"]
    if name == "root":
        return Event("failed", tree.device[-1:], begin, end)
    if name == "partition":
        children = np.flatnonzero(tree.parent == len(tree.parent) - 1)
        others = children[tree.device[children] != tree.device[-1]]
        return Event("cut", np.sort(rng.permutation(others)[: len(children) // 2]), begin, end)
    if name == "reorder":
        return Event("reorder", np.empty(0, np.int64), begin, step_end)
    devices = _drawn(text, match, tree, rng)
    if name == "join":
        if match["end"]:
            raise ValueError(f"{text!r}: join takes one step, from which on the devices are there")
        return Event("failed", devices, 0, begin - 1)  # absent from the start, so that no step sees them fail
    if name == "leaf":
        return Event("failed", devices, begin, end)
    return Event("late" if name == "late" else "repeat", devices, begin, step_end)


def _drawn(text: str, match: re.Match[str], tree: Tree, rng: np.random.Generator) -> np.ndarray:
    """So many devices at random, sorted; of `leaf` and `join` such that are no aggregators."""
    devices = np.arange(tree.n_devices)
    if match["drawn"] in ("leaf", "join"):
        devices = np.setdiff1d(devices, tree.device[tree.n_devices :])
    count = float(match["count"])
    if match["percent"] and count > 100:
        raise ValueError(f"{text!r}: more than 100% of the devices cannot be drawn")
    n_drawn = round(count / 100 * tree.n_devices) if match["percent"] else int(count)
    if not match["percent"] and n_drawn > len(devices):
        which = " that are no aggregators" if len(devices) < tree.n_devices else ""
        raise ValueError(f"{text!r}: the tree has only {len(devices)} devices{which}")
    return np.sort(rng.permutation(devices)[:n_drawn])


def _aggregator(text: str, level: int, tree: Tree, rng: np.random.Generator) -> np.ndarray:
    if not 1 <= level <= tree.n_levels:
        raise ValueError(f"{text!r}: the tree has aggregators on levels 1 to {tree.n_levels}")
    return np.asarray(tree.device[rng.permutation(tree.nodes(level))[:1]])


def status_at(events: Sequence[Event], tree: Tree, step: int) -> Status:
    """What a step sees of the events."""
    current = [event for event in events if event.begin <= step <= event.end]
    stale = [event for event in events if event.kind == "repeat" and event.begin <= step - 1 <= event.end]
    if not current and not stale:
        return HEALTHY

    def marked(affecting: Sequence[Event], n: int) -> np.ndarray:
        mask = np.zeros(n, bool)
        for event in affecting:
            mask[event.targets] = True
        return mask

    n = tree.n_devices
    failed = [event for event in current if event.kind == "failed"]
    is_earlier = marked([event for event in failed if event.begin < step], n)
    repeated = marked([event for event in current if event.kind == "repeat"], n)
    return Status(
        failed_n=marked(failed, n),
        failing_n=marked([event for event in failed if event.begin == step], n) & ~is_earlier,
        late_n=marked([event for event in current if event.kind == "late"], n),
        cut_T=marked([event for event in current if event.kind == "cut"], len(tree.parent)),
        repeated=tuple(np.flatnonzero(repeated).tolist()),
        stale=tuple(np.flatnonzero(marked(stale, n)).tolist()),
    )
