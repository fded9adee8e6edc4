"""Who fails, when, and who takes over: a script of failures made into what each step of a course is to see.

`leaf:10%@5` a tenth of the devices that hold no office die in step 5; `leaf:3@5-8` three of them, and are back in step 9;
`aggregator:1@8` one aggregator of level 1 dies, `aggregator:2@8` one of level 2, and so on; `root@12` the device at the root
dies; `late:10%@5` updates of a tenth come after the deadline; `partition@15-18` half of the root's children cannot reach it.
Who it is depends on the seed and on the place in the script alone, so that a run can be repeated to the bit.

A device that dies in a step has trained, but its update is lost. Dead devices neither train nor hold office: the next in the
line that the tree carries, whose device lives, takes over, and everybody can tell who that is without talking; those who had
sent to the fallen one send again. A device that is back begins from its group's model, as every leaf does in each step, so
there is nothing to catch up with. A group all of whose devices are dead counts for nothing until one is back.

`repeat` and `reorder` cost bytes and time at most: an aggregator takes each sender's update of a step once, in the order of the
senders. Not here: new groups, see regroup.py. A subtree elects its aggregators
among its own devices and is never left without a parent while one lives.
"""

import re
from dataclasses import dataclass

import numpy as np

from kvtools.chance import rng_for
from kvtools.etree.tree.tree import Tree

_EVENT = re.compile(
    r"(?:(?P<who>leaf|late|join|repeat):(?P<count>\d+(?:\.\d+)?)(?P<percent>%?)|aggregator:(?P<level>\d+)"
    r"|(?P<one>root|partition|reorder))"
    r"@(?P<begin>\d+)(?:-(?P<end>\d+))?"
)
FORM = (
    "events like leaf:10%@5, aggregator:1@8, root@12, late:5@3-4, partition@15-18, join:3@4, repeat:10%@5 or reorder@5-8, "
    "between commas,"
)


@dataclass(frozen=True)
class Event:
    """What befalls some devices, or the links of some nodes, from step `begin` to step `end`."""

    what: str  # "dead", "late", "repeat", "reorder" or "cut"
    targets: np.ndarray  # devices; of "cut" nodes
    begin: int
    end: float


@dataclass(frozen=True)
class Status:
    """What one step sees. None: all are well."""

    dead_n: np.ndarray | None = None  # bool (n,): dead before this step or in it
    dying_n: np.ndarray | None = None  # those that die in it
    late_n: np.ndarray | None = None
    cut_T: np.ndarray | None = None  # bool (T,): nodes that cannot reach the root
    repeated: tuple[int, ...] = ()  # devices whose messages arrive twice
    stale: tuple[int, ...] = ()  # and those whose messages of the step before arrive again

    @property
    def is_ill(self) -> bool:
        return self.dead_n is not None

    def trains(self, n: int) -> np.ndarray:
        """Who trains, bool (n,)."""
        return np.ones(n, bool) if self.dead_n is None or self.dying_n is None else ~self.dead_n | self.dying_n

    def counts(self, n: int) -> np.ndarray:
        """Whose update arrives in time, bool (n,)."""
        if self.dead_n is None or self.late_n is None or self.cut_T is None:
            return np.ones(n, bool)
        return np.asarray(~self.dead_n & ~self.late_n & ~self.cut_T[:n])

    def is_cut(self, tree: Tree, level: int) -> np.ndarray:
        """Which nodes of a level are cut off, bool."""
        nodes = tree.nodes(level)
        return np.zeros(len(nodes), bool) if self.cut_T is None else self.cut_T[nodes]

    def offices(self, tree: Tree) -> np.ndarray:
        """The device at each node now, int64 (T,): the first of its line that lives, -1 where none does."""
        device_T = tree.device.astype(np.int64)
        if self.dead_n is None:
            return device_T
        device_T = device_T.copy()
        device_T[: tree.n_devices][self.dead_n] = -1
        for level in range(1, tree.n_levels + 1):
            children = tree.nodes(level - 1)
            for node in tree.nodes(level).tolist():
                # a root that was no child of its own, such as a hub, stays while it lives
                if (
                    not self.dead_n[tree.device[node]]
                    and not (tree.device[children[tree.parent[children] == node]] == tree.device[node]).any()
                ):
                    continue
                mine = children[tree.parent[children] == node]
                line = mine[np.lexsort((mine, tree.order[mine]))]
                alive = line[device_T[line] >= 0]
                device_T[node] = device_T[alive[0]] if len(alive) else -1
        return device_T

    def fallen(self, tree: Tree, device_T: np.ndarray) -> np.ndarray:
        """Aggregators whose device dies in this step, and that have another now."""
        if self.dying_n is None:
            return np.empty(0, np.int64)
        return np.flatnonzero((tree.level > 0) & self.dying_n[tree.device] & (device_T >= 0))


