"""Groups of devices that are near one another and, as far as told, alike in what they have learned: KMA and its rivals.

Source: Algorithm 1 of arXiv 2008.01553, "K-Means and average Accuracy", and its authors' simulator where it differs. Each
device has trained alone for a while and reached acc_j on a public test set. K random devices are centres. Each device in
turn looks at the nearest half of the centres, floor(K/2) of them, nearest first, and joins the first cluster whose mean
accuracy, with its own, is within delta of the mean of all; where none is, the nearest centre's. Clusters are emptied before
each sweep; sweeps are repeated until no centre changes.

`kma` moves the centre of a cluster to its medoid whenever a device joins, as line 17 of the listing is indented; `kma-code`
moves centres once a sweep and leaves each in its own cluster, as the simulator does. Ours, where both are silent: devices come
in a seeded order, the same in every sweep; ties go to the lower number; a cluster left empty takes a device back; sweeps that
come back to centres they had, or reach the cap, end with the best sweep by `Groups.cost`, and that is reported.

What it cannot do: accuracy on a balanced test set does not tell a device of one class from a device of another, so clusters of
like accuracy need not have like labels; the report gives both gaps.

Legend: n devices, K groups, C classes. Not here: training, and the balanced method (balanced.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from kvtools.chance import rng_for
from kvtools.etree.network.delay import Delays, blocks

Method = Literal["kma", "kma-code", "k-medoids", "accuracy-only", "balanced", "random", "contiguous"]

MANY = 20_000  # devices, above which nothing of n x n numbers is held, and `kma` as listed costs too much


class Peers(Protocol):
    """Those who share the work; World is one."""

    rank: int
    size: int

    def sum_array(self, array: np.ndarray) -> np.ndarray: ...
    def gather_array(self, array: np.ndarray) -> np.ndarray: ...


class Alone:
    """The peers of one who does it all."""

    rank, size = 0, 1

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        return array

    def gather_array(self, array: np.ndarray) -> np.ndarray:
        return array


@dataclass(frozen=True)
class Groups:
    """Which group each device is in, and its centre: a device of that group."""

    group: np.ndarray  # int32 (n,)
    centre: np.ndarray  # int64 (K,), devices
    n_sweeps: int = 0
    cycle: int = 0  # after so many sweeps the centres came back; 0 where they came to rest or the cap was reached
    is_settled: bool = True  # whether the last sweep changed no centre

    @property
    def sizes(self) -> np.ndarray:
        return np.asarray(np.bincount(self.group, minlength=len(self.centre)))

    def cost(self, delays: Delays, accuracy: np.ndarray | None, weight: float) -> float:
        """J: the sum of delays to centres, plus `weight` for each device times its group's accuracy gap."""
        total = float(delays.each(np.arange(len(self.group)), self.centre[self.group]).sum())
        return total if accuracy is None else total + weight * float(self.sizes @ accuracy_gaps(self, accuracy))


def accuracy_gaps(groups: Groups, accuracy: np.ndarray) -> np.ndarray:
    """float64 (K,): how far each group's mean accuracy is from that of all devices."""
    sums = np.bincount(groups.group, weights=accuracy, minlength=len(groups.centre))
    return np.asarray(np.abs(sums / np.maximum(1, groups.sizes) - accuracy.mean()))


def label_gaps(groups: Groups, labels_nC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L1 distance and Jensen-Shannon divergence (nats), float64 (K,) each, of each group's share of labels from that of all."""
    hist_KC = np.zeros((len(groups.centre), labels_nC.shape[1]))
    np.add.at(hist_KC, groups.group, labels_nC)
    p_KC = hist_KC / np.maximum(1, hist_KC.sum(axis=1, keepdims=True))
    q_C = labels_nC.sum(axis=0) / max(1, int(labels_nC.sum()))
    middle_KC = (p_KC + q_C) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p_KC > 0, p_KC * np.log(p_KC / middle_KC), 0) + np.where(q_C > 0, q_C * np.log(q_C / middle_KC), 0)
    return np.abs(p_KC - q_C).sum(axis=1), terms.sum(axis=1) / 2


def first_centres(n_devices: int, n_groups: int, seed: int) -> np.ndarray:
    """K devices at random, int64 (K,), sorted."""
    if not 1 <= n_groups <= n_devices:
        raise ValueError(f"{n_groups} groups found, from 1 to the {n_devices} devices expected")
    return np.sort(rng_for(seed, "kma", "centres").permutation(n_devices)[:n_groups])


