"""Random orders of frames that differ enough to be the options of one question. Not here: the frames (tasks.py)."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from kvtools.chance import rng_for


def orders(n: int, n_options: int, rng: np.random.Generator) -> list[list[int]]:
    """So many random orders of n things, no two the reverse of one another and any two with few neighbours in common.

    The rule is the same for any two, so that the correct one cannot be guessed from the others. Raises ValueError where there
    are not so many.
    """
    most = 2 if n == 4 else (n - 1) // 2  # of 4 things there are no four orders with one in common
    for _ in range(200):
        distinct: list[list[int]] = []
        for _ in range(50):
            candidate = rng.permutation(n).tolist()
            if all(len(_neighbours(candidate) & _neighbours(other)) <= most for other in distinct):
                distinct.append(candidate)
            if len(distinct) == n_options:
                return distinct
    raise ValueError(f"there are no {n_options} orders of {n} frames that differ enough")


def has_orders(n: int, n_options: int) -> bool:
    """Whether there are so many orders of n frames as `orders` gives."""
    try:
        orders(n, n_options, rng_for(0))
    except ValueError:
        return False
    return True


def _neighbours(path: Sequence[int]) -> set[frozenset[int]]:
    return {frozenset(pair) for pair in pairwise(path)}


def path_length(distances_TT: np.ndarray, path: Sequence[int]) -> float:
    """The sum of the distances (T, T) between neighbours on a path of indices."""
    return float(sum(distances_TT[a, b] for a, b in pairwise(path)))
