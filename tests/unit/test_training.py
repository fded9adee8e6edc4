"""Training over trees, against slow, obvious versions in float64; nothing depends on chunks, threads or ranks."""

import math

import numpy as np
import pytest
import torch

from kvtools.etree import kma
from kvtools.etree.course import Costs, TreeCourse, star, two_levels
from kvtools.etree.delay import Delays
from kvtools.etree.failures import read_script, status_at
from kvtools.etree.local import Trainer, shuffled
from kvtools.etree.models import Conv, Dense, build
from kvtools.etree.peers import PeerCourse
from kvtools.etree.traffic import Queues
from kvtools.etree.tree import Tree, grow

N, D, C = 24, 6, 4


def world(seed=0, sizes=None):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 30, N) if sizes is None else sizes
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x = rng.normal(size=(offsets[-1], D)).astype(np.float32)
    y = rng.integers(0, C, offsets[-1])
    points = rng.uniform(0, 40, (N, 2))
    apart = np.sqrt(np.square(points[:, None] - points).sum(axis=2)).astype(np.float32)
    return x, y, rng.permutation(offsets[-1]), offsets, Delays("matrix", np.arange(N), np.zeros(N), matrix=apart)


def trainer_of(parts, model=None, **options):
    x, y, index, offsets, _ = parts
    return Trainer(model or Dense((D, C)), x, y, index, offsets, **{"batch": 7, "rate": 0.1, "seed": 3, **options})


def tree_of(delays, k=5, above=(1,), ratios=(1, 2, 1)):
    return grow(kma.cluster("k-medoids", delays, k, seed=0), delays, list(above), list(ratios), 0, kma.Alone())


def course_of(parts, tree, weights="samples", model=None, costs=None, **options):
    more = {name: options.pop(name) for name in ("has_top", "quorum", "carried") if name in options}
    trainer = trainer_of(parts, model, **options)
    return TreeCourse(tree, parts[4], trainer, costs or Costs(), weights, tree.group, kma.Alone(), **more)


def go(course, n_steps, script=""):
    events = read_script(script, course.tree, 0) if script else []
    for _ in range(n_steps):
        course.step(status_at(events, course.tree, course.spent.steps + 1))
    return course


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
    parts = world()
    tree = tree_of(parts[4], k, above, ratios)
    course = course_of(parts, tree, weights)
    go(course, 2 * course.round_steps)
    w, b = slow_tree(parts, tree, 2 * course.round_steps, weights)
    # float32 against float64, a few dozen steps
    assert course.root_P == pytest.approx(np.concatenate([w.reshape(-1), b]), abs=2e-5)


def test_a_tree_of_one_group_and_a_tree_of_ones_are_fedavg():
    parts = world()
    flat = course_of(parts, star(tree_of(parts[4]), parts[4].hub()))
    deep = course_of(parts, tree_of(parts[4], 8, (3, 1), (1, 1, 1, 1)))
    one = course_of(parts, tree_of(parts[4], 1, (), (1, 1)))
    for course in (flat, deep, one):
        go(course, 5)
    # float32 weights kept between steps; sums in float64
    assert deep.root_P == pytest.approx(flat.root_P, abs=1e-6)
    assert np.array_equal(one.root_P, flat.root_P)


def test_uniform_weights_differ_where_groups_do():
    parts = world()
    tree = tree_of(parts[4], 5, (1,), (1, 1, 1))
    assert np.abs(go(course_of(parts, tree), 2).root_P - go(course_of(parts, tree, "uniform"), 2).root_P).max() > 1e-4


