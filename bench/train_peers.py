"""Training transformers' T5 on semantic IDs, as a plain loop: a JSON line of samples/s a precision on stdout.

Usage: train_peers.py [float32|bfloat16[-by-length]]... [NAME=VALUE]...
Names: those of Settings, below, and rounds (3), steps a round (5), threads (2) and serve (0); with serve=1 the lines come after
the two steps that do not count, and then the seconds of one round for each contestant's name that comes on stdin.

A sample is one item of a user's training part (all but the last two) and up to 20 items before it: 3 tokens an item in, an end
after them, 3 tokens out. Amazon Beauty's 5-core of 2014 in $KVTOOLS_DATA/rec, distinct random codes of 256 a level, which cost
what others cost. Batches of 256 drawn by a DataLoader, padded to the longest of the batch as DataCollatorForSeq2Seq does;
by_length=1, or -by-length after one precision, draws samples of like length together, as the Trainer's group_by_length does.
AdamW, rate 1e-3, no clipping, dropout 0.1; bfloat16 is autocast over float32 weights. The T5 is the one of generate_peers.py;
parameters=N changes its feed-forward width until it has as many, within 1 %. Timed after two steps: collating, forward,
backward, update. Runs in the peers' environment and imports nothing of kvtools.
"""

import itertools
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from generate_peers import DTYPES, END, N_SPECIAL, PAD, SEED, Work, asked, catalogue, serve, t5_model, tokens

N_LEVELS, N_CODES = 3, 256
MEGABATCHES = 50  # as the Trainer's group_by_length: sorted by length within so many batches


@dataclass(frozen=True)
class Settings:
    """One T5 and what it is trained on."""

    batch: int = 256  # samples
    history: int = 20  # items
    by_length: int = 0
    parameters: int = 0  # 0: as many as the sizes below make
    d: int = 256
    n_enc: int = 4
    n_dec: int = 4
    n_heads: int = 4
    d_head: int = 64
    ffn: int = 1024


def lines():
    """The items of each user's training part, as numbers from 0."""
    path = Path(os.environ["KVTOOLS_DATA"]) / "rec" / "amazon_beauty_2014" / "sequential_data.txt"
    users = [line.split()[1:-2] for line in path.read_text().splitlines()]
    number = {}
    return [[number.setdefault(item, len(number)) for item in items] for items in users]


def samples(settings):
    """(tokens in, tokens out) of every prefix, int64."""
    users = lines()
    n_items = 1 + max(map(max, users))
    known = tokens(catalogue(Work(codes=N_CODES, levels=N_LEVELS, items=n_items)), N_CODES)
    found = []
    for items in users:
        for place in range(1, len(items)):
            history = known[items[max(0, place - settings.history) : place]].reshape(-1)
            found.append((np.append(history, END), known[items[place]]))
    return found


def collate(batch):
    longest = max(len(ids) for ids, _ in batch)
    ids = np.full((len(batch), longest), PAD)
    for row, (words, _) in zip(ids, batch, strict=True):
        row[: len(words)] = words
    ids = torch.from_numpy(ids)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "labels": torch.from_numpy(np.stack([o for _, o in batch])),
    }


def order(found, settings):
    """The numbers of the samples in the order they are trained on, one epoch."""
    rng = np.random.default_rng(SEED)
    numbers = rng.permutation(len(found))
    if not settings.by_length:
        return numbers.tolist()
    lengths = np.array([len(ids) for ids, _ in found])
    parts = np.array_split(numbers, range(settings.batch * MEGABATCHES, len(numbers), settings.batch * MEGABATCHES))
    batches = [part[np.argsort(-lengths[part], kind="stable")] for part in parts]
    batches = [b[i : i + settings.batch] for b in batches for i in range(0, len(b), settings.batch)]
    # the Trainer's leaves batches from long to short; taken at random here, so that a few steps stand for an epoch
    return np.concatenate([batches[i] for i in rng.permutation(len(batches))]).tolist()


def t5(settings):
    """A T5 of the settings, its feed-forward as wide as the number of parameters asked for wants it."""
    sizes = {name: getattr(settings, name) for name in ("d", "n_enc", "n_dec", "n_heads", "d_head")}
    n_tokens = N_SPECIAL + N_LEVELS * N_CODES
    if not settings.parameters:
        return t5_model(n_tokens, ffn=settings.ffn, **sizes)
    each = 2 * settings.d * (settings.n_enc + settings.n_dec)
    bare = t5_model(n_tokens, ffn=1, **sizes).num_parameters() - each
    model = t5_model(n_tokens, ffn=max(1, round((settings.parameters - bare) / each)), **sizes)
    n = model.num_parameters()
    if abs(n / settings.parameters - 1) > 0.01:
        raise ValueError(f"parameters={settings.parameters}: {n} with these sizes; change d, n_enc and n_dec")
    return model


class Training:
    """A T5 in training. `turn` does n steps; `rates` are samples/s of each, `losses` those of every step."""

    def __init__(self, settings, dtype, found):
        self.settings, self.dtype, self.model = settings, dtype, t5(settings).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        sampler = order(found, settings)
        loader = torch.utils.data.DataLoader(found, settings.batch, sampler=sampler, collate_fn=collate)
        self.batches = itertools.chain.from_iterable(itertools.repeat(loader))
        self.rates, self.losses, self.n_padded, self.n_tokens = [], [], 0, 0

    def turn(self, n_steps):
        begun, n_done = time.perf_counter(), 0
        for batch in itertools.islice(self.batches, n_steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                loss = self.model(**batch).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses.append(loss.item())
            n_done += len(batch["labels"])
            self.n_padded += batch["input_ids"].numel()
            self.n_tokens += int(batch["attention_mask"].sum())
        self.rates.append(n_done / (time.perf_counter() - begun))

    def told(self):
        numbers = {"parameters": self.model.num_parameters(), "ffn": self.model.config.d_ff}
        return numbers | {"not_padding": self.n_tokens / self.n_padded, "loss": [self.losses[0], self.losses[-1]]}


def main():
    names = [word for word in sys.argv[1:] if "=" not in word] or list(DTYPES)
    settings, rest = asked([word for word in sys.argv[1:] if "=" in word], Settings())
    pairs = (("rounds", 3), ("steps", 5), ("threads", 2), ("serve", 0))
    n_rounds, n_steps, n_threads, is_served = (int(rest.pop(*pair)) for pair in pairs)
    assert not rest, rest
    torch.set_num_threads(n_threads)
    found, turns = samples(settings), {}
    for name in names:
        precision, *suffix = name.split("-", 1)
        own = replace(settings, by_length=1) if suffix == ["by-length"] else settings
        training = Training(own, DTYPES[precision], found)
        training.turn(2)
        training.rates.clear()
        row = {"contestant": f"t5-{name}", **asdict(own), "samples": len(found), "threads": n_threads}
        if is_served:
            turns[f"t5-{name}"] = lambda training=training: training.turn(n_steps)
        else:
            for _ in range(n_rounds):
                training.turn(n_steps)
            rates = training.rates
            row |= {"samples_per_s": statistics.median(rates), "least": min(rates), "most": max(rates)}
        print(json.dumps(row | training.told()), flush=True)
    if is_served:
        serve(turns)


if __name__ == "__main__":
    main()
