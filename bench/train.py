"""Training on real prefixes: ours against transformers' T5 as a plain loop, samples/s; Markdown on stdout.

Usage: train.py PEERS_PYTHON [NAME=VALUE]...      about three minutes
Names: batch (256: samples a step), rounds (3), steps (5: of the T5 a round), threads (2).

A sample is one item of a user's training part with what came before it: Amazon Beauty's 5-core of 2014, distinct random
codes, as in train_peers.py, whose T5 sees the last 20 items of each. Ours is the loop of `pretrain onerec` with causal rows
of 20, whose targets share one pass and see the last 20 to 40 items; as many targets a step on average, as many parameters
within 1 %, the same width, layers, heads, dropout and AdamW, and gradients clipped besides. Everybody is timed with making
the batches. A turn of ours is as many steps as five seconds hold. With scores of items: of all 12,101, and the latest items
take part in them, as in `--size tiny`. bfloat16 is autocast over float32 weights for all.

MFU is FLOPs of our products, padding left out (objective.ForwardCost), over what a square product reaches in the same run.
"""

import statistics
import sys
import time
from dataclasses import replace

import torch
from generate_peers import DTYPES, SEED, Work, asked, catalogue
from ours import CLICKS, Peer, histories, n_parameters, of_rounds, of_size, random_ids, verdict
from train_peers import N_CODES, N_LEVELS, Settings

from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.model.onerec import VocabularySizes
from kvtools.onerec.run.dataset import build_training_set
from kvtools.onerec.run.objectives import NextItemTask
from kvtools.train.device import keep_freed_memory
from kvtools.train.loop import Plan, Trainer
from kvtools.train.peak_flops import measured_peak
from kvtools.train.resume import train_state
from kvtools.world import World

SCORED = "kvtools, scores of items"
TURN_S = 5.0


class Counting(NextItemTask):
    """The task, and how many samples it has had."""

    n_samples = 0

    def loss(self, rows):
        loss = super().loss(rows)
        self.n_samples += loss.count
        return loss


class Ours:
    """A run of the loop that is taken a turn at a time."""

    def __init__(self, log, encoder, ids, n_wanted, batch, name, *, is_scored):
        config = ModelConfig(
            width=256, encoder_layers=4, decoder_layers=4, heads=4, experts=0, attention="causal", short=20, positive=0,
            lifelong=0, item_table=False, dropout=0.1, item_scores=len(ids) if is_scored else 0, recent=is_scored,
        )  # fmt: skip
        made = build_training_set(log, encoder, ids, None, config, without=(), n_valid=0, seed=SEED)
        self.n_samples = int((made.rows.ends - made.rows.begins).sum())
        vocabulary = VocabularySizes(ids.vocab_sizes, len(ids), encoder.features)
        self.model = of_size(config, vocabulary, torch.from_numpy(ids.codes_NS), n_wanted)
        made.batcher.config = self.model.config
        # rows are cut by what they cost, padding and context included: so many that a step has `batch` targets on average
        n_targets = batch
        for _ in range(3):
            n_targets = round(
                n_targets * batch * sum(1 for _ in made.batcher.epoch(made.rows, n_targets, "try")) / self.n_samples
            )
        self.task = Counting(
            self.model, made.batcher, made.rows, validation=None, n_targets=n_targets, smoothing=0.0, device="cpu"
        )
        plan = Plan(epochs=1 << 30, n_steps=1 << 40, warmup=0, lr_schedule="constant", weight_decay=0.01, dtype=name, seed=SEED)
        peak = measured_peak("cpu", DTYPES[name])
        self._steps = Trainer(self.task, plan, train_state(None, {}), World(), peak=peak).run(stop=False)
        self.n_steps, self.mfu = 0, []
        self.turn()
        self.n_steps, self.task.n_samples, self.mfu = 0, 0, []

    def turn(self):
        """Samples a second."""
        begun, before = time.perf_counter(), self.task.n_samples
        n = 0
        while n < 2 or time.perf_counter() - begun < TURN_S:
            self.mfu.append(next(self._steps).metrics["mfu"])
            n += 1
        self.n_steps += n
        return (self.task.n_samples - before) / (time.perf_counter() - begun)


def main():
    python, *words = sys.argv[1:]
    pairs = {"rounds": 3, "steps": 5, "threads": 2}
    settings, rest = asked(words, Settings())
    n_rounds, n_steps, n_threads = (int(rest.pop(*pair)) for pair in pairs.items())
    assert not rest, rest
    assert settings == replace(Settings(), batch=settings.batch), "of the T5's settings, batch alone can be changed here"
    torch.set_num_threads(n_threads)
    keep_freed_memory()
    theirs = [f"{name}{suffix}" for name in DTYPES for suffix in ("", "-by-length")]
    words = [f"batch={settings.batch}", f"steps={n_steps}", f"threads={n_threads}"]
    peer = Peer(python, "train_peers.py", theirs, words)
    ids = random_ids(CLICKS["beauty"], lambda n: catalogue(Work(codes=N_CODES, levels=N_LEVELS, items=n)))
    log, encoder = histories(CLICKS["beauty"], ids)
    n_wanted = peer.told["t5-float32"]["parameters"]
    ours = {
        (who, name): Ours(log, encoder, ids, n_wanted, settings.batch, name, is_scored=who == SCORED)
        for name in DTYPES
        for who in ("kvtools", SCORED)
    }
    n_samples = peer.told["t5-float32"]["samples"]
    assert all(one.n_samples == n_samples for one in ours.values()), "the same samples for all"
    rates = {
        key: [] for name in DTYPES for key in (("kvtools", name), (SCORED, name), ("t5", name), ("t5", f"{name}-by-length"))
    }
    for _ in range(n_rounds):
        for key, found in rates.items():
            found.append(ours[key].turn() if key in ours else n_steps * settings.batch / peer.turn(f"t5-{key[1]}"))
    peer.close()
    print(f"\n### Training: Amazon Beauty, {n_samples:,} samples, {n_rounds} rounds, {n_threads} threads\n")
    print("| contestant | parameters | samples a step | samples/s, median (least – most) | kvtools is | MFU | epoch, s |")
    print("|---|---|---|---|---|---|---|")
    middle = {key: statistics.median(values) for key, values in rates.items()}
    for (who, name), values in rates.items():
        precision = name.split("-")[0]
        times = f"{middle['kvtools', precision] / middle[who, name]:.2f}×"
        cells = f"{of_rounds(values)} | {times}"
        epoch = f"{n_samples / middle[who, name]:.0f}"
        if one := ours.get((who, name)):
            size, step = n_parameters(one.model), one.task.n_samples / one.n_steps
            print(f"| {who}, {name} | {size:,} | {step:.0f} | {cells} | {statistics.median(one.mfu):.1%} | {epoch} |")
        else:
            told = peer.told[f"t5-{name}"]
            title = f"T5, {precision}" + (", by length" if name.endswith("-by-length") else "")
            title += f" ({told['not_padding']:.0%} no padding)"
            print(f"| {title} | {told['parameters']:,} | {settings.batch} | {cells} | | {epoch} |")
    print()
    for name in DTYPES:
        plain, sorted_ = (middle["kvtools", name] / middle["t5", f"{name}{suffix}"] for suffix in ("", "-by-length"))
        scored = middle[SCORED, name] / middle["t5", name]
        print(f"- {name}: {plain:.1f}× the plain loop (≥ 10×: {verdict(plain >= 10)}), {sorted_:.1f}× the one by length;")
        print(f"  with scores of items {scored:.1f}× the plain loop (≥ 10×: {verdict(scored >= 10)}).")


main()
