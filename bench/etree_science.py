"""E-Tree and other algorithms at equal local epochs, equal bytes and equal simulated seconds; and a search; Markdown on stdout.

Usage: etree_science.py DATA [seeds=5] [epochs=20] [sets=mnist,pendigits,cifar] [nets=planetlab,cities] [forms=iid,classes:4,…]
[methods=k-medoids,kma,balanced,random] [compute=0.1] [bandwidth=10] [searched=mnist,pendigits] [kept=bench/.etree]

100 devices on measured delays, softmax regression, local SGD of batch 10 and rate 0.05. Every algorithm begins alike and sees
the same samples in the same order. First table: what each reached after all epochs; and where FedAvg had spent half of its
bytes and half of its seconds, by the last evaluation within that budget. "Reaches" is the share of FedAvg's seconds, and of its
wide-area bytes, that an algorithm had spent at the first evaluation that was as good as FedAvg's last; a dash where none was.
Means over seeds with 95 % intervals by Student's t. Second table: trees of other sizes and ratios, whose subtrees wait for
nobody else and which may train twice as long, and whether any of them reaches FedAvg's accuracy in half of
its seconds and half of its wide-area bytes. `balanced:0.1` gives labels a weight of 0.1 in place of 0.5.

What is learned does not depend on delays, nor what is spent on what is learned: each is computed once, and learning is kept in
a folder, so that a run that was cut short goes on. One thread takes about 20 minutes for all of it.
"""

import hashlib
import json
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from kvtools.etree.data.labelled import read_labelled
from kvtools.etree.data.partition import histogram, partition
from kvtools.etree.network import readers as network
from kvtools.etree.train.costs import CostModel
from kvtools.etree.train.local import Chunk, LocalTrainer
from kvtools.etree.train.models import Dense
from kvtools.etree.train.run import Run, SimulationPlan, algorithm_tree, rounds_of
from kvtools.etree.tree import balanced, kma
from kvtools.etree.tree.tree import grow, star, two_levels
from kvtools.world import World

SETS = {"mnist": "fl/mnist", "pendigits": "fl/tabular/pendigits.tra", "cifar": "fl/cifar10_jpeg"}
NETS = {"planetlab": "net/planetlab/PlanetLabData_1", "cities": "net/wondernetwork/city_rtt_ms.csv"}
N = 100
ALONE = ("gossip", "d-psgd", "individual")
COSTS = ("bytes", "wan_bytes", "simulated_s")
WORDS = {
    "data": sys.argv[1], "seeds": "5", "epochs": "20", "sets": "mnist,pendigits,cifar", "nets": "planetlab,cities",
    "forms": "iid,classes:4,classes:2,classes:1", "methods": "k-medoids,kma,balanced,random", "compute": "0.1",
    "bandwidth": "10", "searched": "mnist,pendigits", "kept": "bench/.etree",
}  # fmt: skip
WORDS |= dict(word.split("=", 1) for word in sys.argv[2:])
EPOCHS = int(WORDS["epochs"])


class Idle(LocalTrainer):
    """Trains nothing, so that a simulation shows what it costs and no more."""

    def train(self, start_GP, jobs, *_):
        yield Chunk(np.arange(len(jobs)), torch.zeros(len(jobs), start_GP.shape[1]))

    def evaluate(self, rows_MP, *_):
        return np.zeros(len(rows_MP)), np.zeros(len(rows_MP))


@cache
def labelled(set_name):
    return read_labelled(f"{WORDS['data']}/{SETS[set_name]}")


@cache
def delays_of(net_name, seed):
    with open(f"{WORDS['data']}/{NETS[net_name]}", "rb") as file:
        return network.spread(network.read_matrix(file, NETS[net_name], scale=0.5, is_repaired=True), N, None, seed)


@cache
def trainer_of(set_name, form, seed):
    data = labelled(set_name)
    index, offsets = partition(form, data.train.y, N, seed)
    model = Dense((int(np.prod(data.shape)), data.n_classes))
    return LocalTrainer(model, data.train.x, data.train.y, index, offsets, 10, 0.05, seed)


