"""A run: an algorithm, round after round, and what it has reached and cost at each evaluation.

Every algorithm runs in the same way: the same first model, the same samples in the same order on each device, the same
evaluation, costs counted by the same rules. Not here: files, options and messages.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from kvtools.etree.network.delay import Delays
from kvtools.etree.network.traffic import Queues
from kvtools.etree.train.costs import CostModel
from kvtools.etree.train.decentralised import DecentralisedSimulation
from kvtools.etree.train.failures import Event, status_at
from kvtools.etree.train.local import LocalTrainer
from kvtools.etree.train.simulation import TreeSimulation, Weights
from kvtools.etree.tree.ranks import Ranks
from kvtools.etree.tree.tree import Tree, star, two_levels

Algorithm = Literal["etree", "fedavg", "hierfavg", "gossip", "d-psgd", "individual", "grouped"]
DIVERGED = 1e4  # nats of a test sample; a model that knows nothing has the logarithm of the number of classes
DECENTRALISED = ("gossip", "d-psgd", "individual")


@dataclass(frozen=True)
class SimulationPlan:
    """What to run and for how long. `events` come from failures.read_script, for the tree of `algorithm_tree`."""

    algorithm: Algorithm
    rounds: int
    every: int = 1  # rounds between evaluations
    weights: Weights = "samples"
    quorum: float = 0.0
    late_updates: Literal["drop", "carry"] = "drop"
    events: tuple[Event, ...] = ()
    is_secure: bool = False
    regroup: float = 0.0
    is_compared: bool = False  # with the same run without events


def algorithm_tree(algorithm: Algorithm, tree: Tree, delays: Delays) -> Tree:
    """The tree that an algorithm trains over: of fedavg a star, of hierfavg two levels, else the tree itself."""
    if algorithm == "fedavg":
        return star(tree, delays.server())
    return two_levels(tree, delays.server()) if algorithm == "hierfavg" else tree


def rounds_of(n_epochs: int, tree: Tree) -> int:
    """Rounds that make so many local epochs. Raises ValueError where they are not whole rounds."""
    per_round = int(tree.ratios[0]) * tree.round_steps
    if n_epochs % per_round:
        fewer = n_epochs // per_round * per_round
        nearest = f"{fewer} or {fewer + per_round}" if fewer else str(per_round)
        raise ValueError(f"a round has {per_round} local epochs; the nearest whole rounds make {nearest}")
    return n_epochs // per_round


class Run:
    """A run under way; iterate for a line at each evaluation. `state` is what another run needs to continue it."""

    def __init__(
        self, plan: SimulationPlan, tree: Tree, delays: Delays, trainer: LocalTrainer, cost_model: CostModel,
        test: tuple[np.ndarray, np.ndarray], world: Ranks, log: Callable[[str], None],
        queues: Queues | None = None,
    ) -> None:  # fmt: skip
        """test: x float32 (N, ...) and y int64 (N,). Raises ValueError where the models of all devices do not fit."""
        self.plan, self._trainer, self._world = plan, trainer, world
        self._test_x, self._test_y = (torch.from_numpy(part).to(trainer.torch_device) for part in test)
        self._baseline: Run | None = None
        if plan.is_compared:
            without = replace(plan, events=(), is_compared=False)
            self._baseline = Run(
                without, tree, delays, trainer, cost_model, test=test, world=world, log=lambda _: None, queues=queues
            )
        self.simulation: TreeSimulation | DecentralisedSimulation
        if plan.algorithm in ("gossip", "d-psgd", "individual"):
            self.simulation = DecentralisedSimulation(
                algorithm=plan.algorithm, n_epochs=int(tree.ratios[0]), round_steps=tree.round_steps, delays=delays,
                trainer=trainer, cost_model=cost_model, accounting_group_n=tree.group, world=world, queues=queues,
            )  # fmt: skip
        else:
            self.simulation = TreeSimulation(
                tree=algorithm_tree(plan.algorithm, tree, delays), delays=delays, trainer=trainer, cost_model=cost_model,
                weights=plan.weights, accounting_group_n=tree.group, world=world, has_root=plan.algorithm != "grouped",
                quorum=plan.quorum, late_updates=plan.late_updates, regroup=plan.regroup, is_secure=plan.is_secure, log=log,
                queues=queues,
            )  # fmt: skip
        self._earlier_s = 0.0  # computed before this run was resumed
        self._wall_s = 0.0

    @property
    def n_steps(self) -> int:
        """Steps in all, whole rounds."""
        return self.plan.rounds * self.simulation.round_steps

    @property
    def n_rounds(self) -> int:
        """Rounds done so far."""
        return self.simulation.costs.steps // self.simulation.round_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (line for line in self.rounds() if line is not None)

    def rounds(self) -> Iterator[dict[str, Any] | None]:
        """Round after round, between which `state` may be called: the line of its evaluation, None where there was none.

        Raises ValueError for a model that has diverged, and for updates too large to mask.
        """
        start = time.monotonic()
        baseline = iter(self._baseline) if self._baseline else None
        while self.simulation.costs.steps < self.n_steps:
            for _ in range(self.simulation.round_steps):
                self._step()
            self._wall_s = self._earlier_s + time.monotonic() - start
            if self.n_rounds % self.plan.every and self.n_rounds != self.plan.rounds:
                yield None
                continue
            line = self.line()
            if not line["loss"] <= DIVERGED:
                raise ValueError(f"the loss is {line['loss']:.3g} after round {self.n_rounds}: training has diverged")
            if baseline:  # its rounds are as long, and are evaluated as often
                paused = time.monotonic()
                other = next(baseline)
                start += time.monotonic() - paused
                line["accuracy_lost"] = round(other["accuracy"] - line["accuracy"], 6)
                line["simulated_s_lost"] = round(line["simulated_s"] - other["simulated_s"], 6)
            yield line

    def _step(self) -> None:
        if isinstance(self.simulation, DecentralisedSimulation):
            self.simulation.step()
            return
        tree, number = self.simulation.tree, self.simulation.costs.steps + 1
        self.simulation.step(status_at(self.plan.events, tree, number))

    def line(self) -> dict[str, Any]:
        """What has been reached and what it cost, under the names that scripts rely on."""
        rows, weight = self.simulation.model()
        models = torch.from_numpy(rows).to(self._trainer.torch_device)
        accuracy, loss = self._trainer.evaluate(models, self._test_x, self._test_y, self._world)
        costs = self.simulation.costs
        return {
            "algorithm": self.plan.algorithm, "round": self.n_rounds,
            "local_epochs": costs.epochs, "bytes": costs.n_bytes, "wan_bytes": costs.wan_bytes,
            "simulated_s": round(costs.seconds, 6), "wall_s": round(self._wall_s, 3),
            "accuracy": float(accuracy @ weight / weight.sum()), "loss": float(loss @ weight / weight.sum()),
        }  # fmt: skip

    def weights(self) -> dict[str, np.ndarray]:
        """The final model's tensors by name: the root's, or the mean of all models where there is no root.

        A collective: every rank must call it.
        """
        if isinstance(self.simulation, DecentralisedSimulation):
            return self._trainer.model.named(self.simulation.mean())
        rows, weight = self.simulation.model()
        return self._trainer.model.named(((weight / weight.sum()) @ rows.astype(np.float64)).astype(np.float32))

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors and fields between two rounds. A collective: every rank must call it."""
        tensors, fields = self.simulation.state(), {"costs": asdict(self.simulation.costs), "wall_s": self._wall_s}
        if self._baseline:
            others, fields["baseline"] = self._baseline.state()
            tensors |= {f"baseline.{name}": array for name, array in others.items()}
        return tensors, fields

    def restore(self, tensors: dict[str, np.ndarray], fields: dict[str, Any]) -> None:
        """Continue from such a state."""
        self.simulation.restore(tensors)
        for name, value in fields["costs"].items():
            setattr(self.simulation.costs, name, value)
        self._earlier_s = self._wall_s = fields["wall_s"]
        if self._baseline:
            others = {name.removeprefix("baseline."): array for name, array in tensors.items() if name.startswith("baseline.")}
            self._baseline.restore(others, fields["baseline"])
