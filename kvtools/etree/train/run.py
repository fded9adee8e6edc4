"""A run: an algorithm's course, round after round, and what it has reached and spent, to be told at each evaluation.

Every algorithm runs in the same harness: the same first model, the same samples in the same order on each device, the same
evaluation, costs counted by the same rules. Not here: files, but for the state of a run that was stopped.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from kvtools.etree.data.devices import Peers
from kvtools.etree.network.delay import Delays
from kvtools.etree.network.traffic import Paths, Queues
from kvtools.etree.train.decentralised import PeerCourse
from kvtools.etree.train.failures import read_script, status_at
from kvtools.etree.train.local import Trainer
from kvtools.etree.train.simulation import Costs, TreeCourse, Weights, star, two_levels
from kvtools.etree.tree.tree import Tree

Algorithm = Literal["etree", "fedavg", "hierfavg", "gossip", "d-psgd", "individual", "grouped"]


@dataclass(frozen=True)
class Plan:
    """What to run and for how long: rounds of the algorithm, or, where `epochs` is given, so many local epochs."""

    algorithm: Algorithm
    rounds: int
    epochs: int | None = None
    every: int = 1  # rounds between evaluations
    weights: Weights = "samples"
    quorum: float = 0.0
    carried: Literal["drop", "carry"] = "drop"
    fail: str | None = None
    is_masked: bool = False
    regroup: float = 0.0
    is_compared: bool = False  # with the same run without failures


class Run:
    """A run under way; iterate for a line at each evaluation. `state` is what another run needs to go on."""

    def __init__(
        self, plan: Plan, tree: Tree, delays: Delays, trainer: Trainer, costs: Costs, test: tuple[np.ndarray, np.ndarray],
        peers: Peers, tell: Callable[[str], None], traffic: Paths | Queues | None = None,
    ) -> None:  # fmt: skip
        """Raises ValueError for a script of failures that cannot be followed, and for models that do not fit."""
        self.plan, self._trainer = plan, trainer
        self._test = tuple(torch.from_numpy(part).to(trainer.place) for part in test)
        self.course: TreeCourse | PeerCourse
        home = tree.group
        self._well: Run | None = None
        if plan.is_compared:
            if not plan.fail:
                raise ValueError("--compare without --fail found, failures to compare with their absence expected")
            unharmed = replace(plan, fail=None, is_compared=False)
            self._well = Run(unharmed, tree, delays, trainer, costs, test, peers, lambda _: None, traffic)
        if plan.algorithm in ("gossip", "d-psgd", "individual"):
            if plan.is_masked:
                raise ValueError(f"--secure with {plan.algorithm} found, with etree, fedavg, hierfavg or grouped expected")
            if plan.fail:
                raise ValueError(f"failures with {plan.algorithm} found, with etree, fedavg, hierfavg or grouped expected")
            steps = int(np.prod(tree.ratios[1:-1], dtype=np.int64))
            self.course = PeerCourse(
                plan.algorithm, int(tree.ratios[0]), steps, delays, trainer, costs, home, peers, traffic=traffic
            )
        else:
            if plan.algorithm == "fedavg":
                tree = star(tree, delays.hub())
            elif plan.algorithm == "hierfavg":
                tree = two_levels(tree, delays.hub())
            self.course = TreeCourse(
                tree, delays, trainer, costs, plan.weights, home, peers,
                has_top=plan.algorithm != "grouped", quorum=plan.quorum, carried=plan.carried,
                regroup=plan.regroup, is_masked=plan.is_masked, tell=tell, traffic=traffic,
            )  # fmt: skip
        self._tree = tree
        a_round = self.epochs_a_round
        if plan.epochs is not None and plan.epochs % a_round:
            few = plan.epochs // a_round * a_round
            near = f"{few} or {few + a_round}" if few else str(a_round)
            raise ValueError(f"{plan.epochs} epochs with {plan.algorithm} found, whose rounds have {a_round}; {near} expected")
        self._events = read_script(plan.fail, tree, trainer.seed) if plan.fail is not None else []
        for begin in sorted({event.begin for event in self._events if event.begin > self.n_steps}):
            tell(f"--fail: step {begin} is after the last, {self.n_steps}: what is to happen then never does.")
        self._earlier_s = 0.0
        self._spent_s = 0.0

    @property
    def epochs_a_round(self) -> int:
        """Local epochs in a round."""
        return int(self._tree.ratios[0]) * self.course.round_steps

    @property
    def n_steps(self) -> int:
        """Steps in all, whole rounds."""
        per_round = self.course.round_steps
        if self.plan.epochs is None:
            return self.plan.rounds * per_round
        return self.plan.epochs // self.epochs_a_round * per_round

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (line for line in self.rounds() if line is not None)

    def rounds(self) -> Iterator[dict[str, Any] | None]:
        """Round after round, between which `state` may be asked for: the line where it was evaluated, else None.

        Raises ValueError for a model that has diverged.
        """
        course, per_round = self.course, self.course.round_steps
        begun = time.monotonic()
        well = iter(self._well) if self._well else None
        while course.spent.steps < self.n_steps:
            number = course.spent.steps + 1
            if isinstance(course, TreeCourse):
                course.step(status_at(self._events, self._tree, number))
            else:
                course.step()
            if number % per_round:
                continue
            self._spent_s = self._earlier_s + time.monotonic() - begun
            line = None
            if number // per_round % self.plan.every == 0 or number == self.n_steps:
                line = self.line()
                if not np.isfinite(line["loss"]):
                    raise ValueError(f"round {line['round']}: a loss that is not finite found; try a lower --lr")
                if well:  # its rounds are as long, and are evaluated as often
                    paused = time.monotonic()
                    unharmed = next(well)
                    begun += time.monotonic() - paused
                    line["accuracy_lost"] = round(unharmed["accuracy"] - line["accuracy"], 6)
                    line["simulated_s_lost"] = round(line["simulated_s"] - unharmed["simulated_s"], 6)
            yield line

    def line(self) -> dict[str, Any]:
        """What has been reached and spent, under the names that scripts rely on."""
        rows, weight = self.course.model()
        models = torch.from_numpy(rows).to(self._trainer.place)
        accuracy, loss = self._trainer.evaluate(models, *self._test)
        spent = self.course.spent
        return {
            "algorithm": self.plan.algorithm, "round": spent.steps // self.course.round_steps, "local_epochs": spent.epochs,
            "bytes": spent.n_bytes, "wan_bytes": spent.wan_bytes, "simulated_s": round(spent.seconds, 6),
            "wall_s": round(self._spent_s, 3), "accuracy": float(accuracy @ weight / weight.sum()),
            "loss": float(loss @ weight / weight.sum()),
        }  # fmt: skip

    def weights(self) -> dict[str, np.ndarray]:
        """The final model's tensors by name: the root's, or the mean of all there are where nobody is above the others."""
        rows, weight = self.course.model()
        row = self.course.mean() if isinstance(self.course, PeerCourse) else (weight / weight.sum()) @ rows.astype(np.float64)
        return self._trainer.model.named(row.astype(np.float32))

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors and words between two rounds."""
        tensors, words = self.course.state(), {"spent": asdict(self.course.spent), "wall_s": self._spent_s}
        if self._well:
            others, words["well"] = self._well.state()
            tensors |= {f"well.{name}": array for name, array in others.items()}
        return tensors, words

    def restore(self, tensors: dict[str, np.ndarray], words: dict[str, Any]) -> None:
        """Go on from such a state."""
        self.course.restore(tensors)
        for name, value in words["spent"].items():
            setattr(self.course.spent, name, value)
        self._earlier_s = self._spent_s = words["wall_s"]
        if self._well:
            own = {name.removeprefix("well."): array for name, array in tensors.items() if name.startswith("well.")}
            self._well.restore(own, words["well"])
