"""Groups of bounded size whose labels are distributed as everybody's, of devices near one another: our method, not the paper's.

The objective: the mean over devices of (1 - w) d(i, centre) / median + w gap(group), where gap is the L1 distance of the
group's label distribution from that of all devices, and w the weight of labels. Sizes lie within (1 +- slack) n / K. The start
is the cheapest assignment under these bounds (bounded_assignment.py), of positions by constrained k-means. Then devices move,
or swap groups with another, while that lowers the objective; then centres move to the medoids; and again.

Devices reveal how many samples of each label they hold, which KMA does not ask of them.

Legend: n devices, K groups, C classes, d axes, m members. Memory n x K numbers; time O(n (K C + m C)) a pass over the devices.
"""

import numpy as np

from kvtools.chance import rng_for
from kvtools.etree.network.delay import Delays, blocks
from kvtools.etree.tree.bounded_assignment import assign
from kvtools.etree.tree.kma import Groups, OnSweep, Search, initial_centres, medoids
from kvtools.etree.tree.ranks import Ranks

LARGEST = 100_000_000  # devices times groups
_LARGEST_N_SWEEPS = 20
_N_PASSES = 20
_LEAST_GAIN = 1e-9


def bounds(n_devices: int, n_groups: int, slack: float) -> tuple[int, int]:
    """The smallest and the largest size of a group."""
    even = n_devices / n_groups
    return max(1, int(np.floor(even * (1 - slack) + 1e-9))), int(np.ceil(even * (1 + slack) - 1e-9))


def balanced(
    delays: Delays, labels_nC: np.ndarray, n_groups: int, *, seed: int, world: Ranks, weight: float = 0.5, slack: float = 0.2,
    n_sweeps: int = _LARGEST_N_SWEEPS, on_sweep: OnSweep = lambda _: None, earlier: Search | None = None,
) -> Groups:  # fmt: skip
    """Groups by the objective above. labels_nC: int (n, C), samples of each label; C = 0, or weight = 0, leaves labels out.

    n_sweeps: at most, and never more than 20. on_sweep, earlier: as of kma.cluster. Raises ValueError for more groups than
    devices, and for more than 1e8 distances.
    """
    n_devices = len(delays)
    if n_devices * n_groups > LARGEST:
        raise ValueError(f"{n_devices} devices times {n_groups} groups are too many for balanced, which takes up to {LARGEST}")
    low, high = bounds(n_devices, n_groups, slack)
    weight = weight if labels_nC.shape[1] else 0.0
    n_sweeps = min(n_sweeps, _LARGEST_N_SWEEPS)
    search = dict(earlier or {"sweep": np.zeros(1, np.int64), "centre": _start(delays, n_groups, low, high, seed, world)})
    for number in range(int(search["sweep"][0]) + 1, n_sweeps + 1):
        cost_nK = _costs(delays, search["centre"])
        scale = float(np.median(cost_nK)) or 1.0
        if number == 1 or not weight:
            search["group"], search["prices"] = assign(cost_nK, low, high, search.get("prices"))
        if weight:
            search["group"] = _improved(cost_nK / scale * (1 - weight), labels_nC, search["group"], low, high, weight, seed)
        group, moved = search["group"], medoids(delays, search["group"], search["centre"], world)
        total = float(delays.elementwise(np.arange(n_devices), moved[group]).mean()) / scale * (1 - weight)
        sizes = np.bincount(group, minlength=n_groups)
        total += weight * float(sizes @ _gaps(labels_nC, group, n_groups)) / n_devices if weight else 0.0
        if "least" not in search or total < search["least"][0] - _LEAST_GAIN:
            search |= {"best_group": group, "best_centre": moved, "least": np.array([total])}
        if np.array_equal(moved, search["centre"]) or total > search["least"][0] + _LEAST_GAIN:
            break
        search |= {"centre": moved, "sweep": np.array([number])}
        if number < n_sweeps:
            on_sweep(dict(search))
    return Groups(search["best_group"], search["best_centre"], number, 0, number < n_sweeps)


def _start(delays: Delays, n_groups: int, low: int, high: int, seed: int, world: Ranks) -> np.ndarray:
    """The first centres, int64 (K,): of constrained k-means where devices have positions, else random devices."""
    centre = initial_centres(len(delays), n_groups, seed)
    if delays.points is None:
        return centre
    group, _ = k_means(delays.points[delays.site], n_groups, low, high, seed=seed)
    return medoids(delays, group, centre, world)


def k_means(
    x_nd: np.ndarray, n_groups: int, low: int, high: int, *, seed: int, n_iterations: int = 25
) -> tuple[np.ndarray, np.ndarray]:
    """Constrained k-means: groups of low to high points, int32 (n,), and their means, float64 (K, d). x_nd: positions (n, d).

    Lloyd's iterations with the cheapest assignment that the bounds allow (Bradley, Bennett and Demiriz 2000), from initial
    centroids drawn among the points; ends when nothing changes, or after n_iterations.
    """
    x_nd = np.ascontiguousarray(x_nd, np.float64)
    narrow_nd = (x_nd - x_nd.mean(axis=0)).astype(np.float32)
    norm_n = np.square(narrow_nd).sum(axis=1)
    centre_Kd = narrow_nd[np.sort(rng_for(seed, "kma", "k-means").permutation(len(x_nd))[:n_groups])]
    group, prices = np.full(len(x_nd), -1, np.int32), None
    for _ in range(n_iterations):
        before = group
        cost_nK = norm_n[:, None] - 2 * (narrow_nd @ centre_Kd.T) + np.square(centre_Kd).sum(axis=1)
        group, prices = assign(cost_nK, low, high, prices)
        if np.array_equal(group, before):
            break
        centre_Kd = _means(narrow_nd, group, n_groups).astype(np.float32)
    return group, _means(x_nd, group, n_groups)


