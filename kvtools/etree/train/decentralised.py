"""Training without a tree: each device has its own model, and models meet in pairs, along a ring, or never.

`gossip`: in each step every device averages the model of another device, drawn at random, with its own, and trains (Hegedus et
al. 2019, in rounds rather than at each device's own pace). `d-psgd`: every device trains, and then averages with both
neighbours on a ring, in the order of their numbers, a third each, of two devices half each (Lian et al. 2017). `individual`:
devices never communicate.

Each device waits for the models that it receives and for no others. Accuracy is the mean over at most 100 of the devices.
Memory O(n P): each device has state. Legend: n devices, P parameters, M models.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from kvtools.chance import rng_for
from kvtools.etree.network.delay import Delays
from kvtools.etree.network.traffic import Queues
from kvtools.etree.train.costs import CostModel, Costs, Meter
from kvtools.etree.train.local import LocalTrainer
from kvtools.etree.tree.ranks import Ranks, own_range

LARGEST_BYTES = 4 << 30  # of the models of all devices
_N_SAMPLED = 100


@dataclass
class DecentralisedSimulation:
    """Training without a tree, under way. `rows_nP` and `ready_n` are its state; `step` continues it."""

    algorithm: Literal["gossip", "d-psgd", "individual"]
    n_epochs: int  # local passes a step
    round_steps: int
    delays: Delays
    trainer: LocalTrainer
    cost_model: CostModel
    accounting_group_n: np.ndarray  # int (n,), the group of each device that wide-area bytes are counted by
    world: Ranks
    queues: Queues | None = None  # None: messages take the delay of the shortest path

    def __post_init__(self) -> None:
        """Raises ValueError where the models of all devices would take more than 4 GiB."""
        n = len(self.delays)
        n_parameters = self.trainer.model.n_parameters
        self.meter = Meter(self.cost_model, self.delays, self.queues, self.accounting_group_n, n_parameters)
        if n * self.meter.model_bytes > LARGEST_BYTES:
            raise ValueError(
                f"{n} models of {self.meter.model_bytes} bytes are more than the 4 GiB that {self.algorithm} may hold"
            )
        start = torch.from_numpy(self.trainer.model.init(self.trainer.seed)).to(self.trainer.torch_device)
        self.rows_nP = start.expand(n, -1).clone()  # float32
        self.ready_n = np.zeros(n)  # when each device has its next model, seconds
        self._work_n = np.diff(self.trainer.offsets) * self.cost_model.compute * self.n_epochs

    @property
    def costs(self) -> Costs:
        """What the run has cost so far."""
        return self.meter.costs

    def step(self) -> None:
        """One step: devices that meet average, and all train."""
        n, number = len(self.rows_nP), self.costs.steps + 1
        devices = np.arange(n)
        if self.algorithm == "gossip" and n > 1:
            other = (devices + rng_for(self.trainer.seed, "etree", "gossip", number).integers(1, n, n)) % n
            self.rows_nP = (self.rows_nP + self.rows_nP[torch.from_numpy(other).to(self.rows_nP.device)]) / 2
            self._receive(other, self.ready_n.copy())
        own = own_range(n, self.world)
        trained = torch.empty((len(own), self.rows_nP.shape[1]), dtype=self.rows_nP.dtype, device=self.rows_nP.device)
        for chunk in self.trainer.train(self.rows_nP, own, own, self.n_epochs, number):
            trained[torch.from_numpy(chunk.jobs).to(trained.device)] = chunk.rows
        rows_nP = torch.from_numpy(self.world.gather_array(trained.cpu().numpy())).to(self.rows_nP.device)
        self.ready_n = self.ready_n + self._work_n
        if self.algorithm == "d-psgd":
            sent_n, total_nP = self.ready_n.copy(), rows_nP
            shifts = {1, n - 1} - {0, n}  # on a ring of two, both neighbours are one; a device alone has none
            for shift in sorted(shifts):
                self._receive(np.roll(devices, shift), sent_n)
                total_nP = total_nP + rows_nP.roll(shift, 0)
            rows_nP = total_nP / (1 + len(shifts))
        self.rows_nP = rows_nP
        self.costs.steps = number
        self.costs.epochs += self.n_epochs
        self.costs.seconds = float(self.ready_n.max())

    def model(self) -> tuple[np.ndarray, np.ndarray]:
        """Models of at most 100 devices, float32 (M, P), and the weight of each, float64 (M,), all equal."""
        n = len(self.rows_nP)
        sample = np.unique(np.linspace(0, n - 1, min(n, _N_SAMPLED)).astype(np.int64))
        return self.rows_nP[torch.from_numpy(sample).to(self.rows_nP.device)].cpu().numpy(), np.ones(len(sample))

    def mean(self) -> np.ndarray:
        """The mean of all devices' models, float32 (P,)."""
        return self.rows_nP.double().mean(dim=0).float().cpu().numpy()

    def state(self) -> dict[str, np.ndarray]:
        """All that another simulation needs to continue from here."""
        return {"models": self.rows_nP.cpu().numpy(), "ready": self.ready_n}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from such a state."""
        self.rows_nP.copy_(torch.from_numpy(state["models"].copy()))
        self.ready_n = state["ready"].copy()

    def _receive(self, source_n: np.ndarray, sent_n: np.ndarray) -> None:
        """Let every device wait for the model of source_n[i], which that one sends at sent_n; counts the bytes."""
        target_n = np.arange(len(source_n))
        sending = self.meter.send_s * np.bincount(source_n, minlength=len(sent_n))[source_n]
        arrived = sent_n[source_n] + sending + self.meter.travel_s(source_n, target_n)
        self.ready_n = np.maximum(self.ready_n, arrived)
        self.meter.count(source_n, target_n)
