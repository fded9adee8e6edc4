"""Groups of bounded size whose labels look like everybody's, of devices near one another: our own method, not the paper's.

The objective: the mean over devices of (1 - w) d(i, centre) / median + w gap(group), where gap is the L1 distance of the
group's share of labels from that of all, and w what labels weigh. Sizes lie within (1 +- slack) n / K. The start is the
cheapest assignment under these bounds (transport.py), of positions by constrained k-means; then devices move, or change
places with another, where that lowers the objective, until none does; then centres move to the medoids; and again.

Devices tell how many samples of each label they hold, which KMA does not ask of them.

Legend: n devices, K groups, C classes, d axes, m members. Memory n x K numbers; time O(n (K C + m C)) a pass over the devices.
"""

from collections.abc import Callable

import numpy as np

from kvtools.chance import rng_for
from kvtools.etree.network.delay import Delays, blocks
from kvtools.etree.tree.bounded_assignment import assign
from kvtools.etree.tree.kma import Alone, Groups, Method, Peers, cluster, first_centres, medoids

LARGEST = 100_000_000  # devices times groups
_PASSES = 20
_GAIN = 1e-9


def bounds(n_devices: int, n_groups: int, slack: float) -> tuple[int, int]:
    """The least and the largest size of a group."""
    even = n_devices / n_groups
    return max(1, int(np.floor(even * (1 - slack) + 1e-9))), int(np.ceil(even * (1 + slack) - 1e-9))


def balanced(
    delays: Delays, labels_nC: np.ndarray, n_groups: int, *, seed: int, weight: float = 0.5, slack: float = 0.2,
    n_sweeps: int = 20, tell: Callable[[int], None] = lambda _: None,
) -> Groups:  # fmt: skip
    """Groups by the objective above. labels_nC: int (n, C); C = 0, or weight = 0, looks at delays and sizes alone.

    Raises ValueError for more groups than devices, and for more than 1e8 distances.
    """
    n_devices = len(delays)
    if n_devices * n_groups > LARGEST:
        raise ValueError(f"{n_devices} devices times {n_groups} groups found, up to {LARGEST} expected of the balanced method")
    centre = first_centres(n_devices, n_groups, seed)
    low, high = bounds(n_devices, n_groups, slack)
    weight = weight if labels_nC.shape[1] else 0.0
    prices = None
    if delays.points is not None:
        group, _ = k_means(delays.points[delays.site], n_groups, low, high, seed=seed)
        centre = medoids(delays, group, centre, Alone())
    best, least = None, np.inf
    for number in range(1, n_sweeps + 1):
        cost_nK = _costs(delays, centre)
        scale = float(np.median(cost_nK)) or 1.0
        if number == 1:
            group, prices = assign(cost_nK, low, high, prices)
        if weight:
            group = _search(cost_nK / scale * (1 - weight), labels_nC, group, low, high, weight, seed)
        elif number > 1:
            group, prices = assign(cost_nK, low, high, prices)
        moved = medoids(delays, group, centre, Alone())
        groups = Groups(group, moved, number)
        total = float(delays.each(np.arange(n_devices), moved[group]).mean()) / scale * (1 - weight)
        total += weight * float(groups.sizes @ _gaps(labels_nC, group, n_groups)) / n_devices if weight else 0.0
        tell(number)
        if total < least - _GAIN:
            best, least = groups, total
        if np.array_equal(moved, centre) or total > least + _GAIN:
            break
        centre = moved
    assert best is not None, "the first sweep costs less than infinity"
    return Groups(best.group, best.centre, number, 0, number < n_sweeps)


def grouped(
    method: Method, delays: Delays, labels_nC: np.ndarray, n_groups: int, *, seed: int, accuracy: np.ndarray | None,
    delta: float, weight: float, slack: float, n_sweeps: int, peers: Peers, tell: Callable[[int], None],
) -> Groups:  # fmt: skip
    """Groups by any method; this one makes 20 sweeps at most. Raises ValueError as they do."""
    if method == "balanced":
        few = min(20, n_sweeps)
        return balanced(delays, labels_nC, n_groups, seed=seed, weight=weight, slack=slack, n_sweeps=few, tell=tell)
    return cluster(
        method, delays, n_groups, seed=seed, accuracy=accuracy, delta=delta, n_sweeps=n_sweeps, peers=peers, tell=tell
    )