def _means(x_nd: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    sums = np.stack([np.bincount(group, weights=x_nd[:, axis], minlength=n_groups) for axis in range(x_nd.shape[1])], axis=1)
    return np.asarray(sums / np.bincount(group, minlength=n_groups)[:, None])


def _costs(delays: Delays, centre: np.ndarray) -> np.ndarray:
    """Delays to the centres, float32 (n, K), ms."""
    cost_nK = np.empty((len(delays), len(centre)), np.float32)
    for rows in blocks(len(delays), len(centre)):
        cost_nK[rows] = delays.between(np.arange(rows.start, rows.stop), centre)
    return cost_nK


def _gaps(labels_nC: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    hist_KC = np.zeros((n_groups, labels_nC.shape[1]))
    np.add.at(hist_KC, group, labels_nC)
    return _gap(hist_KC, labels_nC.sum(axis=0) / labels_nC.sum())


def _gap(hist_C: np.ndarray, fraction_C: np.ndarray) -> np.ndarray:
    """L1 distance of histograms (..., C), as fractions, from the fractions of all; 0 for an empty histogram."""
    total = hist_C.sum(axis=-1, keepdims=True)
    return np.asarray(np.abs(hist_C / np.maximum(total, 1) - fraction_C * (total > 0)).sum(axis=-1))


def _improved(
    cost_nK: np.ndarray, labels_nC: np.ndarray, group: np.ndarray, low: int, high: int, weight: float, seed: int
) -> np.ndarray:
    """Groups after moves of one device, and swaps of two, for as long as the objective falls; devices in a seeded order."""
    search = _LocalSearch(cost_nK, labels_nC, group, low, high, weight)
    order = rng_for(seed, "kma", "search").permutation(len(cost_nK)).tolist()
    for _ in range(_N_PASSES):
        if not sum(search.improve(device) for device in order):
            break
    return search.group


class _LocalSearch:
    """Groups under change: n times the objective is the sum of cost_nK over devices plus that of label_cost_K over groups."""

    def __init__(
        self, cost_nK: np.ndarray, labels_nC: np.ndarray, group: np.ndarray, low: int, high: int, weight: float
    ) -> None:
        self.group = group.copy()
        self._cost_nK, self._labels_nC = cost_nK, labels_nC.astype(np.float64)
        self._low, self._high, self._weight = low, high, weight
        self._fraction_C = labels_nC.sum(axis=0) / labels_nC.sum()
        n_groups = cost_nK.shape[1]
        self._hist_KC = np.zeros((n_groups, labels_nC.shape[1]))
        np.add.at(self._hist_KC, group, self._labels_nC)
        self._sizes = np.bincount(group, minlength=n_groups).astype(np.float64)
        self._label_cost_K = self._label_cost(self._sizes, self._hist_KC)

    def improve(self, i: int) -> bool:
        """Move device i to the group that lowers the objective most, or swap it with a device there; whether one did."""
        a, sizes = int(self.group[i]), self._sizes
        change_K = self._change_of_move(i, a)
        allowed_K = np.where((sizes < self._high) & (sizes[a] > self._low), change_K, np.inf)
        b = int(allowed_K.argmin())
        if allowed_K[b] < -_LEAST_GAIN:
            self._move([(i, b)])
            return True
        # the best group is full, or this one would be too small: a device of that group must come back
        b = int(change_K.argmin())
        partners = np.flatnonzero(self.group == b)
        if not np.isfinite(change_K[b]) or not len(partners):
            return False
        change = self._change_of_swap(i, a, partners, b)
        best = int(change.argmin())
        if not change[best] < -_LEAST_GAIN:
            return False
        self._move([(i, b), (int(partners[best]), a)])
        return True

    def _label_cost(self, sizes: np.ndarray, hist_C: np.ndarray) -> np.ndarray:
        return np.asarray(self._weight * sizes * _gap(hist_C, self._fraction_C))

    def _change_of_move(self, i: int, a: int) -> np.ndarray:
        """Change of the objective when device i moves from group a to each group, (K,); infinite for a itself."""
        left = self._label_cost(self._sizes[a] - 1, self._hist_KC[a] - self._labels_nC[i]) - self._label_cost_K[a]
        joined_K = self._label_cost(self._sizes + 1, self._hist_KC + self._labels_nC[i]) - self._label_cost_K
        change_K = self._cost_nK[i] - self._cost_nK[i, a] + joined_K + left
        change_K[a] = np.inf
        return np.asarray(change_K)

    def _change_of_swap(self, i: int, a: int, partners: np.ndarray, b: int) -> np.ndarray:
        """Change of the objective when device i of group a swaps with each of some devices of group b, (m,)."""
        cost, shift = self._cost_nK, self._labels_nC[i] - self._labels_nC[partners]
        change = cost[i, b] - cost[i, a] + cost[partners, a] - cost[partners, b]
        change = change + self._label_cost(self._sizes[a], self._hist_KC[a] - shift) - self._label_cost_K[a]
        return np.asarray(change + self._label_cost(self._sizes[b], self._hist_KC[b] + shift) - self._label_cost_K[b])

    def _move(self, moves: list[tuple[int, int]]) -> None:
        """Put devices into other groups: (device, group) each."""
        for device, target in moves:
            source = int(self.group[device])
            self.group[device] = target
            self._hist_KC[source] -= self._labels_nC[device]
            self._hist_KC[target] += self._labels_nC[device]
            self._sizes[source] -= 1
            self._sizes[target] += 1
        both = [source, target]
        self._label_cost_K[both] = self._label_cost(self._sizes[both], self._hist_KC[both])
