"""Local training against a plain loop, the bound, Flower and pfl; groups against k-means-constrained; Markdown on stdout.

Usage: etree.py PEERS_PYTHON|- [scale=1] [what=training,scale,groups,medoids]. scale < 1 makes everything smaller, to see
whether the script runs. The loop is
what one would write: a torch.nn model, autograd and torch.optim.SGD, a device after another, on all threads. The bound is
the three matrix products of each layer that no implementation can leave out, as large as they come, alone on all threads.
Final weights are compared with the loop's before anybody's time is told: both see the same batches in the same order.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise

import numpy as np
import torch

from kvtools.etree.network.delay import Delays
from kvtools.etree.train.costs import CostModel
from kvtools.etree.train.local import LocalTrainer, shuffled
from kvtools.etree.train.models import Dense, build
from kvtools.etree.train.simulation import TreeSimulation
from kvtools.etree.tree import balanced, kma
from kvtools.etree.tree.tree import Tree
from kvtools.train.device import own_cores
from kvtools.world import World

ROUNDS = 3
peers = sys.argv[1]
words = {"scale": "1", "what": "training,scale,groups,medoids"} | dict(word.split("=") for word in sys.argv[2:])
scale, parts = float(words["scale"]), words["what"].split(",")
rng = np.random.default_rng(0)


def trainer_of(model, n_devices, n_samples, batch):
    n = min(n_devices * n_samples, 60_000)
    x, y = rng.random((n, 784), dtype=np.float32), rng.integers(0, 10, n)
    return LocalTrainer(
        model,
        x,
        y,
        np.arange(n_devices * n_samples) % n,
        np.arange(n_devices + 1) * n_samples,
        batch,
        0.05,
        0,
        own_cores(World()),
    )


def ours(trainer, n_devices):
    torch.set_num_threads(1)
    start = torch.from_numpy(trainer.model.init(0)[None])
    rows = torch.empty(n_devices, trainer.model.n_parameters)
    begun = time.perf_counter()
    for chunk in trainer.train(start, np.arange(n_devices), np.zeros(n_devices, np.int64), 1, 1):
        rows[torch.from_numpy(chunk.jobs)] = chunk.rows
    return time.perf_counter() - begun, rows


def loop(trainer, n_devices, sizes):
    torch.set_num_threads(own_cores(World()))
    layers = [part for i, o in pairwise(sizes) for part in (torch.nn.Linear(i, o), torch.nn.ReLU())]
    net = torch.nn.Sequential(*layers[:-1])
    first = {name: torch.from_numpy(array) for name, array in trainer.model.named(trainer.model.init(0)).items()}
    x, y = torch.from_numpy(trainer.x), torch.from_numpy(trainer.y)
    last = None
    begun = time.perf_counter()
    for device in range(n_devices):
        net.load_state_dict(first)
        optimizer = torch.optim.SGD(net.parameters(), lr=trainer.rate)
        begin, end = trainer.offsets[device : device + 2]
        order = shuffled(trainer.seed, 1, 0, np.array([device]), np.array([end - begin]))[0]
        rows = torch.from_numpy(trainer.index[begin + order])
        for some in rows.split(trainer.batch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[some]), y[some]).backward()
            optimizer.step()
        last = {name: array.detach().clone() for name, array in net.state_dict().items()}
    return time.perf_counter() - begun, last


def bound(sizes, n_devices, n_samples, batch):
    torch.set_num_threads(1)
    products = []
    for place, (i, o) in enumerate(pairwise(sizes)):
        a, w, s = torch.rand(batch, i), torch.rand(i, o), torch.rand(batch, o)
        products += [(a, w), (a.T, s)] + ([(s, w.T)] if place else [])
    outs = [torch.empty(a.shape[0], b.shape[1]) for a, b in products]
    n_steps = max(1, min(2000, n_devices * n_samples // batch))
    begun = time.perf_counter()
    for _ in range(n_steps):
        for (a, b), out in zip(products, outs, strict=True):
            torch.mm(a, b, out=out)
    return (time.perf_counter() - begun) * (n_devices * n_samples / batch) / n_steps / own_cores(World())


def times(label, n_devices, n_samples, sizes, batch):
    n_devices = max(4, int(n_devices * scale))
    trainer = trainer_of(Dense(sizes), n_devices, n_samples, batch)
    found = {"kvtools": [], "loop": [], "bound": []}
    for _ in range(ROUNDS):
        seconds, rows = ours(trainer, n_devices)
        found["kvtools"].append(seconds)
        seconds, last = loop(trainer, n_devices, sizes)
        found["loop"].append(seconds)
        found["bound"].append(bound(sizes, n_devices, n_samples, batch))
    mine = trainer.model.named(rows[-1].numpy())
    apart = max(float(np.abs(mine[name] - array.numpy()).max()) for name, array in last.items())
    assert apart < 1e-4, apart
    rate = {name: n_devices / statistics.median(values) for name, values in found.items()}
    print(
        f"| {label}, {n_devices} devices of {n_samples} samples, batch {batch} | {rate['kvtools']:.0f} | {rate['loop']:.0f} | "
        f"{rate['bound']:.0f} | {rate['kvtools'] / rate['loop']:.1f}× | {rate['kvtools'] / rate['bound']:.0%} | {apart:.0e} |",
        flush=True,
    )


def conv():
    """The small CNN against a loop of the same layers in torch.nn."""
    n_devices = max(4, int(40 * scale))
    trainer = trainer_of(build("cnn", (1, 28, 28), 10), n_devices, 100, 10)
    trainer._x = trainer._x.view(-1, 1, 28, 28)
    seconds, rows = ours(trainer, n_devices)
    torch.set_num_threads(own_cores(World()))
    nn = torch.nn
    pooled = [nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5),
        *pooled,
        nn.Conv2d(6, 16, 5),
        *pooled,
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    names = [
        (f"{place}.{part}", f"{name}.{part}")
        for place, name in zip((0, 3, 7, 9), ("conv1", "conv2", "fc1", "fc2"), strict=True)
        for part in ("weight", "bias")
    ]
    first = trainer.model.named(trainer.model.init(0))
    y, last = torch.from_numpy(trainer.y), {}
    begun = time.perf_counter()
    for device in range(n_devices):
        net.load_state_dict({mine: torch.from_numpy(first[theirs]) for mine, theirs in names})
        optimizer = torch.optim.SGD(net.parameters(), lr=trainer.rate)
        order = shuffled(trainer.seed, 1, 0, np.array([device]), np.array([100]))[0]
        for some in torch.from_numpy(trainer.index[trainer.offsets[device] + order]).split(trainer.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(trainer._x[some]), y[some]).backward()
            optimizer.step()
        last = net.state_dict()
    other = time.perf_counter() - begun
    mine = trainer.model.named(rows[-1].numpy())
    apart = max(float(np.abs(last[name].numpy() - mine[theirs]).max()) for name, theirs in names)
    print(
        f"| small CNN, {n_devices} devices of 100 samples, batch 10 | {n_devices / seconds:.0f} | "
        f"{n_devices / other:.0f} | – | {other / seconds:.1f}× | – | {apart:.0e} |",
        flush=True,
    )


def groups_of_bounded_size():
    """Constrained k-means, ours and k-means-constrained."""
    n, k = max(400, int(20_000 * scale)), max(4, int(141 * scale))
    x = rng.normal(size=(n, 16)).astype(np.float32)
    low, high = balanced.bounds(n, k, 0.1)
    print(f"\n### Groups of bounded size: {n:,} points in 16 dimensions, k = {k}, {low} to {high} points each\n")
    print("| what | s | inertia |\n|---|---|---|")
    found = []
    for iterations in (5, 10, 25):
        begun = time.perf_counter()
        group, means = balanced.k_means(x, k, low, high, seed=0, n_iterations=iterations)
        seconds = time.perf_counter() - begun
        found.append((iterations, seconds, float(np.square(x - means[group]).sum())))
        print(f"| kvtools, balanced.k_means, up to {iterations} iterations | {seconds:.1f} | {found[-1][2]:.0f} |", flush=True)
    if peers == "-":
        return
    with tempfile.TemporaryDirectory() as top:
        np.save(os.path.join(top, "x.npy"), x)
        for iterations in (10, 300):
            told = asked("k-means", x=os.path.join(top, "x.npy"), k=k, low=low, high=high, iterations=iterations)
            ratios = [f"{n}: {told['seconds'] / s:.0f}×, {i / told['inertia'] - 1:+.1%}" for n, s, i in found]
            row = f"| k-means-constrained, up to {iterations} iterations | {told['seconds']:.1f} | {told['inertia']:.0f}"
            print(f"{row} (kvtools {'; '.join(ratios)}) |", flush=True)


def many_positions():
    """A million positions in a thousand groups."""
    n, k = max(1000, int(1_000_000 * scale)), max(4, int(1000 * scale))
    centres = rng.uniform(0, 100, (300, 2))
    points = centres[rng.integers(0, 300, n)] + rng.normal(0, 4, (n, 2))
    begun, used = time.perf_counter(), time.process_time()
    groups = kma.cluster("k-medoids", Delays("euclidean", np.arange(n), np.zeros(n), points=points), k, seed=0, world=World())
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    print(
        f"\nk-medoids of {n:,} positions, K = {k:,}: {groups.n_sweeps} sweeps, {seconds:.0f} s, {used:.0f} s of processor time."
    )


def asked(what, **words):
    """What the peers answer, in their environment."""
    done = subprocess.run(
        [peers, "bench/etree_peers.py"], input=json.dumps({"what": what} | words), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def rounds(n_devices, n_samples):
    """FedAvg with the MLP: whole rounds, sums included, beside Flower and pfl on the same samples in the same order."""
    n_devices, batch = max(4, int(n_devices * scale)), 32
    trainer = trainer_of(Dense((784, 200, 10)), n_devices, n_samples, batch)
    numbers = np.arange(n_devices)
    orders = [shuffled(trainer.seed, step, 0, numbers, np.full(n_devices, n_samples)) for step in range(1, ROUNDS + 2)]
    rows = np.stack([trainer.index[trainer.offsets[:-1, None] + order] for order in orders])
    delays = Delays("matrix", numbers, np.zeros(n_devices), matrix=np.zeros((n_devices, n_devices), np.float32))
    nodes = np.array([*[n_devices] * n_devices, -1], np.int32)
    level = np.array([*[0] * n_devices, 1], np.int32)
    tree = Tree(
        nodes, level, np.append(numbers, 0).astype(np.int32), np.array([1, 1], np.int32), level * 0, np.empty(0, np.int32)
    )
    simulation = TreeSimulation(tree, delays, trainer, CostModel(), "samples", tree.group, World())
    ends = [time.perf_counter()]
    for _ in orders:
        simulation.step()
        ends.append(time.perf_counter())
    rates = {"kvtools": n_devices / statistics.median(np.diff(ends)[1:])}
    final, apart = trainer.model.named(simulation.root_P), []
    with tempfile.TemporaryDirectory() as top:
        for name, array in {"x": trainer.x, "y": trainer.y, "rows": rows}.items():
            np.save(os.path.join(top, f"{name}.npy"), array)
        np.savez(os.path.join(top, "start.npz"), **trainer.model.named(trainer.model.init(trainer.seed)))
        for name in ("flwr", "pfl"):
            seconds = asked(name, top=top, batch=batch, rate=trainer.rate)["seconds"]
            rates[name] = n_devices / statistics.median(seconds)
            theirs = np.load(os.path.join(top, f"{name}.npz"))
            apart.append(max(float(np.abs(final[key] - theirs[key]).max()) for key in final))
    ours_ = rates["kvtools"]
    cells = [
        f"{ours_:.0f}",
        *(f"{rates[name]:.1f} | {ours_ / rates[name]:.1f}×" for name in ("flwr", "pfl")),
        f"{max(apart):.0e}",
    ]
    print(f"| {n_devices} devices of {n_samples} samples | {' | '.join(cells)} |", flush=True)


def scaling(n_devices):
    """Two rounds of softmax regression over so many devices of one sample, and the memory it took at most, in a process."""
    program = f"""
