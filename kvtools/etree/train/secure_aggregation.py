"""Sums of updates within a group whose terms the aggregator does not see: pairwise masks, exact in integers.

Each update, times its weight, becomes whole multiples of 2^-24 modulo 2^64, the weight itself as one number more. Each two
members of a group share a seed; the lower adds the mask made of it, the higher takes it away, so that masks cancel in the
sum and the sum is that of the plain integers to the last bit. Where members are missing, those who are there hand over the
seeds they share with them, and what is left of the masks is taken away.

Threat model: an aggregator that follows the protocol and is curious. It learns the sum of each group and who was missing; a
group of which fewer than three count is not hidden. It must not ask for the seeds of a member whose update it has: there is
no second mask against that, so late updates are dropped (Bonawitz et al. 2017 add one). Members that collude with the
aggregator are not covered, nor is anybody who sends false numbers.

Not here: key agreement, and cryptography. Masks come from the run's seed by numpy's generator: this is a simulation, in
which the costs, the exactness and the recovery are real, and secrecy is not.

Legend: P parameters, m members.
"""

from collections.abc import Iterable

import numpy as np

from kvtools.chance import rng_for

_UNIT = 2.0**-24
_LARGEST = 2.0**62


def whole(row_P: np.ndarray, weight: float, n_members: int) -> np.ndarray:
    """uint64 (P+1,): an update times its weight, and the weight. Raises ValueError where a sum of n_members could overflow."""
    scaled = np.concatenate([row_P.astype(np.float64) * weight, [weight]]) / _UNIT
    if not np.abs(scaled).max() < _LARGEST / max(1, n_members):
        raise ValueError(f"an update of {float(np.abs(row_P).max()):g} found, too large for sums in 64 bits")
    units: np.ndarray = np.rint(scaled).astype(np.int64)
    return units.view(np.uint64)


def masked(whole_P: np.ndarray, device: int, members: Iterable[int], seed: int, step: int) -> np.ndarray:
    """uint64 (P+1,): what a device sends."""
    return np.asarray(whole_P + _masks(device, members, seed, step, len(whole_P)))


def unmasked(
    sum_P: np.ndarray, present: Iterable[int], missing: Iterable[int], seed: int, step: int
) -> tuple[np.ndarray, float]:
    """The sum of the present members' updates times their weights, float64 (P,), and of their weights."""
    missing = list(missing)
    for device in present:
        sum_P = sum_P - _masks(device, missing, seed, step, len(sum_P))
    found = sum_P.view(np.int64).astype(np.float64) * _UNIT
    return found[:-1], float(found[-1])


def _masks(device: int, others: Iterable[int], seed: int, step: int, n: int) -> np.ndarray:
    total = np.zeros(n, np.uint64)
    for other in others:
        if other == device:
            continue
        low, high = min(device, other), max(device, other)
        mask = rng_for(seed, "etree", "mask", step, low, high).integers(0, 2**64, n, np.uint64)
        total = total + mask if device == low else total - mask
    return total
