"""Groups of devices with short delays and, where accuracies are given, similar accuracies: KMA, and what it is compared with.

Source: Algorithm 1 of arXiv 2008.01553, "K-Means and average Accuracy", and its authors' simulator where it differs. Each
device has trained alone for a while and reached acc_j on a public test set. K random devices are the initial centres. Each
device in turn compares the nearest half of the centres, floor(K/2) of them, nearest first, and joins the first cluster whose
mean accuracy, with its own, is within delta of the mean of all; where there is none, it joins the nearest centre's. Clusters
are emptied before each sweep. Sweeps are repeated until no centre changes.

`kma` moves the centre of a cluster to its medoid whenever a device joins, as line 17 of the listing is indented. `kma-code`
moves centres once a sweep and leaves each in its own cluster, as the simulator does. Where both are silent, we decide: devices
come in a seeded order, the same in every sweep; ties go to the lower number; an empty cluster takes a device back; sweeps that
return to earlier centres, or reach the cap, end with the best sweep by `Groups.cost`, and that is reported.

What KMA cannot do: accuracy on a balanced test set does not tell a device of one class from a device of another, so clusters of
like accuracy need not have like labels. The report gives both gaps.

Legend: n devices, K groups, C classes. Not here: training, and the balanced method (balanced.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from kvtools.chance import rng_for
from kvtools.etree.network.delay import Delays, blocks
from kvtools.etree.tree.ranks import Ranks, own_range

# what a search needs to go on after a sweep: its centres and its best groups so far
Search = Mapping[str, np.ndarray]
OnSweep = Callable[[Search], None]
Method = Literal["kma", "kma-code", "k-medoids", "accuracy-only", "balanced", "random", "contiguous"]

LARGEST_KMA = 20_000  # devices; with more, `kma` as listed takes too long


@dataclass(frozen=True)
class Groups:
    """The group of each device, and the centre of each group: one of its devices."""

    group: np.ndarray  # int32 (n,)
    centre: np.ndarray  # int64 (K,), devices
    n_sweeps: int = 0
    cycle: int = 0  # after so many sweeps the centres returned; 0 where they converged or the cap was reached
    is_converged: bool = True  # whether the last sweep changed no centre

    @property
    def sizes(self) -> np.ndarray:
        """Devices of each group, int64 (K,)."""
        return np.asarray(np.bincount(self.group, minlength=len(self.centre)))

    def cost(self, delays: Delays, accuracy: np.ndarray | None, weight: float) -> float:
        """The sum of all delays to centres (ms), plus `weight` for each device times its group's accuracy gap.

        accuracy: float64 (n,), or None for delays alone.
        """
        total = float(delays.elementwise(np.arange(len(self.group)), self.centre[self.group]).sum())
        return total if accuracy is None else total + weight * float(self.sizes @ accuracy_gaps(self, accuracy))


def accuracy_gaps(groups: Groups, accuracy: np.ndarray) -> np.ndarray:
    """How far each group's mean accuracy is from the mean of all devices, float64 (K,). accuracy: float64 (n,)."""
    sums = np.bincount(groups.group, weights=accuracy, minlength=len(groups.centre))
    return np.asarray(np.abs(sums / np.maximum(1, groups.sizes) - accuracy.mean()))