ALL_WELL = Status()


def read_script(words: str, tree: Tree, seed: int) -> list[Event]:
    """The events of a script. Raises ValueError for other words and for levels that the tree has not."""
    n, found = tree.n_devices, []
    if not words.strip():
        raise ValueError(f"--fail without a word found, {FORM} expected")
    officers = np.unique(tree.device[n:])
    for place, word in enumerate(words.split(",")):
        match = _EVENT.fullmatch(word.strip())
        if not match:
            raise ValueError(f"{word!r} found, {FORM} expected")
        chance = rng_for(seed, "etree", "fail", place, word.strip())
        begin = int(match["begin"])
        end = float(match["end"]) if match["end"] else np.inf
        if begin < 1 or end < begin:
            raise ValueError(f"{word!r} found, steps from 1 in rising order expected")
        what, who = "dead", match["who"]
        if who:
            able = np.setdiff1d(np.arange(n), officers) if who in ("leaf", "join") else np.arange(n)
            if match["percent"] and float(match["count"]) > 100:
                raise ValueError(f"{word!r} found, 100% at most expected")
            count = round(float(match["count"]) / 100 * n) if match["percent"] else int(float(match["count"]))
            targets = np.sort(chance.permutation(able)[:count])
            what = "dead" if who in ("leaf", "join") else who
            end = begin if what != "dead" and not match["end"] else end
            if who == "join":
                if match["end"]:
                    raise ValueError(f"{word!r} found, one step expected, from which they are there")
                begin, end = 0, begin - 1  # never seen to die
        elif match["level"]:
            level = int(match["level"])
            if not 1 <= level <= tree.n_levels:
                raise ValueError(f"{word!r} found, a level from 1 to {tree.n_levels} expected")
            targets = tree.device[chance.permutation(tree.nodes(level))[:1]]
        elif match["one"] == "root":
            targets = tree.device[-1:]
        elif match["one"] == "reorder":
            targets, what, end = np.empty(0, np.int64), "reorder", end if match["end"] else begin
        else:
            children = np.flatnonzero(tree.parent == len(tree.parent) - 1)
            others = children[tree.device[children] != tree.device[-1]]
            targets, what = np.sort(chance.permutation(others)[: len(children) // 2]), "cut"
        found.append(Event(what, targets, begin, end))
    return found


def status_at(events: list[Event], tree: Tree, step: int) -> Status:
    """What a step sees of a script."""
    now = [event for event in events if event.begin <= step <= event.end]
    before = [event for event in events if event.what == "repeat" and event.begin <= step - 1 <= event.end]
    if not now and not before:
        return ALL_WELL
    marks = {what: np.zeros(tree.n_devices, bool) for what in ("dead", "dying", "late", "repeat", "stale")}
    cut = np.zeros(len(tree.parent), bool)
    for event in before:
        marks["stale"][event.targets] = True
    for event in now:
        if event.what != "reorder":
            (cut if event.what == "cut" else marks[event.what])[event.targets] = True
        if event.what == "dead" and event.begin == step:
            marks["dying"][event.targets] = True
    for event in now:  # who was dead before cannot die
        if event.what == "dead" and event.begin < step:
            marks["dying"][event.targets] = False
    repeated, stale = (tuple(np.flatnonzero(marks[what]).tolist()) for what in ("repeat", "stale"))
    return Status(marks["dead"], marks["dying"], marks["late"], cut, repeated, stale)
