"""Learning rates over a run: a linear warm-up, then constant or a cosine down to a fraction of the peak."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LrSchedule:
    """The learning rate at each step of `n_steps`; warm-up counts as part of them."""

    peak: float
    n_steps: int
    n_warmup: int
    shape: Literal["cosine", "constant"] = "cosine"
    floor: float = 0.05  # fraction of the peak that a cosine ends at

    def at(self, step: int) -> float:
        """The learning rate of a step, from 0. The first is not 0, so that no step is without effect."""
        if step < self.n_warmup:
            return self.peak * (step + 1) / self.n_warmup
        if self.shape == "constant":
            return self.peak
        done = min(1.0, (step - self.n_warmup) / max(1, self.n_steps - self.n_warmup))
        return self.peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done)))