def cluster(
    method: Method, delays: Delays, n_groups: int, *, seed: int, accuracy: np.ndarray | None = None, delta: float = 0.05,
    n_sweeps: int = 100, peers: Peers | None = None, tell: Callable[[int], None] = lambda _: None,
) -> Groups:  # fmt: skip
    """Groups by any method but `balanced`. accuracy: float64 (n,), for those that look at it. Raises ValueError for more groups
    than devices, and where a method wants fewer devices."""
    peers = peers or Alone()
    n_devices = len(delays)
    centre = first_centres(n_devices, n_groups, seed)
    chance = rng_for(seed, "kma", "order")
    if method in ("random", "contiguous"):
        place = chance.permutation(n_devices) if method == "random" else np.arange(n_devices)
        group = np.empty(n_devices, np.int32)
        group[place] = np.arange(n_devices) * n_groups // n_devices
        return Groups(group, medoids(delays, group, centre, peers))
    if method == "kma" and n_devices > MANY:
        raise ValueError(
            f"{n_devices} devices found, up to {MANY} expected of kma, which moves centres all the time; see kma-code"
        )
    assert method == "k-medoids" or accuracy is not None, method
    order = chance.permutation(n_devices)

    def sweep(centre_K: np.ndarray) -> Groups:
        if method == "k-medoids":
            group = _nearest(delays, centre_K, peers)
        elif method == "kma":
            group, centre_K = _listed(delays, centre_K, accuracy, delta, order)
        else:
            group = _in_turn(delays, centre_K, accuracy, delta, order, is_near=method == "kma-code", peers=peers)
        group = _refilled(group, centre_K, delays)
        return Groups(group, centre_K if method == "kma" else medoids(delays, group, centre_K, peers))

    weight = 0.0
    if accuracy is not None:
        # one delta of accuracy weighs as much as the mean delay of the first centres
        start = Groups(delays.nearest(centre), centre)
        weight = start.cost(delays, None, 0) / n_devices / max(delta, 1e-9)
    return _settle(sweep, centre, n_sweeps, lambda groups: groups.cost(delays, accuracy, weight), tell)


def medoids(delays: Delays, group: np.ndarray, centre: np.ndarray, peers: Peers) -> np.ndarray:
    """The middle of each group, int64 (K,); an empty one keeps its centre. Groups are shared among the peers."""
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(len(centre) + 1))
    found = np.zeros(len(centre), np.int64)
    for k in range(peers.rank, len(centre), peers.size):
        members = order[ends[k] : ends[k + 1]]
        found[k] = delays.medoid(members) if len(members) else centre[k]
    return peers.sum_array(found)


def public_devices(groups: Groups, delays: Delays, accuracy: np.ndarray, delta: float, share: float) -> np.ndarray:
    """Devices that may belong to all groups, int32: Algorithm 2 of the paper. Of the share nearest to all centres on average,
    each that leaves every group's mean accuracy within delta when it joins them all, one after another.

    As printed a device that does not stays in; it is taken out again here. Dist(device, group) is not said to be what: the
    delay to the centre.
    """
    apart = np.zeros(len(delays))
    for some in blocks(len(delays), len(groups.centre)):
        apart[some] = delays.between(np.arange(some.start, some.stop), groups.centre).mean(axis=1)
    sums = np.bincount(groups.group, weights=accuracy, minlength=len(groups.centre))
    counts, mean = groups.sizes.astype(float), accuracy.mean()
    kept: list[int] = []
    for device in np.lexsort((np.arange(len(delays)), apart))[: int(share * len(delays))].tolist():
        others = np.arange(len(counts)) != groups.group[device]
        if (np.abs((sums + others * accuracy[device]) / (counts + others) - mean) < delta).all():
            sums, counts = sums + others * accuracy[device], counts + others
            kept.append(device)
    return np.array(sorted(kept), np.int32)


def _settle(
    sweep: Callable[[np.ndarray], Groups], centre: np.ndarray, n_sweeps: int, cost: Callable[[Groups], float],
    tell: Callable[[int], None],
) -> Groups:  # fmt: skip
    seen = {centre.tobytes(): 0}
    best, least = None, np.inf
    for number in range(1, n_sweeps + 1):
        groups = replace(sweep(centre), n_sweeps=number)
        tell(number)
        if np.array_equal(groups.centre, centre):
            return groups
        if (total := cost(groups)) < least:
            best, least = groups, total
        centre = groups.centre
        if centre.tobytes() in seen:
            assert best is not None, "there was a sweep"
            return replace(best, n_sweeps=number, cycle=number - seen[centre.tobytes()], is_settled=False)
        seen[centre.tobytes()] = number
    assert best is not None, "at least one sweep"
    return replace(best, n_sweeps=n_sweeps, is_settled=False)


