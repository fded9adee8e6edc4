"""Training without a tree: each device has a model of its own, and they meet in pairs, along a ring, or never.

`gossip`: in each step every device takes in the model of one other, drawn at random, averages it with its own, and trains
(Hegedus et al. 2019, in rounds rather than at each one's own pace). `d-psgd`: every device trains, and then averages with both
neighbours on a ring, in the order of their numbers, a third each (Lian et al. 2017). `individual`: nobody meets anybody.

Each device goes by its own clock and waits for those it hears. Accuracy is the mean of the devices' own, of at most 100 of
them. Memory O(n P): each has state. Legend: n devices, P parameters.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from kvtools.chance import rng_for
from kvtools.etree.data.devices import Peers
from kvtools.etree.network.delay import Delays
from kvtools.etree.network.traffic import Paths, Queues
from kvtools.etree.train.local import Trainer
from kvtools.etree.train.simulation import Costs, Spent

LARGEST_BYTES = 4 << 30
_SAMPLED = 100


@dataclass
class PeerCourse:
    """A course under way. `rows_nP` and `ready_n` are its state; `step` goes on."""

    algorithm: Literal["gossip", "d-psgd", "individual"]
    n_epochs: int  # local passes a step
    round_steps: int
    delays: Delays
    trainer: Trainer
    costs: Costs
    home_n: np.ndarray
    peers: Peers
    spent: Spent = field(default_factory=Spent)
    traffic: Paths | Queues | None = None  # how long messages take; along shortest paths unless told

    def __post_init__(self) -> None:
        """Raises ValueError where the models of all devices would take more than 4 GiB."""
        self.traffic = self.traffic or Paths(self.delays)
        n, self.model_bytes = len(self.delays), 4 * self.trainer.model.n_parameters
        if n * self.model_bytes > LARGEST_BYTES:
            raise ValueError(
                f"{n} models of {self.model_bytes} bytes found, at most 4 GiB of them expected of {self.algorithm}"
            )
        start = torch.from_numpy(self.trainer.model.init(self.trainer.seed)).to(self.trainer.place)
        self.rows_nP = start.expand(n, -1).clone()
        self.ready_n = np.zeros(n)
        self.work_n = np.diff(self.trainer.offsets) * self.costs.compute * self.n_epochs
        self.send_s = 8 * self.model_bytes / self.costs.bandwidth if self.costs.bandwidth else 0.0

    def step(self) -> None:
        """One step: those who meet average, and all train."""
        n, number = len(self.rows_nP), self.spent.steps + 1
        if self.algorithm == "gossip" and n > 1:
            other = rng_for(self.trainer.seed, "etree", "gossip", number).integers(1, n, n)
            other = (np.arange(n) + other) % n
            self.rows_nP = (self.rows_nP + self.rows_nP[torch.from_numpy(other).to(self.rows_nP.device)]) / 2
            self._hear(other, np.arange(n), self.ready_n.copy())
        begin, end = (n * step // self.peers.size for step in (self.peers.rank, self.peers.rank + 1))
        mine = np.arange(begin, end)
        trained = torch.empty_like(self.rows_nP[begin:end])
        for chunk in self.trainer.train(self.rows_nP, mine, mine, self.n_epochs, number):
            trained[torch.from_numpy(chunk.jobs).to(trained.device)] = chunk.rows
        everyone = torch.from_numpy(self.peers.gather_array(trained.cpu().numpy())).to(self.rows_nP.device)
        self.ready_n = self.ready_n + self.work_n
        if self.algorithm == "d-psgd" and n > 2:
            done_n = self.ready_n.copy()
            for turn in (1, -1):
                self._hear(np.roll(np.arange(n), turn), np.arange(n), done_n)
            everyone = (everyone + everyone.roll(1, 0) + everyone.roll(-1, 0)) / 3
        self.rows_nP = everyone
        self.spent.steps = number
        self.spent.epochs += self.n_epochs
        self.spent.seconds = float(self.ready_n.max())

    def model(self) -> tuple[np.ndarray, np.ndarray]:
        """Models of at most 100 devices, float32 (M, P), that count alike."""
        n = len(self.rows_nP)
        some = np.unique(np.linspace(0, n - 1, min(n, _SAMPLED)).astype(np.int64))
        return self.rows_nP[torch.from_numpy(some).to(self.rows_nP.device)].cpu().numpy(), np.ones(len(some))

    def mean(self) -> np.ndarray:
        """The mean of all devices' models, float32 (P,)."""
        return self.rows_nP.double().mean(dim=0).float().cpu().numpy()

    def state(self) -> dict[str, np.ndarray]:
        """All that another course needs to go on from here."""
        return {"models": self.rows_nP.cpu().numpy(), "ready": self.ready_n}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from such a state."""
        self.rows_nP.copy_(torch.from_numpy(state["models"].copy()))
        self.ready_n = state["ready"].copy()

    def _hear(self, source: np.ndarray, target: np.ndarray, sent_n: np.ndarray) -> None:
        """Models on their way; whoever gets one waits for it."""
        sending = self.send_s * np.bincount(source, minlength=len(sent_n))[source]
        assert self.traffic is not None, "set in the beginning"
        arrived = sent_n[source] + sending + self.traffic.each(source, target) / 1000
        self.ready_n[target] = np.maximum(self.ready_n[target], arrived)
        self.spent.n_bytes += self.model_bytes * len(source)
        self.spent.wan_bytes += self.model_bytes * int((self.home_n[source] != self.home_n[target]).sum())
