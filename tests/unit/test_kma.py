"""Groups: what must hold whatever the numbers, Algorithm 1 read slowly, and the figures known for real data."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvtools.etree.data.labelled import read_labelled
from kvtools.etree.data.partition import histogram, partition
from kvtools.etree.network import graphs as network
from kvtools.etree.network.delay import Delays
from kvtools.etree.train.local import LocalTrainer
from kvtools.etree.train.models import build
from kvtools.etree.tree import kma
from kvtools.etree.tree.balanced import balanced, bounds
from kvtools.etree.tree.regroup import joined
from kvtools.etree.tree.tree import from_tensors, grow
from kvtools.world import World

METHODS = ["kma", "kma-code", "k-medoids", "accuracy-only", "random", "contiguous"]


def delays_of(n, seed):
    return delays_between(np.random.default_rng(seed).normal(size=(n, 2)))


def delays_between(points):
    matrix = np.sqrt(np.square(points[:, None] - points).sum(axis=2)).astype(np.float32)
    return Delays("matrix", np.arange(len(points)), np.zeros(len(points)), matrix=matrix)


@settings(max_examples=60, deadline=None)
@example("kma", 30, 5, 5, 0.05)  # a group that gives its device to an empty one gets another medoid
@given(st.sampled_from(METHODS), st.integers(5, 40), st.integers(1, 5), st.integers(0, 5), st.sampled_from([0.001, 0.05, 1]))
def test_groups_cover_every_device_once_and_hold_their_centres(method, n, k, seed, delta):
    delays, accuracy = delays_of(n, seed), np.random.default_rng(seed).random(n)
    groups = kma.cluster(method, delays, k, seed=seed, world=World(), accuracy=accuracy, delta=delta)
    assert groups.group.shape == (n,)
    assert groups.sizes.min() >= 1
    assert np.array_equal(groups.group[groups.centre], np.arange(k))
    for index in range(k):  # and each centre is the medoid of its group
        members = np.flatnonzero(groups.group == index)
        totals = delays.between(members, members).sum(axis=1)
        assert totals[members == groups.centre[index]][0] <= totals.min() + 1e-4


def test_with_every_difference_allowed_kma_is_k_medoids():
    for seed in range(5):
        delays, accuracy = delays_of(60, seed), np.random.default_rng(seed).random(60)
        wide = kma.cluster("kma-code", delays, 6, seed=seed, world=World(), accuracy=accuracy, delta=math.inf)
        plain = kma.cluster("k-medoids", delays, 6, seed=seed, world=World())
        assert np.array_equal(wide.group, plain.group)


def slow_sweep(apart, centre, accuracy, delta, order, *, is_listed):
    """Lines 6 to 17 of Algorithm 1, word by word, in float64."""
    n_groups = len(centre)
    centre, members = list(centre), [[] for _ in centre]
    if not is_listed:
        members = [[c] for c in centre]
    for i in order:
        if any(i in group for group in members):
            continue
        line = sorted(range(n_groups), key=lambda k: (apart[i][centre[k]], k))
        for k in line[: n_groups // 2]:
            trial = [*members[k], i]
            if abs(sum(accuracy[j] for j in trial) / len(trial) - accuracy.mean()) < delta:
                break
        else:
            k = line[0]
        members[k].append(i)
        if is_listed:
            centre[k] = min(members[k], key=lambda c: (sum(apart[c][j] for j in members[k]), c))
    return members, centre


@pytest.mark.parametrize("seed", range(6))
def test_a_sweep_is_that_of_algorithm_1(seed):
    n, k, delta = 30, 6, 0.06
    delays, accuracy = delays_of(n, seed), np.random.default_rng(seed).random(n)
    order = np.random.default_rng(seed + 9).permutation(n)
    first = kma.initial_centres(n, k, seed)
    apart = delays.matrix.astype(float)
    members, centre = slow_sweep(apart, first, accuracy, delta, order, is_listed=True)
    group, moved = kma._sweep_moving_centres(delays, first, accuracy, delta, order)
    assert [np.flatnonzero(group == index).tolist() for index in range(k)] == [sorted(listed) for listed in members]
    assert moved.tolist() == centre
    members, _ = slow_sweep(apart, first, accuracy, delta, order, is_listed=False)
    group = kma._sweep_fixed_centres(delays, first, accuracy, delta, order, is_near=True, world=World())
    assert [np.flatnonzero(group == index).tolist() for index in range(k)] == [sorted(listed) for listed in members]


def test_centres_that_come_back_end_the_search_with_the_best_sweep():
    groups = [kma.Groups(np.zeros(3, np.int32), np.array([c])) for c in range(3)]
    turns = iter([groups[1], groups[2], groups[1], groups[2]])
    costs = {0: 3.0, 1: 2.0, 2: 1.0}
    first = {"centres": np.array([[0]])}
    best = kma._until_converged(lambda _: next(turns), first, 100, lambda g: costs[int(g.centre[0])], lambda _: None)
    assert (best.cycle, best.n_sweeps, best.is_converged, best.centre.tolist()) == (2, 3, False, [2])


def test_more_groups_than_devices_are_refused():
    with pytest.raises(ValueError, match="9 groups cannot be made of 8 devices"):
        kma.cluster("k-medoids", delays_of(8, 0), 9, seed=0, world=World())


def test_gaps_can_be_computed_by_hand():
    groups = kma.Groups(np.array([0, 0, 1], np.int32), np.array([0, 2]))
    assert kma.accuracy_gaps(groups, np.array([0.2, 0.4, 0.9])) == pytest.approx([0.2, 0.4])
    l1, js = kma.label_gaps(groups, np.array([[1, 1], [1, 1], [4, 0]]))
    assert l1 == pytest.approx([0.5, 0.5])
    assert js[1] == pytest.approx((math.log(1 / 0.875) + 0.75 * math.log(0.75 / 0.875) + 0.25 * math.log(2)) / 2)


def test_public_devices_leave_every_group_within_delta():
    delays = delays_of(60, 3)
    groups = kma.cluster("k-medoids", delays, 4, seed=0, world=World())
    mean_delay = delays.between(np.arange(60), groups.centre).mean(axis=1)
    # the candidates are the central half, which learns better, so that all of them together would move every group's mean
    accuracy = np.random.default_rng(3).normal(0.5, 0.05, 60) + 0.2 * (mean_delay < np.median(mean_delay))

    def largest_gap(public):
        members = [np.union1d(np.flatnonzero(groups.group == index), public) for index in range(4)]
        return max(abs(accuracy[group].mean() - accuracy.mean()) for group in members)

    chosen = kma.public_devices(groups, delays, accuracy, 0.05, 0.5)
    candidates = kma.public_devices(groups, delays, accuracy, math.inf, 0.5)
    assert 0 < len(chosen) < len(candidates) == 30
    assert largest_gap(candidates) > 0.05
    assert largest_gap(chosen) < 0.05


def test_balanced_groups_keep_to_their_bounds_and_to_the_labels():
    labels = np.zeros((100, 10), np.int32)
    labels[np.arange(100), np.random.default_rng(0).permutation(np.arange(100) % 10)] = 20
    delays = delays_of(100, 3)
    groups_by_weight = {
        weight: balanced(delays, labels, 10, seed=0, world=World(), weight=weight) for weight in (0.0, 0.5, 0.9)
    }
    gaps = {weight: kma.label_gaps(groups, labels)[0].mean() for weight, groups in groups_by_weight.items()}
    for groups in groups_by_weight.values():
        low, high = bounds(100, 10, 0.2)
        assert low <= groups.sizes.min()
        assert groups.sizes.max() <= high
    assert gaps[0.9] <= gaps[0.5] < gaps[0.0]
    assert gaps[0.9] < 0.3


def test_trees_of_any_depth_have_their_centres_as_aggregators():
    delays = delays_of(80, 5)
    groups = kma.cluster("k-medoids", delays, 12, seed=0, world=World())
    tree = grow(groups, delays, [5, 2, 1], [1, 4, 4, 2, 1], 0, World())
    assert [len(tree.nodes(level)) for level in range(5)] == [80, 12, 5, 2, 1]
    for node in range(80, len(tree.parent)):
        children = np.flatnonzero(tree.parent == node)
        line = children[np.argsort(tree.order[children])]
        assert tree.order[line].tolist() == list(range(len(children)))
        assert tree.device[line[0]] == tree.device[node]


@pytest.mark.parametrize(("form", "least", "most"), [("shards:2", 0.55, 0.76), ("classes:1", 0.7, 1.1)])
def test_on_real_data_kma_leaves_labels_as_k_medoids_does(data, form, least, most):
    """Known for the authors' graph and the first 10,000 of MNIST, K = 10, three seeds of somebody else's random numbers:
    label gaps of 0.55, 0.76 and 0.71 for k-medoids, 0.55, 0.76 and 0.70 for KMA at delta = 0.05. Ours draw other partitions and
    centres, so the range is theirs give or take 0.12, and the claim is that KMA changes little. At one class a device
    accuracies of 0.107 +- 0.023: no signal."""
    labelled = read_labelled(str(data / "fl" / "mnist"))
    with open(data / "net" / "etree_authors" / "data100.in", "rb") as file:
        delays, _ = network.read_graph(file, "data100.in")
    train, gaps = labelled.train, []
    for seed in range(3):
        index, offsets = partition(form, train.y, 100, seed)
        labels = histogram(train.y, index, offsets, 10)
        model = build("softmax", labelled.shape, 10)
        trainer = LocalTrainer(model, train.x, train.y, index, offsets, 10, 0.05, seed)
        accuracy = trainer.local_accuracies(np.arange(100), 10, labelled.test.x[:2000], labelled.test.y[:2000])
        if form == "classes:1":
            assert accuracy.mean() == pytest.approx(0.107, abs=0.02)
        by_method = [
            kma.cluster(m, delays, 10, seed=seed, world=World(), accuracy=accuracy) for m in ("k-medoids", "kma", "kma-code")
        ]
        gaps.append([kma.label_gaps(groups, labels)[0].mean() for groups in by_method])
    gaps = np.array(gaps)
    assert gaps.min() > least - 0.12, gaps
    assert gaps.max() < most + 0.12, gaps
    assert np.abs(gaps[:, 1:] - gaps[:, :1]).max() < 0.15, gaps


@pytest.mark.parametrize(("n_new", "slack"), [(6, 3.0), (30, 0.1)])
def test_devices_that_join_change_only_the_groups_they_join(n_new, slack):
    rng = np.random.default_rng(5)
    points = rng.normal(size=(80, 2))
    # beside four devices, so that groups are left that nobody joins
    delays = delays_between(np.concatenate([points, points[rng.integers(0, 4, n_new)] + rng.normal(0, 0.01, (n_new, 2))]))
    old = delays.take(np.arange(80))
    tree = grow(kma.cluster("k-medoids", old, 8, seed=0, world=World()), old, [3, 1], [1, 4, 2, 1], 0, World())
    joined_tree = joined(tree, delays, slack, 0, World())
    from_tensors(joined_tree.tensors())  # as strictly as a tree is read
    nearest = delays.nearest(tree.device[tree.nodes(1)].astype(np.int64), np.arange(80, 80 + n_new))
    untouched = np.flatnonzero(~np.isin(tree.group, nearest))
    assert 0 < len(untouched) < 80
    assert np.array_equal(joined_tree.group[untouched], tree.group[untouched])
    assert np.array_equal(joined_tree.order[untouched], tree.order[untouched])
    sizes = np.bincount(joined_tree.group)
    if slack > 1:
        assert len(sizes) == 8
        assert np.array_equal(joined_tree.group[80:], nearest)
    else:
        assert len(sizes) > 8
    for k in range(len(sizes)):
        members = np.flatnonzero(joined_tree.group == k)
        node = 80 + n_new + k
        assert joined_tree.order[joined_tree.device[node]] == 0
        assert sorted(joined_tree.order[members].tolist()) == list(range(len(members)))


def test_nobody_joins_and_nothing_changes():
    delays = delays_of(40, 2)
    tree = grow(kma.cluster("k-medoids", delays, 5, seed=0, world=World()), delays, [1], [1, 4, 1], 0, World())
    joined_tree = joined(tree, delays, 0.2, 0, World())
    assert all(np.array_equal(array, joined_tree.tensors()[name]) for name, array in tree.tensors().items())
    with pytest.raises(ValueError, match="there are 39 devices, and the tree has 40"):
        joined(tree, delays.take(np.arange(39)), 0.2, 0, World())
