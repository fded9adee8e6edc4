"""E-Tree and its rivals at equal local epochs, equal bytes and equal simulated seconds; Markdown on stdout.

Usage: etree_science.py DATA [seeds=5] [epochs=50] [k=10] [r1=5] [sets=mnist,pendigits] [nets=planetlab,cities] [forms=iid,…]
[model=softmax] [bandwidth=10] [compute=0.1] [methods=k-medoids,kma,balanced] [margin=0.5]

100 devices on measured delays. Every algorithm begins alike and sees the same samples in the same order. A row tells, for
one setting, what each algorithm reached: after all epochs; and where FedAvg had spent half of its bytes and half of its
seconds, by the last evaluation within that budget. "Reaches" is the share of FedAvg's seconds, and of its wide-area bytes,
that an algorithm had spent at the first evaluation at which it was as good as FedAvg at its end, less a margin in points; a
dash where it never was. Means over seeds, with 95 % intervals by Student's t.
"""

import sys
from dataclasses import replace

import numpy as np
from scipy import stats

from kvtools.etree import balanced, kma, network
from kvtools.etree.course import Costs
from kvtools.etree.labelled import read_labelled
from kvtools.etree.local import Trainer, cores
from kvtools.etree.models import build
from kvtools.etree.partition import histogram, partition
from kvtools.etree.training import Plan, Run
from kvtools.etree.tree import grow

SETS = {"mnist": "fl/mnist", "pendigits": "fl/tabular/pendigits.tra", "cifar": "fl/cifar10_jpeg"}
NETS = {"planetlab": "net/planetlab/PlanetLabData_1", "cities": "net/wondernetwork/city_rtt_ms.csv"}
N = 100
RIVALS = ("fedavg", "hierfavg", "grouped", "gossip", "d-psgd", "individual")


def interval(values):
    """Mean and half the width of the 95 % interval."""
    values = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{100 * values.mean():.1f} ± {100 * half:.1f}"


def told(share):
    """The mean over the seeds that got there, and how many did."""
    there = np.array(share)[np.isfinite(share)]
    return f"{there.mean():.2f} ({len(there)} of {len(share)})" if len(there) else "–"


def setting(data, set_name, net_name, form, seed, words):
    """Lines of every algorithm: {name: [line]}, the trees of each method by its name."""
    labelled = data[set_name]
    train, test = labelled.train, labelled.test
    with open(f"{words['data']}/{NETS[net_name]}", "rb") as file:
        delays = network.spread(network.read_matrix(file, scale=0.5, is_mended=True), N, None, seed)
    index, offsets = partition(form, train.y, N, seed)
    labels = histogram(train.y, index, offsets, labelled.n_classes)
    model = build(words["model"], labelled.shape, labelled.n_classes)
    trainer = Trainer(model, train.x, train.y, index, offsets, 10, 0.05, seed, cores(1))
    costs = Costs(bandwidth=float(words["bandwidth"]) * 1e6, compute=float(words["compute"]) / 1000)
    found = {}
    for method in words["methods"].split(","):
        accuracy = trainer.accuracies(model.init(seed), 10, np.arange(N), test.x, test.y) if method.startswith("kma") else None
        if method == "balanced":
            groups = balanced.balanced(delays, labels, int(words["k"]), seed=seed)
        else:
            groups = kma.cluster(method, delays, int(words["k"]), seed=seed, accuracy=accuracy)
        tree = grow(groups, delays, [1], [1, int(words["r1"]), 1], seed, kma.Alone())
        names = {f"etree {method}": "etree"} | ({name: name for name in RIVALS} if not found else {})
        for name, algorithm in names.items():
            plan = Plan(algorithm, 1, int(words["epochs"]))
            run = Run(plan, tree, delays, replace(trainer), costs, (test.x, test.y), kma.Alone(), lambda _: None)
            found[name] = list(run)
    return found


def within(lines, key, budget):
    """Accuracy at the last evaluation within a budget; that of a guess where there is none."""
    return next((line["accuracy"] for line in reversed(lines) if line[key] <= budget), 0.1)


def main():
    words = {
        "data": sys.argv[1], "seeds": "5", "epochs": "50", "k": "10", "r1": "5", "sets": "mnist,pendigits",
        "nets": "planetlab,cities", "forms": "iid,classes:4,classes:2,classes:1", "model": "softmax", "bandwidth": "10",
        "compute": "0.1", "methods": "k-medoids,kma,balanced", "margin": "0.5",
    }  # fmt: skip
    words |= dict(word.split("=", 1) for word in sys.argv[2:])
    data = {name: read_labelled(f"{words['data']}/{SETS[name]}") for name in words["sets"].split(",")}
    print("### " + ", ".join(f"{name}={value}" for name, value in words.items() if name != "data") + "\n")
    spent = "half of FedAvg's bytes, % | half of its seconds, % | reaches: seconds | reaches: wide-area bytes"
    print(f"| set | delays | partition | algorithm | all epochs, % | {spent} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for set_name in words["sets"].split(","):
        for net_name in words["nets"].split(","):
            for form in words["forms"].split(","):
                runs = [setting(data, set_name, net_name, form, seed, words) for seed in range(int(words["seeds"]))]
                for name in runs[0]:
                    columns, shares = [[], [], []], [[], []]
                    for run in runs:
                        lines, end = run[name], run["fedavg"][-1]
                        columns[0].append(lines[-1]["accuracy"])
                        for column, key in ((1, "bytes"), (2, "simulated_s")):
                            columns[column].append(within(lines, key, end[key] / 2))
                        good = next(
                            (line for line in lines if line["accuracy"] >= end["accuracy"] - float(words["margin"]) / 100), None
                        )
                        for share, key in zip(shares, ("simulated_s", "wan_bytes"), strict=True):
                            share.append(good[key] / end[key] if good else np.nan)
                    reached = [told(share) for share in shares]
                    cells = [set_name, net_name, form, name, *map(interval, columns), *reached]
                    print(f"| {' | '.join(cells)} |", flush=True)


main()
