"""Training over trees, against slow, obvious versions in float64; nothing depends on chunks, threads or ranks."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtools.etree.data.model_files import build_model
from kvtools.etree.network.delay import Delays
from kvtools.etree.network.traffic import Queues
from kvtools.etree.train.costs import CostModel
from kvtools.etree.train.decentralised import DecentralisedSimulation
from kvtools.etree.train.failures import Event, Status, read_script, status_at
from kvtools.etree.train.local import LocalTrainer, shuffled
from kvtools.etree.train.models import Conv, Dense, build
from kvtools.etree.train.simulation import TreeSimulation
from kvtools.etree.tree import kma
from kvtools.etree.tree.regroup import changed_groups, regrouped
from kvtools.etree.tree.tree import Tree, grow, star, two_levels
from kvtools.world import World

N, D, C = 24, 6, 4


def fleet(seed=0, sizes=None):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 30, N) if sizes is None else sizes
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x = rng.normal(size=(offsets[-1], D)).astype(np.float32)
    y = rng.integers(0, C, offsets[-1])
    points = rng.uniform(0, 40, (N, 2))
    delay = np.sqrt(np.square(points[:, None] - points).sum(axis=2)).astype(np.float32)
    return x, y, rng.permutation(offsets[-1]), offsets, Delays("matrix", np.arange(N), np.zeros(N), matrix=delay)


def trainer_of(parts, model=None, **options):
    x, y, index, offsets, _ = parts
    return LocalTrainer(model or Dense((D, C)), x, y, index, offsets, **{"batch": 7, "lr": 0.1, "seed": 3, **options})


def tree_of(delays, k=5, above=(1,), ratios=(1, 2, 1)):
    return grow(kma.cluster("k-medoids", delays, k, seed=0, world=World()), delays, list(above), list(ratios), 0, World())


def simulation_of(parts, tree, weights="samples", model=None, costs=None, **options):
    more = {name: options.pop(name) for name in ("has_root", "quorum", "late_updates", "regroup") if name in options}
    trainer = trainer_of(parts, model, **options)
    return TreeSimulation(tree, parts[4], trainer, costs or CostModel(), weights, tree.group, World(), **more)


def go(simulation, n_steps, script=""):
    events = read_script(script, simulation.tree, 0) if script else []
    for _ in range(n_steps):
        simulation.step(status_at(events, simulation.tree, simulation.costs.steps + 1))
    return simulation


def slow_local(weights, x, y, order, batch, rate):
    """Softmax regression by plain SGD, float64; weights (D, C) and (C,)."""
    w, b = weights[0].copy(), weights[1].copy()
    for begin in range(0, len(order), batch):
        some = order[begin : begin + batch]
        z = x[some].astype(np.float64) @ w + b
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(some)), y[some]] -= 1
        w -= rate * x[some].T.astype(np.float64) @ p / len(some)
        b -= rate * p.sum(axis=0) / len(some)
    return w, b


def slow_tree(parts, tree, n_steps, weights):
    """The schedule as its pseudocode reads: a model at every leaf, overwritten by every push."""
    x, y, index, offsets, _ = parts
    sizes = np.diff(offsets)
    leaf = [(np.zeros((D, C)), np.zeros(C)) for _ in range(N)]
    below = [np.array([n]) for n in range(N)]
    for node in range(N, len(tree.parent)):
        below.append(np.concatenate([below[child] for child in np.flatnonzero(tree.parent == node)]))
    model = {}
    for step in range(1, n_steps + 1):
        for device in range(N):
            for epoch in range(int(tree.ratios[0])):
                order = shuffled(3, step, epoch, np.array([device]), sizes[[device]])[0]
                rows = index[offsets[device] + order]
                leaf[device] = slow_local(leaf[device], x, y, rows, 7, 0.1)
        for level in range(1, tree.n_levels + 1):
            if step % math.prod(tree.ratios[1:level].tolist()):
                break
            for node in tree.nodes(level).tolist():
                children = np.flatnonzero(tree.parent == node).tolist()
                parts_of = [leaf[c] if level == 1 else model[c] for c in children]
                count = [float(sizes[below[c]].sum()) if weights == "samples" else 1.0 for c in children]
                model[node] = tuple(sum(w * p[i] for w, p in zip(count, parts_of, strict=True)) / sum(count) for i in (0, 1))
                for device in below[node].tolist():
                    leaf[device] = model[node]
    return model[len(tree.parent) - 1]


@pytest.mark.parametrize("weights", ["samples", "uniform"])
@pytest.mark.parametrize(("k", "above", "ratios"), [(5, (1,), (1, 3, 1)), (8, (3, 1), (2, 2, 2, 1)), (1, (), (1, 1))])
def test_a_tree_trains_as_its_pseudocode_reads(weights, k, above, ratios):
    parts = fleet()
    tree = tree_of(parts[4], k, above, ratios)
    simulation = simulation_of(parts, tree, weights)
    go(simulation, 2 * simulation.round_steps)
    w, b = slow_tree(parts, tree, 2 * simulation.round_steps, weights)
    # float32 against float64, a few dozen steps
    assert simulation.root_P == pytest.approx(np.concatenate([w.reshape(-1), b]), abs=2e-5)


def test_a_tree_of_one_group_and_a_tree_of_ones_are_fedavg():
    parts = fleet()
    flat = simulation_of(parts, star(tree_of(parts[4]), parts[4].server()))
    deep = simulation_of(parts, tree_of(parts[4], 8, (3, 1), (1, 1, 1, 1)))
    one = simulation_of(parts, tree_of(parts[4], 1, (), (1, 1)))
    for simulation in (flat, deep, one):
        go(simulation, 5)
    # float32 weights kept between steps; sums in float64
    assert deep.root_P == pytest.approx(flat.root_P, abs=1e-6)
    assert np.array_equal(one.root_P, flat.root_P)


def test_uniform_weights_differ_where_groups_do():
    parts = fleet()
    tree = tree_of(parts[4], 5, (1,), (1, 1, 1))
    assert np.abs(go(simulation_of(parts, tree), 2).root_P - go(simulation_of(parts, tree, "uniform"), 2).root_P).max() > 1e-4


@pytest.mark.parametrize("model", [Dense((D, C)), Dense((D, 9, C)), Dense((D, 8, 5, C))])
def test_chunks_and_threads_change_nothing(model):
    parts = fleet()
    tree = tree_of(parts[4])
    rows = [
        go(simulation_of(parts, tree, model=model, chunk=c, n_threads=t), 4).root_P
        for c, t in ((1, 1), (5, 1), (5, 2), (64, 2))
    ]
    for other in rows[1:]:
        assert other == pytest.approx(rows[0], abs=1e-6)


@pytest.mark.parametrize("model", [Dense((D, C)), Dense((D, 7, C)), Dense((D, 7, 5, C)), Conv((1, 16, 16), C)])
def test_steps_go_down_the_slope_that_finite_differences_show(model):
    rng = np.random.default_rng(0)
    shape = (D,) if isinstance(model, Dense) else model.shape
    x, y = torch.from_numpy(rng.normal(size=(2, 6, *shape))), torch.from_numpy(rng.integers(0, C, (2, 6)))
    weight = torch.full((2, 6), 1 / 6, dtype=torch.float64)
    weight[1, 4:] = 0
    rows = torch.from_numpy(rng.normal(size=(2, model.n_parameters)) * 0.3)
    moved = rows.clone()
    model.sgd(moved, 1.0)(x, y, weight)
    slope = rows - moved

    def loss(device, row):
        terms = torch.nn.functional.cross_entropy(model.logits(row[None], x[device])[0], y[device], reduction="none")
        return float((terms * weight[device]).sum())

    for device in (0, 1):
        for place in rng.permutation(model.n_parameters)[:40].tolist():
            up, down = rows[device].clone(), rows[device].clone()
            up[place] += 1e-6
            down[place] -= 1e-6
            assert float(slope[device, place]) == pytest.approx((loss(device, up) - loss(device, down)) / 2e-6, abs=1e-6)


def test_a_cnn_trains_over_a_tree_whatever_the_chunk():
    x, y, index, offsets, delays = fleet(sizes=np.full(N, 12))
    x = np.random.default_rng(1).normal(size=(len(y), 1, 16, 16)).astype(np.float32)
    x[np.arange(len(y)), 0, y, y] += 8
    parts, tree = (x, y, index, offsets, delays), tree_of(delays)
    rows = [go(simulation_of(parts, tree, model=Conv((1, 16, 16), C), chunk=chunk), 4) for chunk in (1, 5)]
    assert rows[0].root_P == pytest.approx(rows[1].root_P, abs=1e-6)
    test = torch.from_numpy(x), torch.from_numpy(y)
    before, after = (
        rows[0].trainer.evaluate(torch.from_numpy(row[None]), *test)[1]
        for row in (Conv((1, 16, 16), C).init(3), rows[0].root_P)
    )
    assert after < before


@pytest.mark.parametrize("words", ["softmax", "mlp:7", "cnn"])
def test_named_weights_are_those_that_torch_computes_with(words):
    model = build(words, (1, 16, 16), C)
    rng = np.random.default_rng(0)
    row = (0.2 * rng.normal(size=model.n_parameters)).astype(np.float32)
    x = torch.from_numpy(rng.normal(size=(5, 1, 16, 16)).astype(np.float32))
    w = {name: torch.from_numpy(array) for name, array in model.named(row).items()}
    f = torch.nn.functional
    if words == "cnn":
        h = f.max_pool2d(f.conv2d(x, w["conv1.weight"], w["conv1.bias"]).relu(), 2)
        h = f.max_pool2d(f.conv2d(h, w["conv2.weight"], w["conv2.bias"]).relu(), 2).flatten(1)
        expected = f.linear(f.linear(h, w["fc1.weight"], w["fc1.bias"]).relu(), w["fc2.weight"], w["fc2.bias"])
    else:
        h = f.linear(x.flatten(1), w["0.weight"], w["0.bias"])
        expected = h if words == "softmax" else f.linear(h.relu(), w["2.weight"], w["2.bias"])
    assert torch.allclose(model.logits(torch.from_numpy(row[None]), x)[0], expected, atol=1e-4)


def test_orders_are_permutations_that_depend_on_everything_they_should():
    sizes = np.array([5, 9, 9])
    order = shuffled(1, 2, 0, np.array([4, 7, 8]), sizes)
    assert [sorted(row[:n]) for row, n in zip(order.tolist(), sizes, strict=True)] == [list(range(n)) for n in sizes]
    assert np.array_equal(shuffled(1, 2, 0, np.array([7]), sizes[1:2])[0], order[1])
    others = [shuffled(2, 2, 0, np.array([7]), sizes[1:2]), shuffled(1, 3, 0, np.array([7]), sizes[1:2])]
    others += [shuffled(1, 2, 1, np.array([7]), sizes[1:2]), order[2:3]]
    assert all(not np.array_equal(other[0], order[1]) for other in others)


def test_time_and_bytes_can_be_added_up_by_hand():
    delay = np.array([[0, 3, 10, 9], [3, 0, 11, 8], [10, 11, 0, 4], [9, 8, 4, 0]], np.float32)
    delays = Delays("matrix", np.arange(4), np.zeros(4), matrix=delay)
    tree = Tree(*(np.array(v, np.int32) for v in (
        [4, 4, 5, 5, 6, 6, -1], [0, 0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 0, 2, 0], [1, 2, 1], [0, 1, 0, 1, 0, 1, 0], []
    )))  # fmt: skip
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, D)).astype(np.float32), rng.integers(0, C, 40)
    parts = (x, y, np.arange(40), np.arange(5) * 10, delays)
    size = 4 * (D * C + C)
    simulation = go(simulation_of(parts, tree, costs=CostModel(compute=0.001)), 1)
    # ten samples at 1 ms; up and down 3 ms or 4 ms, whoever is slower; two models up, two down
    assert simulation.costs.seconds == pytest.approx(0.010 + 0.004 + 0.004)
    assert (simulation.costs.n_bytes, simulation.costs.wan_bytes) == (4 * size, 0)
    go(simulation, 1)
    # then up 4, up 10, down 10, down 4; down once only, from the top
    assert simulation.costs.seconds == pytest.approx(0.018 + 0.010 + 0.004 + 0.010 + 0.010 + 0.004)
    assert (simulation.costs.n_bytes, simulation.costs.wan_bytes) == (10 * size, 2 * size)
    alone = go(simulation_of(parts, tree, costs=CostModel(compute=0.001, barrier="subtree")), 1)
    assert alone.ready_n == pytest.approx([0.013, 0.016, 0.014, 0.018])
    # a server whose link takes 1 s a model: three in, three out
    flat = go(simulation_of(parts, star(tree, 0), costs=CostModel(bandwidth=8 * size)), 1)
    assert flat.costs.seconds == pytest.approx(0.010 + 3 + 3 + 0.010)
    assert flat.costs.n_bytes == 6 * size


def test_messages_queue_where_many_pass():
    """A star of five around node 0, and node 6 behind node 5: worked out by hand."""
    ends = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [5, 6]], np.int32)
    ms = np.ones(6, np.float32)
    delays = Delays("matrix", np.arange(7), np.zeros(7), matrix=np.zeros((7, 7), np.float32))
    queues = Queues(delays, (ends, ms))
    # five to node 0: the sixth comes by node 5; node 0 has a load of six, two beyond two twice over
    assert queues.travel_ms(np.arange(1, 7), np.zeros(6, int)) == pytest.approx([106 + 200] * 5 + [2 * 106 + 200])
    # two at most wait for nobody; to oneself it takes nothing
    assert queues.travel_ms(np.array([1, 2, 3]), np.array([0, 0, 3])) == pytest.approx([106, 106, 0])
    # without edges all are one hop delay
    assert Queues(delays, None).travel_ms(np.array([1, 2, 6]), np.array([0, 0, 0])) == pytest.approx([206] * 3)


def test_hierfavg_is_the_tree_with_the_server_on_top():
    parts = fleet()
    tree = tree_of(parts[4], 5, (1,), (1, 3, 1))
    other = two_levels(tree, parts[4].server())
    assert np.array_equal(go(simulation_of(parts, tree), 3).root_P, go(simulation_of(parts, other), 3).root_P)


def test_gossip_d_psgd_and_individual_keep_the_mean_of_what_they_should():
    parts = fleet()
    for algorithm in ("gossip", "d-psgd", "individual"):
        trainer = trainer_of(parts)
        simulation = DecentralisedSimulation(algorithm, 1, 2, parts[4], trainer, CostModel(), np.arange(N) % 3, World())
        simulation.step()
        alone = torch.zeros(N, trainer.model.n_parameters)
        start = torch.from_numpy(trainer.model.init(3)[None])
        for chunk in trainer.train(start, np.arange(N), np.zeros(N, np.int64), 1, 1):
            alone[torch.from_numpy(chunk.jobs)] = chunk.rows
        # all begin alike, and what is mixed afterwards has one mean
        assert simulation.mean() == pytest.approx(alone.double().mean(dim=0).numpy(), abs=1e-6)
        expected = {"gossip": N, "d-psgd": 2 * N, "individual": 0}[algorithm]
        assert simulation.costs.n_bytes == expected * simulation.meter.model_bytes


WORDS = [
    "leaf:30%@2", "leaf:60%@2-4", "aggregator:1@1", "aggregator:1@3-5", "aggregator:2@2", "aggregator:3@4", "root@2-3",
    "partition@2-5", "late:30%@2-6", "join:20%@3", "repeat:50%@1-7", "reorder@1-8",
]  # fmt: skip
SCRIPTS = [
    "leaf:20%@2", "leaf:3@2-3", "aggregator:1@2", "aggregator:1@2-3", "aggregator:2@3", "aggregator:3@4", "root@2", "root@4-5",
    "partition@2-5", "late:30%@2-3", "leaf:10%@1,aggregator:1@3,root@5,partition@6-7,late:2@8",
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("late_updates", ["drop", "carry"])
def test_scripts_end_and_can_be_replayed_to_the_bit(script, late_updates):
    parts = fleet()
    tree = tree_of(parts[4], 6, (3, 1), (1, 2, 2, 1))
    healthy = go(simulation_of(parts, tree), 12)
    degraded = [go(simulation_of(parts, tree, late_updates=late_updates), 12, script) for _ in range(2)]
    assert np.array_equal(degraded[0].root_P, degraded[1].root_P)
    assert degraded[0].costs == degraded[1].costs
    assert np.isfinite(degraded[0].root_P).all()
    assert 0 < np.abs(degraded[0].root_P - healthy.root_P).max() < 0.5
    assert degraded[0].costs.seconds > healthy.costs.seconds


def test_a_run_continues_from_its_state_with_late_updates_on_their_way():
    parts = fleet()
    tree = tree_of(parts[4], 5, (1,), (1, 2, 1))
    whole = go(simulation_of(parts, tree, late_updates="carry"), 6, "late:5@4")
    half = go(simulation_of(parts, tree, late_updates="carry"), 4, "late:5@4")
    assert len(half.late) == 5
    other = simulation_of(parts, tree, late_updates="carry")
    other.restore(half.state())
    other.meter.costs = half.costs
    assert np.array_equal(go(other, 2, "late:5@4").root_P, whole.root_P)


def test_updates_of_failed_and_late_devices_do_not_count():
    parts = fleet()
    tree = tree_of(parts[4], 5, (1,), (1, 1, 1))
    for script, what in (("leaf:4@1", "failed_n"), ("late:4@1", "late_n")):
        status = status_at(read_script(script, tree, 0), tree, 1)
        gone = getattr(status, what)
        assert gone.sum() == 4
        simulation = simulation_of(parts, tree)
        simulation.step(status)
        rows = torch.zeros(N, simulation.trainer.model.n_parameters)
        for chunk in simulation.trainer.train(torch.zeros(1, rows.shape[1]), np.arange(N), np.zeros(N, np.int64), 1, 1):
            rows[torch.from_numpy(chunk.jobs)] = chunk.rows
        weight = simulation.weight_n * ~gone
        assert simulation.root_P == pytest.approx(weight / weight.sum() @ rows.double().numpy(), abs=1e-6)


def test_the_next_in_the_succession_takes_over_and_gives_back():
    parts = fleet()
    tree = tree_of(parts[4], 5, (1,), (1, 1, 1))
    events = read_script("root@2-3", tree, 0)
    root = int(tree.device[-1])
    roles = [status_at(events, tree, step).role_devices(tree) for step in (1, 2, 3, 4)]
    assert roles[0][-1] == roles[3][-1] == root
    group = tree.parent[root]
    line = np.flatnonzero(tree.parent == group)
    second = int(tree.device[line[tree.order[line] == 1][0]]) if len(line) > 1 else -1
    assert roles[1][group] == roles[2][group] == second
    assert roles[1][-1] != root


def test_without_a_quorum_the_model_stays():
    parts = fleet()
    tree = tree_of(parts[4], 5, (1,), (1, 1, 1))
    simulation = go(simulation_of(parts, tree, quorum=0.9), 1)
    before = simulation.root_P.copy()
    logged = []
    simulation.log = logged.append
    go(simulation, 1, "partition@2-2")
    assert np.array_equal(simulation.root_P, before)
    assert logged == ["step 2: level 2: 3 of 5 updates arrived; the model stays"]


EVENTS = (
    "events are leaf:10%@5, aggregator:1@8, root@12, late:5@3-4, partition@15-18, join:3@4, repeat:10%@5 and reorder@5-8, "
    "between commas"
)
NO_SCRIPTS = {
    "leaf:10%": f"'leaf:10%' is no event; {EVENTS}",
    "leaf@3": f"'leaf@3' is no event; {EVENTS}",
    "nobody@2": f"'nobody@2' is no event; {EVENTS}",
    "": f"the script is empty; {EVENTS}",
    "aggregator:9@2": "'aggregator:9@2': the tree has aggregators on levels 1 to 2",
    "root@0": "'root@0': steps are counted from 1, and a range does not end before it begins",
    "leaf:1@5-3": "'leaf:1@5-3': steps are counted from 1, and a range does not end before it begins",
    "leaf:200%@1": "'leaf:200%@1': more than 100% of the devices cannot be drawn",
    "join:2@3-5": "'join:2@3-5': join takes one step, from which on the devices are there",
}


@pytest.mark.parametrize("script", NO_SCRIPTS)
def test_other_scripts_are_refused(script):
    with pytest.raises(ValueError, match=f"^{re.escape(NO_SCRIPTS[script])}$"):
        read_script(script, tree_of(fleet()[4]), 0)


def test_public_devices_train_for_every_group_and_count_once():
    parts = fleet()
    tree = tree_of(parts[4], 4, (1,), (1, 1, 1))
    public = np.array([0, 5], np.int32)
    shared = Tree(tree.parent, tree.level, tree.device, tree.ratios, tree.order, public)
    # with ratios of one all groups begin alike, so a device that trains for each says the same to each: FedAvg again
    assert go(simulation_of(parts, shared), 2).root_P == pytest.approx(go(simulation_of(parts, tree), 2).root_P, abs=1e-6)


def test_repeated_messages_cost_their_bytes_and_time_and_change_no_bit():
    parts = fleet()
    tree = star(tree_of(parts[4]), parts[4].server())
    costs = CostModel(bandwidth=1e6)
    once = simulation_of(parts, tree, costs=costs)
    twice = simulation_of(parts, tree, costs=costs)
    for step in (1, 2, 3, 4):
        before = twice.costs.n_bytes, twice.costs.seconds, once.costs.seconds
        go(once, 1)
        go(twice, 1, "repeat:100%@2")
        assert np.array_equal(twice.root_P, once.root_P)
        # a message of step 2 arrives twice in it, and once more in step 3
        assert twice.costs.n_bytes - before[0] == (4 if step in (2, 3) else 2) * (N - 1) * twice.meter.model_bytes
        is_slower = twice.costs.seconds - before[1] > once.costs.seconds - before[2] + 1e-9
        assert is_slower == (step in (2, 3))


def test_reordered_messages_change_nothing():
    parts = fleet()
    runs = [
        go(simulation_of(parts, tree_of(parts[4]), costs=CostModel(bandwidth=1e6)), 8, script) for script in ("", "reorder@1-8")
    ]
    assert np.array_equal(runs[0].root_P, runs[1].root_P)
    assert runs[0].costs == runs[1].costs


def test_a_device_that_joins_counts_from_then_on():
    parts = fleet()
    tree = tree_of(parts[4], 5, (1,), (1, 1, 1))
    events = read_script("join:4@3", tree, 0)
    absent = events[0].targets
    for step in (1, 2, 3):
        status = status_at(events, tree, step)
        assert status.counts(N)[absent].all() == (step == 3)
        assert not status.trains(N)[absent].any() or step == 3


def test_devices_of_a_dissolved_group_join_the_nearest_and_no_other_moves():
    parts = fleet()
    tree = tree_of(parts[4], 5, (1,), (1, 1, 1))
    group = int(np.bincount(tree.group).argmax())
    members = np.flatnonzero(tree.group == group)
    dead = np.zeros(N, bool)
    dead[members[2:]] = True
    roles = Status(dead, np.zeros(N, bool), np.zeros(N, bool), np.zeros(len(tree.parent), bool)).role_devices(tree)
    now = regrouped(tree, parts[4], dead, roles, 0.5)
    moved = np.flatnonzero(now.parent[:N] != tree.parent[:N])
    assert np.array_equal(moved, members[:2])
    others = [k for k in range(5) if k != group]
    for device in members[:2].tolist():
        delay = [parts[4].between(np.array([device]), roles[[N + k]])[0, 0] for k in others]
        assert now.group[device] == others[int(np.argmin(delay))]
    touched = {group, *now.group[members[:2]].tolist()}
    assert set(changed_groups(tree, now).tolist()) == touched
    untouched = ~np.isin(tree.group, list(touched))
    assert np.array_equal(now.order[:N][untouched], tree.order[:N][untouched])
    assert np.array_equal(now.parent[N:], tree.parent[N:])
    # nothing changes where enough of them live
    assert regrouped(tree, parts[4], dead, roles, 1 / N) is tree


def test_dissolved_groups_come_back_with_the_model_of_their_hosts():
    parts = fleet()
    tree = tree_of(parts[4], 5, (1,), (1, 4, 1))
    group = int(np.bincount(tree.group).argmax())
    members = np.flatnonzero(tree.group == group)
    aggregators = set(tree.device[N:].tolist())
    event = Event("failed", np.array([device for device in members.tolist() if device not in aggregators]), 2, 3)
    logged = []
    runs = []
    for chunk in (1, 64):
        simulation = simulation_of(parts, tree, chunk=chunk, regroup=0.9)
        simulation.log = logged.append
        for step in range(1, 9):
            simulation.step(status_at([event], tree, step))
            if step == 3:
                host = simulation.current.group[next(device for device in members.tolist() if device in aggregators)]
                assert host != group
                assert torch.equal(simulation.models_GP[group], simulation.models_GP[host])
        assert simulation.current is tree
        runs.append(simulation)
    assert runs[0].root_P == pytest.approx(runs[1].root_P, abs=1e-6)
    assert logged[0] == f"step 2: group {min(group, host)}: {np.bincount(tree.group)[min(group, host)]} devices before, " + (
        "0 now" if group < host else f"{np.bincount(tree.group)[host] + 1} now"
    )
    assert any(words.startswith("step 4: group") for words in logged)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), st.integers(0, 3), st.sampled_from(["drop", "carry"]))
def test_any_script_ends_and_can_be_replayed_to_the_bit(words, seed, late_updates):
    """Assertions inside check, at every aggregation, that weights are those of the updates that arrived, each once."""
    parts = fleet(seed)
    tree = tree_of(parts[4], 6, (3, 1), (1, 2, 2, 1))
    options = {"late_updates": late_updates, "regroup": 0.6, "quorum": 0.2}
    runs = [go(simulation_of(parts, tree, chunk=chunk, **options), 8, ",".join(words)) for chunk in (7, 7, 64)]
    assert np.array_equal(runs[0].root_P, runs[1].root_P)
    assert runs[0].costs == runs[1].costs
    assert runs[0].root_P == pytest.approx(runs[2].root_P, abs=1e-6)
    assert np.isfinite(runs[0].root_P).all()


def recipe(path, *layers):
    path.write_text("".join(f"[[layers]]\n{layer}\n" for layer in layers))
    return str(path)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_a_recipe_of_linear_layers_trains_as_the_mlp_does(tmp_path, chunk):
    parts, tree = fleet(), tree_of(fleet()[4])
    words = recipe(
        tmp_path / "m.toml", 'kind = "linear"\nwidth = 9', 'kind = "relu"', 'kind = "linear"\nwidth = 5', 'kind = "relu"'
    )
    runs = [go(simulation_of(parts, tree, model=build_model(name, (D,), C, 3), chunk=chunk), 4) for name in (words, "mlp:9,5")]
    one, other = (run.trainer.model.named(run.root_P) for run in runs)
    assert list(one) == list(other)
    for name, array in one.items():
        assert array == pytest.approx(other[name], abs=1e-6)
    tests = torch.from_numpy(parts[0]), torch.from_numpy(parts[1])
    logged = [run.trainer.evaluate(torch.from_numpy(run.root_P[None]), *tests)[1][0] for run in runs]
    assert logged[0] == pytest.approx(logged[1], abs=1e-6)


def test_a_recipe_of_convolutions_takes_the_steps_of_the_cnn(tmp_path):
    conv, pool = 'kind = "conv"\nkernel = 5\nchannels = {}', 'kind = "max-pool"\nsize = 2'
    layers = [conv.format(6), 'kind = "relu"', pool, conv.format(16), 'kind = "relu"', pool]
    words = recipe(tmp_path / "m.toml", *layers, 'kind = "linear"\nwidth = 64', 'kind = "relu"')
    x, y, index, offsets, delays = fleet(sizes=np.full(N, 8))
    x = np.random.default_rng(1).normal(size=(len(y), 1, 16, 16)).astype(np.float32)
    parts, tree = (x, y, index, offsets, delays), tree_of(delays)
    runs = [go(simulation_of(parts, tree, model=build_model(name, (1, 16, 16), C, 3)), 2) for name in (words, "cnn")]
    one, other = (list(run.trainer.model.named(run.root_P).values()) for run in runs)
    for array, expected in zip(one, other, strict=True):
        assert array == pytest.approx(expected, abs=1e-5)


def test_norms_and_modules_of_ones_own_train_whatever_the_chunk(tmp_path):
    kinds = ['kind = "conv"\nkernel = 3\nchannels = 4\npadding = 1', 'kind = "group-norm"\ngroups = 2', 'kind = "gelu"']
    words = recipe(tmp_path / "m.toml", *kinds, 'kind = "mean-pool"\nsize = 4', 'kind = "flatten"', 'kind = "layer-norm"')
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\ndef net(shape, n_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * 64, 5), nn.Tanh(), nn.Linear(5, n_classes))\n"
    )
    x, y, index, offsets, delays = fleet()
    x = np.random.default_rng(1).normal(size=(len(y), 1, 8, 8)).astype(np.float32)
    parts, tree = (x, y, index, offsets, delays), tree_of(delays)
    for name in (words, f"{tmp_path}/own.py:net"):
        runs = [
            go(simulation_of(parts, tree, model=build_model(name, (1, 8, 8), C, 7), chunk=c, n_threads=t), 2)
            for c, t in ((3, 2), (64, 1))
        ]
        assert runs[0].root_P == pytest.approx(runs[1].root_P, abs=1e-6)
        assert np.array_equal(build_model(name, (1, 8, 8), C, 7).init(7), build_model(name, (1, 8, 8), C, 7).init(7))


NET = "from torch import nn\nnet = lambda s, n: "
KINDS = "linear, conv, max-pool, mean-pool, group-norm, layer-norm, relu, gelu, tanh, flatten"
NO_MODELS = {
    "no recipe": ("m.toml", "x = 1", "a recipe holds `layers` alone, and this one holds x"),
    "no TOML": ("m.toml", "layers = [", "the file is not TOML: Invalid value (at end of document)"),
    "no such kind": (
        "m.toml", '[[layers]]\nkind = "lstm"', f"layer 1, given samples of shape (6,): kind 'lstm' is none of {KINDS}",
    ),
    "no such size": (
        "m.toml", '[[layers]]\nkind = "relu"\nwidth = 3', "layer 1, given samples of shape (6,): relu has no width",
    ),
    "no size": (
        "m.toml", '[[layers]]\nkind = "linear"',
        "layer 1, given samples of shape (6,): width is None, and a whole number up to 65536 is needed",
    ),
    "too large": (
        "m.toml", '[[layers]]\nkind = "linear"\nwidth = 1000000000',
        "layer 1, given samples of shape (6,): width is 1000000000, and a whole number up to 65536 is needed",
    ),
    "no function": ("m.py:net", "x = 1", "{folder}/m.py has no function net"),
    "no module": ("m.py:net", "net = lambda shape, n: 3", "the function returned int, and a torch.nn.Module is needed"),
    "running means": (
        "m.py:net", f"{NET}nn.Sequential(nn.Linear(s[0], n), nn.BatchNorm1d(n))",
        "the module has buffers (1.running_mean), which devices would share",
    ),
    "dropout": (
        "m.py:net", f"{NET}nn.Sequential(nn.Linear(s[0], n), nn.Dropout())",
        "the module has dropout, whose random numbers would depend on chunks",
    ),
    "other classes": (
        "m.py:net", f"{NET}nn.Linear(s[0], n + 1)",
        "the module returned shape (2, 5) for two samples, and (2, 4) is needed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model_is_refused(tmp_path, name):
    path, text, message = NO_MODELS[name]
    (tmp_path / path.partition(":")[0]).write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(message.format(folder=tmp_path))}$"):
        build_model(f"{tmp_path}/{path}", (D,), C, 0)


def test_a_convolution_of_rows_is_refused_by_layer_and_shape(tmp_path):
    (tmp_path / "m.toml").write_text('[[layers]]\nkind = "conv"\nchannels = 2\nkernel = 3')
    with pytest.raises(ValueError, match=r"^layer 1, given samples of shape \(6,\): conv does not take samples of that shape$"):
        build_model(f"{tmp_path}/m.toml", (D,), C, 0)
