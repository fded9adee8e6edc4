"""Loss against size: generators of several widths, trained alike; a Markdown table and a fit on stdout.

Usage: scaling.py [beauty|ml-100k] [NAME=VALUE]...      about six minutes
Names: widths (32,64,128,256), epochs (3), rate (2e-3 at width 128, falling with the root of the width), batch (1024 targets a
step), seeds (0: the loss is the mean of several), threads (2), users (0: all; the first so many, for a quick look).

2 + 2 dense layers of 4 heads, feed-forward four times the width, short-term pathway alone, no item table, dropout 0.1, cosine;
the last weights count. The loss is the mean over users of the validation item's, nats a level, with all of its user before it.
IDs are the plain ones of onerec.py, made where they are not there.

The fit is loss = a * parameters ** -b, least squares in logarithms: the offset of a loss that no size gets below would take
more sizes to tell. It is said to fit where there are four sizes or more, the loss falls from each to the next, and the residual
is below a tenth of the whole fall.
"""

import statistics
import sys
import time
from itertools import pairwise

import numpy as np
import torch
from onerec import Work
from ours import histories, n_parameters

from kvtools.chance import seed_for
from kvtools.onerec.interactions.log import VALID
from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.run.checkpoint import new_model
from kvtools.onerec.run.dataset import build_training_set
from kvtools.onerec.run.objectives import NextItemTask
from kvtools.onerec.semantic_ids.ids import SemanticIds
from kvtools.train.device import keep_freed_memory
from kvtools.train.loop import Plan, Trainer
from kvtools.train.resume import train_state
from kvtools.world import World


@torch.inference_mode()
def valid_loss(model, batcher, is_valid):
    """Nats a level of the items where is_valid, and of each level, float64 (S,)."""
    rows = batcher.training_rows(is_valid)
    model.eval()
    total_S, n = np.zeros(model.n_levels), 0
    for chosen in batcher.by_length(rows, 256):
        batch = batcher.batch(rows.take(chosen))
        total_S += model.loss(batch)[1].double().numpy()
        n += batch.n_targets
    return float((total_S / n).mean()), total_S / n


def train(log, encoder, ids, width, seed, given):
    config = ModelConfig(
        width=width, hidden=4 * width, heads=4, experts=0, positive=0, lifelong=0, item_table=False, dropout=0.1
    )  # fmt: skip
    made = build_training_set(log, encoder, ids, None, config, without=(), n_valid=len(log), seed=seed)
    torch.manual_seed(seed_for(seed, "weights"))
    model = new_model(made.config, ids, encoder, ())
    words = {"n_targets": given["batch"], "smoothing": 0.0, "device": "cpu"}
    task = NextItemTask(model, made.batcher, made.rows, validation=None, **words)
    n_steps = given["epochs"] * task.n_steps()
    rate = given["rate"] * (128 / width) ** 0.5
    plan = Plan(epochs=given["epochs"] + 1, n_steps=n_steps, lr=rate, warmup=n_steps // 20, seed=seed)
    begun = time.perf_counter()
    for _ in Trainer(task, plan, train_state(None, {}), World()).run(stop=False):
        pass
    seconds = time.perf_counter() - begun
    loss, levels = valid_loss(model, made.validation.batcher, log.parts == VALID)
    found = NextItemTask(model, made.batcher, made.rows, validation=made.validation, **words).validate()
    told = {"parameters": n_parameters(model), "loss": loss, "levels": levels, "ndcg": found["id_ndcg@10"], "seconds": seconds}
    print(f"width {width}, seed {seed}: {told}", file=sys.stderr, flush=True)
    return told


def power_law(sizes, losses):
    """(a, b, residual, fall) of loss = a * size ** -b; the root mean square of what is left, and the fall, in logarithms."""
    x, y = np.log(sizes), np.log(losses)
    slope, start = np.polyfit(x, y, 1)
    residual = np.sqrt(np.mean((y - start - slope * x) ** 2))
    return float(np.exp(start)), -float(slope), float(residual), float(y[0] - y[-1])


def main():
    data = next((word for word in sys.argv[1:] if "=" not in word), "beauty")
    words = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    widths, seeds = ([int(n) for n in words.pop(*pair).split(",")] for pair in (("widths", "32,64,128,256"), ("seeds", "0")))
    given = {
        "epochs": int(words.pop("epochs", 3)),
        "rate": float(words.pop("rate", 2e-3)),
        "batch": int(words.pop("batch", 1024)),
    }
    torch.set_num_threads(int(words.pop("threads", 2)))
    keep_freed_memory()
    work = Work(data, int(words.pop("users", 0)))
    assert not words, words
    work.begin()
    ids = SemanticIds.open(str(work.ids("plain")))
    log, encoder = histories(work.clicks, ids)
    print(f"\n### Loss against size: {data}, {given['epochs']} epochs, {len(seeds)} seeds\n")
    print("| width | parameters | validation loss, nats a level (seeds) | of each level | ID level NDCG@10 | training, s |")
    print("|---|---|---|---|---|---|")
    sizes, losses, apart = [], [], []
    for width in widths:
        runs = [train(log, encoder, ids, width, seed, given) for seed in seeds]
        each = [run["loss"] for run in runs]
        sizes.append(runs[0]["parameters"])
        losses.append(statistics.mean(each))
        apart.append(max(each) - min(each))
        levels = " / ".join(f"{x:.3f}" for x in np.mean([run["levels"] for run in runs], axis=0))
        told = f"{losses[-1]:.4f} ({', '.join(f'{x:.4f}' for x in each)}) | {levels}"
        ndcg, seconds = (statistics.mean(run[name] for run in runs) for name in ("ndcg", "seconds"))
        print(f"| {width} | {sizes[-1]:,} | {told} | {ndcg:.4f} | {seconds:.0f} |", flush=True)
    a, b, residual, fall = power_law(sizes, losses)
    what = f"loss = {a:.3g} * parameters ** {-b:.4f}, residual {residual:.2%} (root mean square) of a fall of {fall:.2%}"
    if len(seeds) > 1:
        what += f", seeds at most {max(apart) / min(losses):.2%} apart"
    if len(sizes) < 4:
        reason = "is not told: four sizes are needed"
    elif not all(x > y for x, y in pairwise(losses)):
        reason = "**does not fit**: the loss does not fall from each size to the next"
    else:
        reason = "fits" if residual < fall / 10 else "**does not fit**"
        reason += f": the residual is {residual / fall:.0%} of the fall, and 10 % is the bar"
    print(f"\n{what}. The power law {reason}.")


main()
