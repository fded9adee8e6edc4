"""What the algorithms need of the ranks that share the work; kvtools.world.World is one, `World()` the world of one rank."""

from typing import Protocol

import numpy as np


class Ranks(Protocol):
    """All ranks; this one is `rank` of `size`. Both methods are collectives: every rank must call them."""

    rank: int
    size: int

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """The element-wise sum of every rank's array, of the same shape, on all ranks."""

    def gather_array(self, array: np.ndarray) -> np.ndarray:
        """Every rank's array (n, ...), one after the other along the first axis, in rank order."""


def own_range(n: int, world: Ranks) -> np.ndarray:
    """This rank's part of the numbers below n, int64 (m,): even parts, in rank order."""
    begin, end = (n * rank // world.size for rank in (world.rank, world.rank + 1))
    return np.arange(begin, end)
