"""Means over the prompts of a step and over all ranks, each with a count of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kvtools.world import World


@dataclass
class StepMeans:
    """Sums of what the log shows, by name, each with its count."""

    total: dict[str, float] = field(default_factory=dict)
    count: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, total: float, count: float) -> None:
        """Add to a sum, and to its count."""
        self.total[name] = self.total.get(name, 0.0) + float(total)
        self.count[name] = self.count.get(name, 0.0) + float(count)

    def means(self, world: World, names: Sequence[str]) -> dict[str, float]:
        """The means over all ranks, of those that have a count. A collective."""
        pairs = np.array([[self.total.get(name, 0.0), self.count.get(name, 0.0)] for name in names])
        total, count = world.sum_array(pairs).T
        return {name: float(total[n] / count[n]) for n, name in enumerate(names) if count[n]}