@pytest.mark.parametrize("model", [Dense((D, C)), Dense((D, 9, C)), Dense((D, 8, 5, C))])
def test_chunks_and_threads_change_nothing(model):
    parts = world()
    tree = tree_of(parts[4])
    rows = [
        go(course_of(parts, tree, model=model, chunk=c, n_threads=t), 4).root_P for c, t in ((1, 1), (5, 1), (5, 2), (64, 2))
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
    model.step(moved, x, y, weight, 1.0)
    slope = rows - moved

    def loss(device, row):
        terms = torch.nn.functional.cross_entropy(model.logits(row, x[device]), y[device], reduction="none")
        return float((terms * weight[device]).sum())

    for device in (0, 1):
        for place in rng.permutation(model.n_parameters)[:40].tolist():
            up, down = rows[device].clone(), rows[device].clone()
            up[place] += 1e-6
            down[place] -= 1e-6
            assert float(slope[device, place]) == pytest.approx((loss(device, up) - loss(device, down)) / 2e-6, abs=1e-6)


def test_a_cnn_trains_over_a_tree_whatever_the_chunk():
    x, y, index, offsets, delays = world(sizes=np.full(N, 12))
    x = np.random.default_rng(1).normal(size=(len(y), 1, 16, 16)).astype(np.float32)
    x[np.arange(len(y)), 0, y, y] += 8
    parts, tree = (x, y, index, offsets, delays), tree_of(delays)
    rows = [go(course_of(parts, tree, model=Conv((1, 16, 16), C), chunk=chunk), 4) for chunk in (1, 5)]
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
    assert torch.allclose(model.logits(torch.from_numpy(row), x), expected, atol=1e-4)


def test_orders_are_permutations_that_depend_on_everything_they_should():
    sizes = np.array([5, 9, 9])
    order = shuffled(1, 2, 0, np.array([4, 7, 8]), sizes)
    assert [sorted(row[:n]) for row, n in zip(order.tolist(), sizes, strict=True)] == [list(range(n)) for n in sizes]
    assert np.array_equal(shuffled(1, 2, 0, np.array([7]), sizes[1:2])[0], order[1])
    others = [shuffled(2, 2, 0, np.array([7]), sizes[1:2]), shuffled(1, 3, 0, np.array([7]), sizes[1:2])]
    others += [shuffled(1, 2, 1, np.array([7]), sizes[1:2]), order[2:3]]
    assert all(not np.array_equal(other[0], order[1]) for other in others)


def test_time_and_bytes_can_be_added_up_by_hand():
    apart = np.array([[0, 3, 10, 9], [3, 0, 11, 8], [10, 11, 0, 4], [9, 8, 4, 0]], np.float32)
    delays = Delays("matrix", np.arange(4), np.zeros(4), matrix=apart)
    tree = Tree(*(np.array(v, np.int32) for v in (
        [4, 4, 5, 5, 6, 6, -1], [0, 0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 0, 2, 0], [1, 2, 1], [0, 1, 0, 1, 0, 1, 0], []
    )))  # fmt: skip
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, D)).astype(np.float32), rng.integers(0, C, 40)
    parts = (x, y, np.arange(40), np.arange(5) * 10, delays)
    size = 4 * (D * C + C)
    course = go(course_of(parts, tree, costs=Costs(compute=0.001)), 1)
    # ten samples at 1 ms; up and down 3 ms or 4 ms, whoever is slower; two models up, two down
    assert course.spent.seconds == pytest.approx(0.010 + 0.004 + 0.004)
    assert (course.spent.n_bytes, course.spent.wan_bytes) == (4 * size, 0)
    go(course, 1)
    # then up 4, up 10, down 10, down 4; down once only, from the top
    assert course.spent.seconds == pytest.approx(0.018 + 0.010 + 0.004 + 0.010 + 0.010 + 0.004)
    assert (course.spent.n_bytes, course.spent.wan_bytes) == (10 * size, 2 * size)
    alone = go(course_of(parts, tree, costs=Costs(compute=0.001, barrier="subtree")), 1)
    assert alone.ready_n == pytest.approx([0.013, 0.016, 0.014, 0.018])
    # a hub whose link takes 1 s a model: three in, three out
    flat = go(course_of(parts, star(tree, 0), costs=Costs(bandwidth=8 * size)), 1)
    assert flat.spent.seconds == pytest.approx(0.010 + 3 + 3 + 0.010)
    assert flat.spent.n_bytes == 6 * size


def test_messages_queue_where_many_pass_through():
    """A star of five around node 0, and node 6 behind node 5: worked out by hand."""
    ends = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [5, 6]], np.int32)
    ms = np.ones(6, np.float32)
    delays = Delays("matrix", np.arange(7), np.zeros(7), matrix=np.zeros((7, 7), np.float32))
    queues = Queues(delays, (ends, ms))
    # five to node 0: the sixth comes by node 5; node 0 has a load of six, two beyond two twice over
    assert queues.each(np.arange(1, 7), np.zeros(6, int)) == pytest.approx([106 + 200] * 5 + [2 * 106 + 200])
    # two at most wait for nobody; to oneself it takes nothing
    assert queues.each(np.array([1, 2, 3]), np.array([0, 0, 3])) == pytest.approx([106, 106, 0])
    # without edges all are one hop apart
    assert Queues(delays, None).each(np.array([1, 2, 6]), np.array([0, 0, 0])) == pytest.approx([206] * 3)


def test_hierfavg_is_the_tree_with_the_hub_on_top():
    parts = world()
    tree = tree_of(parts[4], 5, (1,), (1, 3, 1))
    other = two_levels(tree, parts[4].hub())
    assert np.array_equal(go(course_of(parts, tree), 3).root_P, go(course_of(parts, other), 3).root_P)


def test_gossip_d_psgd_and_individual_keep_the_mean_of_what_they_should():
    parts = world()
    for algorithm in ("gossip", "d-psgd", "individual"):
        trainer = trainer_of(parts)
        course = PeerCourse(algorithm, 1, 2, parts[4], trainer, Costs(), np.arange(N) % 3, kma.Alone())
        course.step()
        alone = torch.zeros(N, trainer.model.n_parameters)
        start = torch.from_numpy(trainer.model.init(3)[None])
        for chunk in trainer.train(start, np.arange(N), np.zeros(N, np.int64), 1, 1):
            alone[torch.from_numpy(chunk.jobs)] = chunk.rows
        # all begin alike, and what is mixed afterwards has one mean
        assert course.mean() == pytest.approx(alone.double().mean(dim=0).numpy(), abs=1e-6)
        expected = {"gossip": N, "d-psgd": 2 * N, "individual": 0}[algorithm]
        assert course.spent.n_bytes == expected * course.model_bytes