def k_means(
    x_nd: np.ndarray, n_groups: int, low: int, high: int, *, seed: int, n_iterations: int = 25
) -> tuple[np.ndarray, np.ndarray]:
    """Constrained k-means: groups int32 (n,) of low to high points, and their means float64 (K, d).

    Lloyd's iterations whose assignment is the cheapest that the bounds allow (Bradley, Bennett and Demiriz 2000), from points
    drawn at random; ends when nothing changes, or after n_iterations.
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
    """float32 (n, K): delays to the centres."""
    cost_nK = np.empty((len(delays), len(centre)), np.float32)
    for some in blocks(len(delays), len(centre)):
        cost_nK[some] = delays.between(np.arange(some.start, some.stop), centre)
    return cost_nK


def _gaps(labels_nC: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    hist_KC = np.zeros((n_groups, labels_nC.shape[1]))
    np.add.at(hist_KC, group, labels_nC)
    return _gap(hist_KC, labels_nC.sum(axis=0) / labels_nC.sum())


def _gap(hist_C: np.ndarray, share_C: np.ndarray) -> np.ndarray:
    """L1 of histograms (..., C), made shares, to the shares of all; of an empty one 0."""
    total = hist_C.sum(axis=-1, keepdims=True)
    return np.asarray(np.abs(hist_C / np.maximum(total, 1) - share_C * (total > 0)).sum(axis=-1))


def _search(
    cost_nK: np.ndarray, labels_nC: np.ndarray, group: np.ndarray, low: int, high: int, weight: float, seed: int
) -> np.ndarray:
    """Move devices one at a time, or two against each other, as long as the objective falls; devices come in a seeded order."""
    n_devices, n_groups = cost_nK.shape
    group = group.copy()
    share_C = labels_nC.sum(axis=0) / labels_nC.sum()
    labels = labels_nC.astype(np.float64)
    hist_KC = np.zeros((n_groups, labels.shape[1]))
    np.add.at(hist_KC, group, labels)
    sizes = np.bincount(group, minlength=n_groups).astype(np.float64)
    value_K = weight * sizes * _gap(hist_KC, share_C)
    order = rng_for(seed, "kma", "search").permutation(n_devices)
    for _ in range(_PASSES):
        n_moved = 0
        for i in order.tolist():
            a = int(group[i])
            left = weight * (sizes[a] - 1) * _gap(hist_KC[a] - labels[i], share_C) - value_K[a]
            joined_K = weight * (sizes + 1) * _gap(hist_KC + labels[i], share_C) - value_K
            more_K = cost_nK[i] - cost_nK[i, a] + joined_K + left
            more_K[a] = np.inf
            free_K = np.where((sizes < high) & (sizes[a] > low), more_K, np.inf)
            b = int(free_K.argmin())
            if free_K[b] < -_GAIN:
                moves = [(i, a, b)]
            else:
                # where the group is full, or this one would be too small, somebody comes back
                b = int(more_K.argmin())
                partners = np.flatnonzero(group == b)
                if not np.isfinite(more_K[b]) or not len(partners):
                    continue
                shift = labels[i] - labels[partners]
                swap = cost_nK[i, b] - cost_nK[i, a] + cost_nK[partners, a] - cost_nK[partners, b]
                swap = swap + weight * sizes[a] * _gap(hist_KC[a] - shift, share_C) - value_K[a]
                swap = swap + weight * sizes[b] * _gap(hist_KC[b] + shift, share_C) - value_K[b]
                j = int(swap.argmin())
                if not swap[j] < -_GAIN:
                    continue
                moves = [(i, a, b), (int(partners[j]), b, a)]
            for device, source, target in moves:
                group[device] = target
                hist_KC[source] -= labels[device]
                hist_KC[target] += labels[device]
                sizes[source] -= 1
                sizes[target] += 1
            value_K[[a, b]] = weight * sizes[[a, b]] * _gap(hist_KC[[a, b]], share_C)
            n_moved += 1
        if not n_moved:
            break
    return group