@cache
def accuracy_of(set_name, form, seed):
    test = labelled(set_name).test
    return trainer_of(set_name, form, seed).local_accuracies(np.arange(N), 10, test.x, test.y)


@cache
def tree_of(set_name, form, seed, net_name, method, above, ratios):
    delays, (k, *above) = delays_of(net_name, seed), above
    trainer = trainer_of(set_name, form, seed)
    if method.startswith("balanced"):
        labels = histogram(trainer.y, trainer.index, trainer.offsets, labelled(set_name).n_classes)
        groups = balanced.balanced(delays, labels, k, seed=seed, world=World(), weight=float(method.partition(":")[2] or 0.5))
    else:
        accuracy = accuracy_of(set_name, form, seed) if method == "kma" else None
        groups = kma.cluster(method, delays, k, seed=seed, world=World(), accuracy=accuracy)
    return grow(groups, delays, above, ratios, seed, World())


def learned(set_name, form, seed, algorithm, tree, epochs):
    """[local epochs, accuracy] of each evaluation, from the folder or from training."""
    if algorithm == "fedavg":
        tree = star(tree, 0)  # which device is the server changes no model
    elif algorithm == "hierfavg":
        tree, algorithm = two_levels(tree, int(tree.device[-1])), "etree"
    shape = [tree.ratios.tolist()] + ([] if algorithm in ALONE else [tree.parent.tolist()])
    key = json.dumps([1, set_name, form, seed, algorithm, epochs, shape])
    kept = Path(WORDS["kept"], f"{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}.json")
    if kept.exists():
        return json.loads(kept.read_text())
    trainer, test = trainer_of(set_name, form, seed), labelled(set_name).test
    delays = delays_of(WORDS["nets"].split(",")[0], seed)
    plan = SimulationPlan("etree" if algorithm == "fedavg" else algorithm, rounds_of(epochs, tree))
    run = Run(plan, tree, delays, trainer, CostModel(), (test.x, test.y), World(), lambda _: None)
    found = [[line["local_epochs"], line["accuracy"]] for line in run]
    part = kept.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(found))
    part.replace(kept)
    return found


def lines_of(set_name, form, seed, net_name, algorithm, tree, bandwidth, epochs=EPOCHS, barrier="global"):
    """What was learned beside what it cost with links of so many Mbit/s, a line an evaluation."""
    real = trainer_of(set_name, form, seed)
    idle = Idle(Dense((1, 2)), np.zeros((1, 1), np.float32), np.zeros(1, np.int64), real.index, real.offsets, 10, 0.05, seed)
    costs = CostModel(bandwidth=bandwidth * 1e6, compute=float(WORDS["compute"]) / 1000, barrier=barrier)
    delays = delays_of(net_name, seed)
    none = np.zeros((1, 1), np.float32), np.zeros(1, np.int64)
    plan = SimulationPlan(algorithm, rounds_of(epochs, algorithm_tree(algorithm, tree, delays)))
    run = Run(plan, tree, delays, idle, costs, none, World(), lambda _: None)
    run.simulation.meter.model_bytes = 4 * real.model.n_parameters
    found = learned(set_name, form, seed, algorithm, tree, epochs)
    return [
        {"accuracy": accuracy} | {name: line[name] for name in COSTS}
        for line, (_, accuracy) in zip(run, found, strict=True)
    ]  # fmt: skip


def interval(values):
    """Mean and half the width of the 95 % interval."""
    values = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{100 * values.mean():.1f} ± {100 * half:.1f}"


def reached(lines, end, keys=("simulated_s", "wan_bytes")):
    """The shares of FedAvg's costs at the first line as good as FedAvg's last; NaN where there is none."""
    good = next((line for line in lines if line["accuracy"] >= end["accuracy"]), None)
    return [good[key] / end[key] if good else np.nan for key in keys]


def told(share):
    """The mean over the seeds that got there, and how many did."""
    there = np.array(share)[np.isfinite(share)]
    return f"{there.mean():.2f} ({len(there)} of {len(share)})" if len(there) else "–"


