"""Local training against a plain loop and the bound; groups against k-means-constrained; Markdown on stdout.

Usage: etree.py PEERS_PYTHON|- [scale=1]. scale < 1 makes everything smaller, to see whether the script runs. The loop is
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

from kvtools.etree import balanced, kma
from kvtools.etree.delay import Delays
from kvtools.etree.local import Trainer, cores, shuffled
from kvtools.etree.models import Dense, build

ROUNDS = 3
peers = sys.argv[1]
scale = float(dict(word.split("=") for word in sys.argv[2:]).get("scale", 1))
rng = np.random.default_rng(0)


def trainer_of(model, n_devices, n_samples, batch):
    n = min(n_devices * n_samples, 60_000)
    x, y = rng.random((n, 784), dtype=np.float32), rng.integers(0, 10, n)
    return Trainer(
        model, x, y, np.arange(n_devices * n_samples) % n, np.arange(n_devices + 1) * n_samples, batch, 0.05, 0, cores(1)
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
    torch.set_num_threads(cores(1))
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
    return (time.perf_counter() - begun) * (n_devices * n_samples / batch) / n_steps / cores(1)


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


print("### Local training: device-epochs a second, median of 3\n")
print("| what | kvtools | plain PyTorch loop | products alone | against the loop | of the bound | weights apart |")
print("|---|---|---|---|---|---|---|")
times("MLP 784-200-10", 100, 600, (784, 200, 10), 32)
times("MLP 784-200-10", 1000, 20, (784, 200, 10), 32)
times("softmax 784-10", 1000, 20, (784, 10), 10)

n_devices = max(4, int(40 * scale))
trainer = trainer_of(build("cnn", (1, 28, 28), 10), n_devices, 100, 10)
trainer._x = trainer._x.view(-1, 1, 28, 28)
print(
    f"\nSmall CNN, {n_devices} devices of 100 samples, batch 10: {n_devices / ours(trainer, n_devices)[0]:.0f} device-epochs/s."
)

n, k = max(400, int(20_000 * scale)), max(4, int(141 * scale))
x = rng.normal(size=(n, 16)).astype(np.float32)
low, high = balanced.bounds(n, k, 0.1)
begun = time.perf_counter()
group, means = balanced.k_means(x, k, low, high, seed=0)
seconds = time.perf_counter() - begun
inertia = float(np.square(x - means[group]).sum())
print(f"\n### Groups of bounded size: {n:,} points in 16 dimensions, k = {k}, {low} to {high} points each\n")
print("| what | s | inertia |\n|---|---|---|")
print(f"| kvtools, balanced.k_means, up to 25 iterations | {seconds:.1f} | {inertia:.0f} |", flush=True)
if peers != "-":
    with tempfile.TemporaryDirectory() as top:
        np.save(os.path.join(top, "x.npy"), x)
        for iterations in (10, 300):
            asked = {"x": os.path.join(top, "x.npy"), "k": k, "low": low, "high": high, "iterations": iterations}
            done = subprocess.run(
                [peers, "bench/etree_peers.py"], input=json.dumps(asked), capture_output=True, text=True, check=True
            )
            told = json.loads(done.stdout)
            ratio = f"{told['seconds'] / seconds:.0f}×, inertia {inertia / told['inertia'] - 1:+.1%}"
            row = f"| k-means-constrained, up to {iterations} iterations | {told['seconds']:.1f} | {told['inertia']:.0f}"
            print(f"{row} (kvtools {ratio}) |", flush=True)

n, k = max(1000, int(1_000_000 * scale)), max(4, int(1000 * scale))
centres = rng.uniform(0, 100, (300, 2))
delays = Delays("euclidean", np.arange(n), np.zeros(n), points=centres[rng.integers(0, 300, n)] + rng.normal(0, 4, (n, 2)))
begun, used = time.perf_counter(), time.process_time()
groups = kma.cluster("k-medoids", delays, k, seed=0)
seconds, used = time.perf_counter() - begun, time.process_time() - used
print(f"\nk-medoids of {n:,} positions, K = {k:,}: {groups.n_sweeps} sweeps, {seconds:.0f} s, {used:.0f} s of processor time.")