import numpy as np, time
from kvtools.etree.train.simulation import *
from kvtools.world import World
from kvtools.etree.train.costs import CostModel
from kvtools.etree.train.local import LocalTrainer
from kvtools.train.device import own_cores
from kvtools.etree.train.models import Dense
n, k = {n_devices}, {max(1, n_devices // 1000)}
rng = np.random.default_rng(0)
x, y = rng.random((n, 64), dtype=np.float32), rng.integers(0, 10, n)
group = np.sort(np.arange(n) % k)
first = np.searchsorted(group, np.arange(k))
parent = np.concatenate([n + group, [n + k] * k, [-1]]).astype(np.int32)
level = np.concatenate([np.zeros(n), np.ones(k), [2]]).astype(np.int32)
device = np.concatenate([np.arange(n), first, [0]]).astype(np.int32)
order = np.concatenate([np.arange(n) - first[group], np.arange(k), [0]]).astype(np.int32)
tree = Tree(parent, level, device, np.array([1, 2, 1], np.int32), order, np.empty(0, np.int32))
delays = Delays("euclidean", np.arange(n), np.zeros(n), points=rng.random((n, 2)))
trainer = LocalTrainer(Dense((64, 10)), x, y, np.arange(n), np.arange(n + 1), 10, 0.05, 0, own_cores(World()))
simulation = TreeSimulation(tree, delays, trainer, CostModel(), "samples", tree.group, World())
begun = time.perf_counter()
for _ in range(2): simulation.step()
seconds = (time.perf_counter() - begun) / 2
# not ru_maxrss, which begins at what the parent held
print(seconds, next(int(line.split()[1]) / 2**20 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    print(f"| {n_devices:,} | {seconds:.1f} | {peak:.2f} |", flush=True)


if "training" in parts:
    print("### Local training: device-epochs a second, median of 3\n")
    print("| what | kvtools | plain PyTorch loop | products alone | against the loop | of the bound | weights apart |")
    print("|---|---|---|---|---|---|---|")
    times("MLP 784-200-10", 100, 600, (784, 200, 10), 32)
    times("MLP 784-200-10", 1000, 20, (784, 200, 10), 32)
    times("softmax 784-10", 1000, 20, (784, 10), 10)
    conv()
    if peers != "-":
        print("\n### Rounds of FedAvg, MLP 784-200-10, batch 32: device-epochs a second, median of 3\n")
        print("| what | kvtools | flwr | kvtools against it | pfl | kvtools against it | weights apart, at most |")
        print("|---|---|---|---|---|---|---|")
        rounds(100, 600)
        rounds(1000, 20)
if "scale" in parts:
    print("\n### Two rounds of softmax 64-10 over devices of one sample, a thousand a group\n")
    print("| devices | s a step | GiB at most |\n|---|---|---|")
    for n_devices in (100_000, 1_000_000):
        scaling(max(1000, int(n_devices * scale)))
if "groups" in parts:
    groups_of_bounded_size()
if "medoids" in parts:
    many_positions()
