"""What failures cost: accuracy and simulated seconds lost against the run without them; Markdown on stdout.

Usage: etree_drills.py DATA [epochs=20] [seeds=3]. MNIST, 100 devices of two classes each at PlanetLab sites, softmax
regression, a tree of 20, 5 and 1 aggregators with ratios 1,2,2,1, links of 10 Mbit/s, 0.1 ms a sample, a deadline of 1 s. An
epoch is a step, so that a step's aggregations are hit in their middle: children have sent when whoever they sent to dies. Each
run is done twice, and compared to the bit. Means over seeds, and the largest loss of any.
"""

import sys

import numpy as np

from kvtools.etree.data.labelled import read_labelled
from kvtools.etree.data.partition import histogram, partition
from kvtools.etree.network import readers as network
from kvtools.etree.train.costs import CostModel
from kvtools.etree.train.failures import read_script
from kvtools.etree.train.local import LocalTrainer
from kvtools.etree.train.models import build
from kvtools.etree.train.run import Run, SimulationPlan, rounds_of
from kvtools.etree.tree.balanced import balanced
from kvtools.etree.tree.tree import grow
from kvtools.train.device import own_cores
from kvtools.world import World

DRILLS = {
    "a fifth of the leaves die and stay dead": "leaf:20%@5",
    "half of the leaves are away for five steps": "leaf:50%@5-9",
    "as before, and their groups are given up": "leaf:50%@5-9",
    "an aggregator of level 1 dies": "aggregator:1@8",
    "an aggregator of level 2 dies": "aggregator:2@8",
    "the root dies": "root@8",
    "one of each level dies, and is back later": "aggregator:1@4-7,aggregator:2@8-11,root@12-15",
    "half of the root's children are cut off": "partition@9-16",
    "a third of the updates are late": "late:30%@1-20",
    "as before, and count half in the next step": "late:30%@1-20",
    "a tenth of the devices join halfway": "join:10%@10",
    "all messages come twice and once more, in any order": "repeat:100%@1-20,reorder@1-20",
    "all of it": "leaf:20%@5,aggregator:1@8,root@12,partition@15-18,late:10%@3-9,join:5%@6,repeat:30%@1-20,reorder@1-20",
}
words = {"epochs": "20", "seeds": "3"} | dict(word.split("=") for word in sys.argv[2:])
labelled = read_labelled(f"{sys.argv[1]}/fl/mnist")
train, test = labelled.train, labelled.test


def lines(tree, delays, trainer, script, **options):
    rounds = rounds_of(int(words["epochs"]), tree)
    plan = SimulationPlan("etree", rounds, events=tuple(read_script(script, tree, trainer.seed)), is_compared=True, **options)
    costs = CostModel(bandwidth=1e7, compute=0.0001)
    run = Run(plan, tree, delays, trainer, costs, (test.x, test.y), World(), lambda _: None)
    return list(run), run.simulation.root_P


losses = {name: [] for name in DRILLS}
for seed in range(int(words["seeds"])):
    with open(f"{sys.argv[1]}/net/planetlab/PlanetLabData_1", "rb") as file:
        delays = network.spread(network.read_matrix(file, "PlanetLabData_1", scale=0.5), 100, None, seed)
    index, offsets = partition("classes:2", train.y, 100, seed)
    labels = histogram(train.y, index, offsets, labelled.n_classes)
    model = build("softmax", labelled.shape, labelled.n_classes)
    trainer = LocalTrainer(model, train.x, train.y, index, offsets, 10, 0.05, seed, own_cores(World()))
    tree = grow(balanced(delays, labels, 20, seed=seed, world=World()), delays, [5, 1], [1, 2, 2, 1], seed, World())
    for name, script in DRILLS.items():
        options = {"regroup": 0.6} if "given up" in name else {"late_updates": "carry"} if "count half" in name else {}
        (found, row), (again, other) = (lines(tree, delays, trainer, script, **options) for _ in range(2))
        assert np.array_equal(row, other), "a run can be replayed to the bit"
        assert [{**line, "wall_s": 0} for line in found] == [{**line, "wall_s": 0} for line in again]
        losses[name].append(
            (found[-1]["accuracy"], found[-1]["accuracy_lost"], found[-1]["simulated_s_lost"], found[-1]["simulated_s"])
        )

print(f"### Failures: MNIST, {words['epochs']} epochs, {words['seeds']} seeds; each run replayed to the bit\n")
print("| what | script | accuracy, % | lost, points | at most | simulated s more |\n|---|---|---|---|---|---|")
for name, script in DRILLS.items():
    accuracy, lost, more, whole = np.array(losses[name]).T
    cells = [name, f"`{script}`", f"{100 * accuracy.mean():.1f}", f"{100 * lost.mean():.2f}", f"{100 * lost.max():.2f}"]
    print(f"| {' | '.join(cells)} | {more.mean() / (whole - more).mean():+.0%} |")