DRILLS = [
    "leaf:20%@2", "leaf:3@2-3", "aggregator:1@2", "aggregator:1@2-3", "aggregator:2@3", "aggregator:3@4", "root@2", "root@4-5",
    "partition@2-5", "late:30%@2-3", "leaf:10%@1,aggregator:1@3,root@5,partition@6-7,late:2@8",
]  # fmt: skip


@pytest.mark.parametrize("script", DRILLS)
@pytest.mark.parametrize("carried", ["drop", "carry"])
def test_drills_end_and_can_be_replayed_to_the_bit(script, carried):
    parts = world()
    tree = tree_of(parts[4], 6, (3, 1), (1, 2, 2, 1))
    well = go(course_of(parts, tree), 12)
    ill = [go(course_of(parts, tree, carried=carried), 12, script) for _ in range(2)]
    assert np.array_equal(ill[0].root_P, ill[1].root_P)
    assert ill[0].spent == ill[1].spent
    assert np.isfinite(ill[0].root_P).all()
    assert 0 < np.abs(ill[0].root_P - well.root_P).max() < 0.5
    assert ill[0].spent.seconds > well.spent.seconds


def test_a_course_goes_on_from_its_state_with_late_updates_on_their_way():
    parts = world()
    tree = tree_of(parts[4], 5, (1,), (1, 2, 1))
    whole = go(course_of(parts, tree, carried="carry"), 6, "late:5@4")
    half = go(course_of(parts, tree, carried="carry"), 4, "late:5@4")
    assert len(half.late) == 5
    other = course_of(parts, tree, carried="carry")
    other.restore(half.state())
    other.spent = half.spent
    assert np.array_equal(go(other, 2, "late:5@4").root_P, whole.root_P)


def test_what_the_dead_and_the_late_would_have_said_does_not_count():
    parts = world()
    tree = tree_of(parts[4], 5, (1,), (1, 1, 1))
    for script, what in (("leaf:4@1", "dead_n"), ("late:4@1", "late_n")):
        status = status_at(read_script(script, tree, 0), tree, 1)
        gone = getattr(status, what)
        assert gone.sum() == 4
        course = course_of(parts, tree)
        course.step(status)
        rows = torch.zeros(N, course.trainer.model.n_parameters)
        for chunk in course.trainer.train(torch.zeros(1, rows.shape[1]), np.arange(N), np.zeros(N, np.int64), 1, 1):
            rows[torch.from_numpy(chunk.jobs)] = chunk.rows
        weight = course.weight_n * ~gone
        assert course.root_P == pytest.approx(weight / weight.sum() @ rows.double().numpy(), abs=1e-6)


def test_the_next_in_line_takes_over_and_gives_back():
    parts = world()
    tree = tree_of(parts[4], 5, (1,), (1, 1, 1))
    events = read_script("root@2-3", tree, 0)
    root = int(tree.device[-1])
    offices = [status_at(events, tree, step).offices(tree) for step in (1, 2, 3, 4)]
    assert offices[0][-1] == offices[3][-1] == root
    group = tree.parent[root]
    line = np.flatnonzero(tree.parent == group)
    second = int(tree.device[line[tree.order[line] == 1][0]]) if len(line) > 1 else -1
    assert offices[1][group] == offices[2][group] == second
    assert offices[1][-1] != root


def test_without_a_quorum_the_model_stays():
    parts = world()
    tree = tree_of(parts[4], 5, (1,), (1, 1, 1))
    course = go(course_of(parts, tree, quorum=0.9), 1)
    before = course.root_P.copy()
    told = []
    course.tell = told.append
    go(course, 1, "partition@2-2")
    assert np.array_equal(course.root_P, before)
    assert told == ["step 2: level 2: 3 of 5 heard; the model stays"]


@pytest.mark.parametrize("words", ["leaf:10%", "leaf@3", "aggregator:9@2", "root@0", "leaf:1@5-3", "nobody@2", ""])
def test_other_scripts_are_refused(words):
    with pytest.raises(ValueError, match="expected"):
        read_script(words, tree_of(world()[4]), 0)


def test_public_devices_train_for_every_group_and_count_once():
    parts = world()
    tree = tree_of(parts[4], 4, (1,), (1, 1, 1))
    public = np.array([0, 5], np.int32)
    shared = Tree(tree.parent, tree.level, tree.device, tree.ratios, tree.order, public)
    # with ratios of one all groups begin alike, so a device that trains for each says the same to each: FedAvg again
    assert go(course_of(parts, shared), 2).root_P == pytest.approx(go(course_of(parts, tree), 2).root_P, abs=1e-6)