def compare(set_name, form, net_name):
    """The rows of one setting."""
    wide, methods = float(WORDS["bandwidth"]), WORDS["methods"].split(",")
    best = "balanced" if "balanced" in methods else methods[0]
    asked = {f"E-Tree, {method}": ("etree", method) for method in methods}
    asked |= {name: (name, best) for name in ("fedavg", "hierfavg", "grouped", *ALONE)}
    columns = {name: [[] for _ in range(6)] for name in asked}
    for seed in range(int(WORDS["seeds"])):
        setting = set_name, form, seed, net_name
        runs = {}
        for name, (algorithm, method) in asked.items():
            tree = tree_of(*setting, method, (10, 1), (1, 5, 1))
            runs[name] = [lines_of(*setting, algorithm, tree, bandwidth) for bandwidth in (wide, 0)]
        ends = [lines[-1] for lines in runs["fedavg"]]
        for name, (lines, free) in runs.items():
            halves = [
                next((line["accuracy"] for line in lines[::-1] if line[key] <= ends[0][key] / 2), 0.1)
                for key in ("bytes", "simulated_s")
            ]
            cells = [lines[-1]["accuracy"], *halves, *reached(lines, ends[0]), reached(free, ends[1])[0]]
            for column, cell in zip(columns[name], cells, strict=True):
                column.append(cell)
    for name, cells in columns.items():
        row = [set_name, net_name, form, name, *map(interval, cells[:3]), *map(told, cells[3:])]
        print(f"| {' | '.join(row)} |", flush=True)


def search(set_name, form, net_name):
    """Trees of other shapes against FedAvg, which trains half as long."""
    shapes = [((k, 1), (1, r, 1)) for k, r in ((10, 2), (10, 5), (10, 10), (5, 5), (20, 5))]
    shapes.append(((20, 5, 1), (1, 2, 2, 1)))
    for method in ("balanced:0.1", "k-medoids"):
        for shape, ratios in shapes:
            shares = [[], [], [], []]
            for seed in range(int(WORDS["seeds"])):
                setting = set_name, form, seed, net_name
                tree = tree_of(*setting, method, shape, ratios)
                found = []
                for bandwidth in (float(WORDS["bandwidth"]), 0):
                    end = lines_of(*setting, "fedavg", tree, bandwidth)[-1]
                    lines = lines_of(*setting, "etree", tree, bandwidth, 2 * EPOCHS, "subtree")
                    found += reached(lines, end, ("simulated_s", "wan_bytes", "bytes")[: 1 if found else 3])
                for share, value in zip(shares, found, strict=True):
                    share.append(value)
            is_half = np.max(shares[:2]) <= 0.5
            is_free = np.max(shares[1::2]) <= 0.5
            row = [set_name, net_name, form, method, "-".join(map(str, shape)), ",".join(map(str, ratios))]
            row += [*map(told, shares), "yes" if is_half else "no", "yes" if is_free else "no"]
            print(f"| {' | '.join(row)} |", flush=True)


torch.set_num_threads(1)
kept = Path(WORDS["kept"])
kept.mkdir(parents=True, exist_ok=True)
(kept / ".gitignore").write_text("*\n")
print("### " + ", ".join(f"{name}={value}" for name, value in WORDS.items() if name not in ("data", "kept")) + "\n")
spent = "half of FedAvg's bytes, % | half of its seconds, % | reaches: seconds | wide-area bytes | seconds, links without limit"
print(f"| set | delays | partition | algorithm | all epochs, % | {spent} |")
print("|---" * 10 + "|")
settings = [(s, f, n) for s in WORDS["sets"].split(",") for n in WORDS["nets"].split(",") for f in WORDS["forms"].split(",")]
for setting in settings:
    compare(*setting)
print(f"\n### FedAvg's accuracy after {EPOCHS} epochs, reached by trees within {2 * EPOCHS}: shares of its costs\n")
print("| set | delays | partition | groups by | aggregators | ratios | seconds | wide-area bytes | all bytes | ", end="")
print("seconds, links without limit | half of both, every seed | links without limit |")
print("|---" * 12 + "|")
for setting in settings:
    if setting[0] in WORDS["searched"].split(",") and setting[1] in ("classes:2", "classes:1"):
        search(*setting)
