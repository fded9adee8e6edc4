"""Sums of updates within a group whose terms the aggregator does not see: pairwise masks, exact in integers.

Each update, times its weight, becomes whole multiples of 2^-24 modulo 2^64, with the weight itself as one number more. Each two
members of a group share a seed. The lower adds the mask made from it and the higher subtracts it, so that masks cancel in the
sum, and the sum is that of the plain integers to the last bit. Where members are missing, the present ones hand over the seeds
they share with them, and the masks that are left are subtracted.

Threat model: an aggregator that follows the protocol and is curious. It learns the sum of each group and who was missing. A
group of which fewer than three members count is not hidden. The aggregator must not ask for the seeds of a member whose update
it has: there is no second mask against that, so late updates are dropped (Bonawitz et al. 2017 add one). Members that collude
with the aggregator are not covered, nor members that send false numbers.

Not here: key agreement, and cryptography. Masks come from the run's seed by numpy's generator: this is a simulation, in which
the costs, the exactness and the recovery are real, and secrecy is not.

Legend: P parameters, G groups, B devices of a chunk.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from kvtools.chance import rng_for

_UNIT = 2.0**-24
_LARGEST = 2.0**62


class SecureSums:
    """The masked sum of each group, which grows as devices send: no plain update is kept, nor any sum of a part of a group."""

    def __init__(self, members: Mapping[int, np.ndarray], seed: int, step: int) -> None:
        """members: the devices of each group that train in this step, whether their updates arrive or not."""
        self._members = {group: devices.tolist() for group, devices in members.items()}
        self._masked: dict[int, np.ndarray] = {}
        self._sent: dict[int, list[int]] = {group: [] for group in members}
        self._seed, self._step = seed, step

    def add(self, device: int, group: int, row_P: np.ndarray, weight: float) -> None:
        """Send a device's update, float (P,), to its group. Raises ValueError for an update that is too large."""
        members = self._members[group]
        plain = to_units(row_P, weight, len(members))
        message = masked(plain, device, members, self._seed, self._step)
        self._masked[group] = self._masked[group] + message if group in self._masked else message
        self._sent[group].append(device)

    def totals(self) -> Iterable[tuple[int, np.ndarray, float]]:
        """Each group that an update was sent to, the sum of updates times weights, float64 (P,), and the sum of weights."""
        for group, masked_P in self._masked.items():
            present = self._sent[group]
            missing = np.setdiff1d(self._members[group], present).tolist()
            yield group, *unmasked(masked_P, present, missing, self._seed, self._step)


def to_units(row_P: np.ndarray, weight: float, n_members: int) -> np.ndarray:
    """An update times its weight, and the weight, in units of 2^-24, uint64 (P+1,). row_P: float (P,).

    Raises ValueError where a sum of n_members such updates could overflow.
    """
    scaled = np.concatenate([row_P.astype(np.float64) * weight, [weight]]) / _UNIT
    if not np.abs(scaled).max() < _LARGEST / max(1, n_members):
        raise ValueError(f"an update of {float(np.abs(row_P).max()):g} is too large for sums in 64 bits")
    units: np.ndarray = np.rint(scaled).astype(np.int64)
    return units.view(np.uint64)


def masked(units_P: np.ndarray, device: int, members: Iterable[int], seed: int, step: int) -> np.ndarray:
    """What a device sends: its units plus its masks with all members, modulo 2^64, uint64 (P+1,)."""
    return np.asarray(units_P + _masks(device, members, seed, step, len(units_P)))


def unmasked(
    sum_P: np.ndarray, present: Iterable[int], missing: Iterable[int], seed: int, step: int
) -> tuple[np.ndarray, float]:
    """The sum of the present members' updates times weights, float64 (P,), and of their weights. sum_P: uint64 (P+1,)."""
    missing = list(missing)
    for device in present:
        sum_P = sum_P - _masks(device, missing, seed, step, len(sum_P))
    values = sum_P.view(np.int64).astype(np.float64) * _UNIT
    return values[:-1], float(values[-1])


def _masks(device: int, others: Iterable[int], seed: int, step: int, n: int) -> np.ndarray:
    total = np.zeros(n, np.uint64)
    for other in others:
        if other == device:
            continue
        low, high = min(device, other), max(device, other)
        mask = rng_for(seed, "etree", "mask", step, low, high).integers(0, 2**64, n, np.uint64)
        total = total + mask if device == low else total - mask
    return total