def label_gaps(groups: Groups, labels_nC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each group's label distribution is from that of all devices: L1 distance and Jensen-Shannon divergence (nats).

    labels_nC: int (n, C), samples of each label. Returns float64 (K,) each.
    """
    hist_KC = np.zeros((len(groups.centre), labels_nC.shape[1]))
    np.add.at(hist_KC, groups.group, labels_nC)
    p_KC = hist_KC / np.maximum(1, hist_KC.sum(axis=1, keepdims=True))
    q_C = labels_nC.sum(axis=0) / max(1, int(labels_nC.sum()))
    middle_KC = (p_KC + q_C) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p_KC > 0, p_KC * np.log(p_KC / middle_KC), 0) + np.where(q_C > 0, q_C * np.log(q_C / middle_KC), 0)
    return np.abs(p_KC - q_C).sum(axis=1), terms.sum(axis=1) / 2


def report(groups: Groups, delays: Delays, labels_nC: np.ndarray, accuracy: np.ndarray | None) -> dict[str, Any]:
    """How near the devices of a group are, and how much groups differ from all devices, under the names of a `tree` bag.

    labels_nC: int (n, C), C = 0 where devices hold no data. accuracy: float64 (n,), of each device alone.
    """
    delay = delays.elementwise(np.arange(len(delays)), groups.centre[groups.group])
    fields: dict[str, Any] = {
        "k": len(groups.centre), "devices": len(delays), "delay_ms": float(delay.mean()),
        "sweeps": groups.n_sweeps, "cycled": groups.cycle > 0, "settled": groups.is_converged,
        "sizes": groups.sizes.tolist(), "accuracy_gap": None, "label_gap_l1": None, "label_gap_js": None,
    }  # fmt: skip
    if labels_nC.shape[1]:
        l1, js = label_gaps(groups, labels_nC)
        fields |= {"label_gap_l1": float(l1.mean()), "label_gap_js": float(js.mean())}
    if accuracy is not None:
        fields["accuracy_gap"] = float(accuracy_gaps(groups, accuracy).mean())
        fields["accuracy"] = {"mean": float(accuracy.mean()), "deviation": float(accuracy.std())}
    return fields


def initial_centres(n_devices: int, n_groups: int, seed: int) -> np.ndarray:
    """K devices drawn at random, int64 (K,), sorted. Raises ValueError for more groups than devices."""
    if not 1 <= n_groups <= n_devices:
        raise ValueError(f"{n_groups} groups cannot be made of {n_devices} devices")
    return np.sort(rng_for(seed, "kma", "centres").permutation(n_devices)[:n_groups])


def cluster(
    method: Method, delays: Delays, n_groups: int, *, seed: int, world: Ranks, accuracy: np.ndarray | None = None,
    delta: float = 0.05, n_sweeps: int = 100, on_sweep: OnSweep = lambda _: None, earlier: Search | None = None,
) -> Groups:  # fmt: skip
    """Groups by any method but `balanced`.

    accuracy: float64 (n,), for the methods that use it. on_sweep: called after each sweep but the last, with where the search
    stands; earlier: such a search, which is gone on with. Raises ValueError for more groups than devices, and for more than
    20,000 devices with `kma`.
    """
    n_devices = len(delays)
    centre = initial_centres(n_devices, n_groups, seed)
    rng = rng_for(seed, "kma", "order")
    if method in ("random", "contiguous"):
        order = rng.permutation(n_devices) if method == "random" else np.arange(n_devices)
        group = np.empty(n_devices, np.int32)
        group[order] = np.arange(n_devices) * n_groups // n_devices
        return Groups(group, medoids(delays, group, centre, world))
    if method == "kma" and n_devices > LARGEST_KMA:
        raise ValueError(
            f"{n_devices} devices are too many for kma, which moves centres whenever a device joins; "
            f"it takes up to {LARGEST_KMA}, and kma-code takes more"
        )
    assert method == "k-medoids" or accuracy is not None, method
    order = rng.permutation(n_devices)

    def sweep(centre_K: np.ndarray) -> Groups:
        if method == "k-medoids":
            group = _nearest(delays, centre_K, world)
        elif method == "kma":
            group, centre_K = _sweep_moving_centres(delays, centre_K, accuracy, delta, order)
        else:
            group = _sweep_fixed_centres(delays, centre_K, accuracy, delta, order, is_near=method == "kma-code", world=world)
        full = _refilled(group, centre_K, delays)
        # `kma` moved its centres already, but a group that gave a device to an empty one may need another
        is_moved = method == "kma" and np.array_equal(full, group)
        return Groups(full, centre_K if is_moved else medoids(delays, full, centre_K, world))

    weight = 0.0
    if accuracy is not None:
        # one delta of accuracy weighs as much as the mean delay to the initial centres
        start = Groups(delays.nearest(centre), centre)
        weight = start.cost(delays, None, 0) / n_devices / max(delta, 1e-9)
    earlier = earlier or {"centres": centre[None]}
    return _until_converged(sweep, earlier, n_sweeps, lambda groups: groups.cost(delays, accuracy, weight), on_sweep)


def medoids(delays: Delays, group: np.ndarray, centre: np.ndarray, world: Ranks) -> np.ndarray:
    """The medoid of each group, int64 (K,); an empty group keeps its centre. The ranks share the groups.

    group: int (n,). centre: int64 (K,), device numbers.
    """
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(len(centre) + 1))
    medoid = np.zeros(len(centre), np.int64)
    for k in range(world.rank, len(centre), world.size):
        members = order[ends[k] : ends[k + 1]]
        medoid[k] = delays.medoid(members) if len(members) else centre[k]
    return world.sum_array(medoid)


def public_devices(groups: Groups, delays: Delays, accuracy: np.ndarray, delta: float, fraction: float) -> np.ndarray:
    """Devices that may belong to all groups, int32, sorted: Algorithm 2 of the paper. accuracy: float64 (n,).

    Candidates are the fraction of devices with the least mean delay to all centres. Each stays that leaves every group's mean
    accuracy within delta when it joins them all, one after another. As printed a device that does not fit stays in; here it is
    taken out again. The paper does not say what Dist(device, group) is; here it is the delay to the centre.
    """
    mean_delay = np.zeros(len(delays))
    for rows in blocks(len(delays), len(groups.centre)):
        mean_delay[rows] = delays.between(np.arange(rows.start, rows.stop), groups.centre).mean(axis=1)
    sums = np.bincount(groups.group, weights=accuracy, minlength=len(groups.centre))
    counts, mean = groups.sizes.astype(float), accuracy.mean()
    public: list[int] = []
    for device in np.lexsort((np.arange(len(delays)), mean_delay))[: int(fraction * len(delays))].tolist():
        others = np.arange(len(counts)) != groups.group[device]
        if (np.abs((sums + others * accuracy[device]) / (counts + others) - mean) < delta).all():
            sums, counts = sums + others * accuracy[device], counts + others
            public.append(device)
    return np.array(sorted(public), np.int32)


def _until_converged(
    sweep: Callable[[np.ndarray], Groups], earlier: Search, n_sweeps: int, cost: Callable[[Groups], float], on_sweep: OnSweep
) -> Groups:
    """Sweeps until the centres stay; the best sweep by cost where they return to earlier ones or n_sweeps are over.

    earlier: the centres before the first sweep and after each, int64 (sweeps + 1, K), and the best groups, if there are any.
    """
    centres = [*earlier["centres"]]
    sweep_of = {centre.tobytes(): number for number, centre in enumerate(centres)}
    best = Groups(earlier["best_group"], earlier["best_centre"]) if "best_group" in earlier else None
    least = np.inf if best is None else cost(best)
    for number in range(len(centres), n_sweeps + 1):
        groups = replace(sweep(centres[-1]), n_sweeps=number)
        if np.array_equal(groups.centre, centres[-1]):
            return groups
        if (total := cost(groups)) < least:
            best, least = groups, total
        assert best is not None, "a sweep costs less than infinity"
        if groups.centre.tobytes() in sweep_of:
            return replace(best, n_sweeps=number, cycle=number - sweep_of[groups.centre.tobytes()], is_converged=False)
        sweep_of[groups.centre.tobytes()] = number
        centres.append(groups.centre)
        if number < n_sweeps:
            on_sweep({"centres": np.stack(centres), "best_group": best.group, "best_centre": best.centre})
    assert best is not None, "at least one sweep"
    return replace(best, n_sweeps=n_sweeps, is_converged=False)


def _nearest(delays: Delays, centre: np.ndarray, world: Ranks) -> np.ndarray:
    """The nearest centre of each device, int32 (n,); the ranks share the devices."""
    return world.gather_array(delays.nearest(centre, own_range(len(delays), world)))


class _Means:
    """Clusters as they fill: how many devices have joined each, and the sum of their accuracies."""

    def __init__(self, n_groups: int, accuracy: np.ndarray, delta: float) -> None:
        self._sums, self._counts = np.zeros(n_groups), np.zeros(n_groups)
        self._accuracy, self._delta, self._mean = accuracy, delta, float(accuracy.mean())

    def is_fit(self, device: int, k: int) -> bool:
        """Whether the mean of cluster k stays within delta of the mean of all when this device joins."""
        gap = (self._sums[k] + self._accuracy[device]) / (self._counts[k] + 1) - self._mean
        return bool(abs(gap) < self._delta)

    def first_fit(self, device: int, clusters: Sequence[int]) -> int | None:
        """The first of the clusters that fits this device; None where none does."""
        return next((k for k in clusters if self.is_fit(device, k)), None)

    def join(self, device: int, k: int) -> None:
        self._sums[k] += self._accuracy[device]
        self._counts[k] += 1


def _sweep_fixed_centres(
    delays: Delays, centre: np.ndarray, accuracy: np.ndarray | None, delta: float, order: np.ndarray, *, is_near: bool,
    world: Ranks,
) -> np.ndarray:  # fmt: skip
    """A sweep in which the centres stay, int32 (n,). is_near: compare the nearest half, nearest first; else all, by number."""
    assert accuracy is not None, "the caller sees to it"
    n_groups, half = len(centre), len(centre) // 2
    means = _Means(n_groups, accuracy, delta)
    group = np.full(len(delays), -1, np.int32)
    for k, device in enumerate(centre.tolist()):
        group[device] = k
        means.join(device, k)
    nearest = _nearest(delays, centre, world)
    for device in order.tolist():
        if group[device] >= 0:
            continue
        k = int(nearest[device])
        # the nearest is the first of the half: where it fits, the others need not be ordered
        if not (is_near and half and means.is_fit(device, k)):
            clusters: Sequence[int] = range(n_groups)
            if is_near:
                delay_K = delays.between(np.array([device]), centre)[0]
                clusters = np.lexsort((np.arange(n_groups), delay_K))[:half].tolist()
            fit = means.first_fit(device, clusters)
            k = k if fit is None else fit
        group[device] = k
        means.join(device, k)
    return group


def _sweep_moving_centres(
    delays: Delays, centre: np.ndarray, accuracy: np.ndarray | None, delta: float, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A sweep of Algorithm 1 with line 17 inside its loop: a cluster moves its centre as soon as a device joins.

    Returns the groups, int32 (n,), and their centres, int64 (K,).
    """
    assert accuracy is not None, "the caller sees to it"
    n_groups, half = len(centre), len(centre) // 2
    centre = centre.copy()
    devices = np.arange(len(delays))
    delay_Kn = delays.between(centre, devices)
    means = _Means(n_groups, accuracy, delta)
    group = np.full(len(delays), -1, np.int32)
    members: list[list[int]] = [[] for _ in range(n_groups)]
    totals: list[list[float]] = [[] for _ in range(n_groups)]  # of each member, its delays to the others
    for device in order.tolist():
        by_delay = np.lexsort((np.arange(n_groups), delay_Kn[:, device])).tolist()
        fit = means.first_fit(device, by_delay[:half])
        k = by_delay[0] if fit is None else fit
        group[device] = k
        means.join(device, k)
        delay = delays.between(np.array([device]), np.array(members[k], np.int64))[0]
        totals[k] = [*(np.array(totals[k]) + delay).tolist(), float(delay.sum())]
        members[k].append(device)
        medoid = min(zip(totals[k], members[k], strict=True))[1]
        if medoid != centre[k]:
            centre[k] = medoid
            delay_Kn[k] = delays.between(np.array([medoid]), devices)[0]
    return group, centre


def _refilled(group: np.ndarray, centre: np.ndarray, delays: Delays) -> np.ndarray:
    """The groups without empty ones, int32 (n,). An empty group takes its centre back or, where the centre is alone in its
    group or the centre of it, the device of the largest group that is farthest from its centre."""
    group, sizes = group.copy(), np.bincount(group, minlength=len(centre))
    for k in np.flatnonzero(sizes == 0).tolist():
        device = int(centre[k])
        if sizes[group[device]] < 2 or (device == centre[group[device]]):
            largest = int(sizes.argmax())
            members = np.flatnonzero(group == largest)
            device = int(members[delays.between(members, centre[[largest]])[:, 0].argmax()])
        sizes[group[device]] -= 1
        sizes[k] = 1
        group[device] = k
    return group