def _nearest(delays: Delays, centre: np.ndarray, peers: Peers) -> np.ndarray:
    begin, end = (len(delays) * step // peers.size for step in (peers.rank, peers.rank + 1))
    return peers.gather_array(delays.nearest(centre, np.arange(begin, end)))


class _Means:
    """Clusters as they fill: how many have joined, the sum of their accuracies, and who of the centres may be joined."""

    def __init__(self, n_groups: int, accuracy: np.ndarray, delta: float) -> None:
        self._sums, self._counts = np.zeros(n_groups), np.zeros(n_groups)
        self._accuracy, self._delta, self._mean = accuracy, delta, float(accuracy.mean())

    def is_fit(self, device: int, k: int) -> bool:
        """Whether the cluster's mean stays within delta with this device."""
        gap = (self._sums[k] + self._accuracy[device]) / (self._counts[k] + 1) - self._mean
        return bool(abs(gap) < self._delta)

    def choose(self, device: int, line: Sequence[int]) -> int | None:
        """The first of a line of clusters that fits; None where none does."""
        return next((k for k in line if self.is_fit(device, k)), None)

    def join(self, device: int, k: int) -> None:
        self._sums[k] += self._accuracy[device]
        self._counts[k] += 1


def _in_turn(
    delays: Delays,
    centre: np.ndarray,
    accuracy: np.ndarray | None,
    delta: float,
    order: np.ndarray,
    *,
    is_near: bool,
    peers: Peers,
) -> np.ndarray:
    """A sweep with centres that stand still. is_near: look at the nearest half, nearest first; else at all of them, by
    number."""
    assert accuracy is not None, "told apart by the caller"
    n_groups, half = len(centre), len(centre) // 2
    means = _Means(n_groups, accuracy, delta)
    group = np.full(len(delays), -1, np.int32)
    for place, device in enumerate(centre.tolist()):
        group[device] = place
        means.join(device, place)
    nearest = _nearest(delays, centre, peers)
    for device in order.tolist():
        if group[device] >= 0:
            continue
        k = int(nearest[device])
        if not (is_near and half and means.is_fit(device, k)):
            line: Sequence[int] = range(n_groups)
            if is_near:
                apart = delays.between(np.array([device]), centre)[0]
                line = np.lexsort((np.arange(n_groups), apart))[:half].tolist()
            fitting = means.choose(device, line)
            k = k if fitting is None else fitting
        group[device] = k
        means.join(device, k)
    return group


def _listed(
    delays: Delays, centre: np.ndarray, accuracy: np.ndarray | None, delta: float, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A sweep of Algorithm 1 with line 17 inside its loop: the cluster that a device joins moves its centre at once."""
    assert accuracy is not None, "told apart by the caller"
    n_groups, half = len(centre), len(centre) // 2
    centre = centre.copy()
    everyone = np.arange(len(delays))
    apart_Kn = delays.between(centre, everyone)
    means = _Means(n_groups, accuracy, delta)
    group = np.full(len(delays), -1, np.int32)
    members: list[list[int]] = [[] for _ in range(n_groups)]
    totals: list[list[float]] = [[] for _ in range(n_groups)]
    for device in order.tolist():
        line = np.lexsort((np.arange(n_groups), apart_Kn[:, device])).tolist()
        fitting = means.choose(device, line[:half])
        k = line[0] if fitting is None else fitting
        group[device] = k
        means.join(device, k)
        apart = delays.between(np.array([device]), np.array(members[k], np.int64))[0]
        totals[k] = [*(np.array(totals[k]) + apart).tolist(), float(apart.sum())]
        members[k].append(device)
        middle = min(zip(totals[k], members[k], strict=True))[1]
        if middle != centre[k]:
            centre[k] = middle
            apart_Kn[k] = delays.between(np.array([middle]), everyone)[0]
    return group, centre


def _refilled(group: np.ndarray, centre: np.ndarray, delays: Delays) -> np.ndarray:
    """Each empty group takes its centre back or, where that one is alone in its group, the device of the largest group that is
    farthest from its centre."""
    sizes = np.bincount(group, minlength=len(centre))
    for k in np.flatnonzero(sizes == 0).tolist():
        device = int(centre[k])
        if sizes[group[device]] < 2 or (device == centre[group[device]]):
            mine = np.flatnonzero(group == int(sizes.argmax()))
            apart = delays.between(mine, centre[[int(sizes.argmax())]])[:, 0]
            device = int(mine[apart.argmax()])
        sizes[group[device]] -= 1
        sizes[k] = 1
        group[device] = k
    return group
