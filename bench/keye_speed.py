"""Keye-VL's parts against transformers': tokens/s in training, images/s of the tower, memory of the loss; Markdown on stdout.

Usage: keye_speed.py PEERS_PYTHON [NAME=VALUE]...            about ten minutes
       keye_speed.py memory ours|stored VOCABULARY TOKENS WIDTH   (what the last table is made of: JSON of one loss)
Names: those of keye_peers.DecoderShape and TowerShape, rounds (5), threads (2), only (train, encode or
memory: one table of the three).

Everybody: one shape, random weights, the same lengths, AdamW fused; contestants in turn, a turn of five seconds. bfloat16 is
autocast over float32 weights in training, the weights themselves on images. Full rows have one length and no padding. Real ones
are the conversations of LLaMA-Factory's alpaca_en_demo in $KVTOOLS_DATA, tokenised with MiniMind's tokenizer: ours are packed
first-fit into rows of as many tokens as a batch of the peer's has on average, the peer pads batches of 16. Tokens/s are of real
tokens, over turns that are as long as the same fraction of an epoch: the peer's batches differ, and each round has others.

The ceiling is a square bfloat16 product in the same run. The fraction of it counts FLOPs of our products (flops.py), the output
matrix included. Images of several sizes: ours together, the peer's one by one, or as a batch padded to a common square.

Memory of the loss: the most that the process held (VmHWM) above what it held before, forward and backward; "stored" has logits
in float32 and torch's cross_entropy.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from generate_peers import DTYPES, SEED, asked
from keye_peers import DecoderShape, TowerShape, batches_of, image_grids
from ours import HERE, Peer, n_parameters, of_rounds, resident, verdict

from kvtools.keye.model import flops
from kvtools.keye.model.config import LanguageConfig, ModelConfig, VisionConfig
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.vision import VisionTower
from kvtools.train.cross_entropy import linear_cross_entropy
from kvtools.train.device import keep_freed_memory
from kvtools.train.packing import pack
from kvtools.train.peak_flops import measured_peak

TURN_S = 5.0
DATA = Path(os.environ.get("KVTOOLS_DATA") or HERE.parent.parent / "shared" / "data")
KINDS = {"full": "full rows", "padded": "real lengths", "by-length": "real lengths, batches by length"}


class Ours:
    """A decoder in training, a packed row a step."""

    def __init__(self, shape, dtype, rows):
        torch.manual_seed(SEED)
        language = LanguageConfig(
            shape.width, shape.hidden, shape.layers, shape.heads, shape.kv_heads, shape.head_dim, shape.vocabulary, tied=True
        )
        vision = VisionConfig(16, 16, 1, 2)  # not used, and not counted
        config = ModelConfig(vision, language, image_token=shape.vocabulary, video_token=shape.vocabulary + 1)
        self.model = Keye(config).train()
        parameters = list(self.model.model.parameters())
        self.n_parameters = sum(p.numel() for p in parameters)
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        self.dtype, self.rng = dtype, np.random.default_rng(SEED)
        self.rows, self.n_tokens = itertools.cycle(rows), 0
        self.flops = [
            flops.row_flops(config, flops.RowShape(row, [], sum(row) - len(row))).training(frozenset({"decoder"}))
            for row in rows
        ]

    def step(self):
        lengths = next(self.rows)
        n_tokens = sum(lengths)
        tokens = torch.from_numpy(self.rng.integers(0, self.model.config.language.vocabulary, n_tokens))
        starts = np.cumsum([0, *lengths])[:-1]
        positions = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])).expand(3, -1)
        targets = torch.cat([tokens[1:], tokens.new_full((1,), -1)])
        targets[torch.from_numpy(starts[1:] - 1)] = -1
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            hidden = self.model.hidden(tokens, positions, starts.tolist())
            loss, _ = linear_cross_entropy(hidden, self.model.output_VD, targets)
        (loss / n_tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.n_tokens += n_tokens


def lengths_of_conversations():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DATA / "tokenizer" / "minimind" / "tokenizer.json"))
    rows = json.loads((DATA / "reasoning" / "llamafactory" / "alpaca_en_demo.json").read_text())
    texts = [f"{row['instruction']}\n{row['input']}\n{row['output']}" for row in rows]
    return [len(one.ids) for one in tokenizer.encode_batch(texts)]


def a_turn(run):
    """Seconds of one run: the mean of as many as TURN_S holds."""
    begun, n = time.perf_counter(), 0
    while n == 0 or time.perf_counter() - begun < TURN_S:
        run()
        n += 1
    return (time.perf_counter() - begun) / n


def measure_training(python, shape, n_rounds, n_threads, words):
    lengths = lengths_of_conversations()
    n_row = round(sum(map(sum, batches_of(lengths, shape.batch, by_length=False))) / (len(lengths) // shape.batch))
    packed = [[lengths[i] for i in row] for row in pack(lengths, n_row)]
    packed = [packed[i] for i in np.random.default_rng(SEED).permutation(len(packed))]
    rows = {"full": [[shape.length] * shape.rows], "real": packed}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lengths.json"
        path.write_text(json.dumps(lengths))
        theirs = [f"{kind}-{name}" for kind in KINDS for name in DTYPES]
        peer = Peer(python, "keye_peers.py", theirs, [*words, f"lengths={path}", f"threads={n_threads}"])
    ours = {(kind, name): Ours(shape, dtype, rows[kind]) for kind in rows for name, dtype in DTYPES.items()}
    for one in ours.values():
        one.step()
    rates, fractions = {}, []
    for turn in range(n_rounds):
        for name, dtype in DTYPES.items():
            peak = measured_peak("cpu", dtype)
            for kind in rows:
                one = ours[kind, name]
                one.n_tokens, begun = 0, time.perf_counter()
                while time.perf_counter() - begun < TURN_S:
                    one.step()
                rate = one.n_tokens / (time.perf_counter() - begun)
                rates.setdefault(("kvtools", kind, name), []).append(rate)
                if kind == "full":
                    fractions.append((name, one.flops[0] / sum(rows["full"][0]) * rate / peak))
            for kind in KINDS:
                n_steps, seconds = 0, 0.0
                while seconds < TURN_S:
                    seconds += peer.turn(f"{kind}-{name}")
                    n_steps += 1
                tokens = peer.told[f"{kind}-{name}"]["tokens"]
                rates.setdefault(("transformers", kind, name), []).append(n_steps * tokens / seconds)
        print(f"round {turn + 1} of {n_rounds}", file=sys.stderr)
    peer.close()
    print(f"\n### Training: Qwen3 of {shape.width} x {shape.layers}, {n_rounds} rounds, {n_threads} threads\n")
    print(f"Vocabulary {shape.vocabulary:,}; full rows {shape.rows} x {shape.length}; real: {len(lengths)} conversations.\n")
    print("| contestant | parameters | no padding | tokens/s, median (least – most) | kvtools is |\n|---|---|---|---|---|")
    middle = {key: statistics.median(values) for key, values in rates.items()}
    ratios = {}
    for (who, kind, name), values in rates.items():
        if who == "kvtools":
            size = ours[kind, name].n_parameters
            filled = statistics.mean(sum(row) for row in packed) / n_row if kind == "real" else 1
            print(f"| kvtools, {kind}, {name} | {size:,} | {filled:.0%} | {of_rounds(values)} | |")
        else:
            told = peer.told[f"{kind}-{name}"]
            ratios[kind, name] = middle["kvtools", "full" if kind == "full" else "real", name] / middle[who, kind, name]
            title = f"transformers, {KINDS[kind]}, {name}"
            cells = f"{told['not_padding']:.0%} | {of_rounds(values)} | {ratios[kind, name]:.2f}×"
            print(f"| {title} | {told['parameters']:,} | {cells} |")
    print()
    for name in DTYPES:
        full, padded, sorted_ = (ratios[kind, name] for kind in KINDS)
        reached = statistics.median(value for which, value in fractions if which == name)
        print(
            f"- {name}: full rows {full:.2f}× (≥ 1.3×: {verdict(full >= 1.3)}); real lengths {padded:.2f}× padding "
            f"(≥ 2.5×: {verdict(padded >= 2.5)}), {sorted_:.2f}× batches by length; {reached:.0%} of the ceiling "
            f"(≥ 50 %: {verdict(reached >= 0.5)})."
        )
    sys.stdout.flush()


def measure_encoding(python, shape, n_rounds, n_threads, words):
    theirs = [f"{kind}-{name}" for kind in ("square", "alone", "padded-images") for name in DTYPES]
    peer = Peer(python, "keye_peers.py", theirs, [*words, f"threads={n_threads}"])
    runs = {}
    for name, dtype in DTYPES.items():
        torch.manual_seed(SEED)
        vision = VisionConfig(shape.v_width, shape.v_hidden, shape.v_layers, shape.v_heads, table_side=shape.side)
        tower = VisionTower(vision).eval().to(dtype)
        for kind in ("square", "alone"):
            grids = [(1, h, w) for h, w in image_grids(kind, shape)]
            pixels = torch.randint(0, 256, (sum(h * w for _, h, w in grids), 3, 14, 14), dtype=torch.uint8)
            runs["kvtools", kind, name] = lambda tower=tower, pixels=pixels, grids=grids: a_turn(lambda: tower(pixels, grids))
        for kind in ("square", "alone", "padded-images"):
            runs["transformers", kind, name] = lambda kind=kind, name=name: a_turn(lambda: peer.turn(f"{kind}-{name}"))
    rates = {key: [] for key in runs}
    with torch.inference_mode():
        for turn in range(n_rounds + 1):
            for key, run in runs.items():
                seconds = run()
                rates[key] += [shape.images / seconds] if turn else []
    peer.close()
    middle = {key: statistics.median(values) for key, values in rates.items()}
    told = {"square": "square", "alone": "of several sizes, one by one", "padded-images": "of several sizes, padded"}
    print(f"\n### Encoding images: a tower of {shape.v_width} x {shape.v_layers}, {shape.images} images, {n_threads} threads\n")
    print(f"Ours has {n_parameters(tower):,} parameters; of several sizes ours are packed.\n")
    print("| contestant | images/s, median (least – most) | kvtools is |\n|---|---|---|")
    for (who, kind, name), values in rates.items():
        title = told[kind] if who != "kvtools" or kind == "square" else "of several sizes, packed"
        other = middle["kvtools", "square" if kind == "square" else "alone", name] / middle[who, kind, name]
        print(f"| {who}, {title}, {name} | {of_rounds(values)} | {'' if who == 'kvtools' else f'{other:.2f}×'} |")
    print()
    for name in DTYPES:
        ratios = [
            middle["kvtools", "square" if kind == "square" else "alone", name] / middle["transformers", kind, name]
            for kind in told
        ]
        words = ", ".join(
            f"{title} {ratio:.2f}× (≥ 1.3×: {verdict(ratio >= 1.3)})"
            for title, ratio in zip(told.values(), ratios, strict=True)
        )
        print(f"- {name}: {words}.")
    sys.stdout.flush()


def memory(kind, n_words, n_tokens, width):
    """One loss, forward and backward, and what it took."""
    torch.manual_seed(SEED)
    hidden = torch.randn(n_tokens, width, requires_grad=True)
    weight = torch.randn(n_words, width, requires_grad=True)
    targets = torch.randint(0, n_words, (n_tokens,))
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)  # a step has room for them in any case
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = resident("VmRSS"), time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        if kind == "ours":
            loss = linear_cross_entropy(hidden, weight, targets)[0]
        else:
            loss = torch.nn.functional.cross_entropy(
                torch.nn.functional.linear(hidden, weight).float(), targets, reduction="sum"
            )
    loss.backward()
    seconds = time.perf_counter() - begun
    print(json.dumps({"held": resident("VmHWM") - before, "seconds": seconds, "loss": loss.item() / n_tokens}))


def measure_memory(n_words, n_tokens, width):
    print(f"\n### The loss at a vocabulary of {n_words:,}: {n_tokens:,} tokens of width {width}, bfloat16 products\n")
    print("| | memory above, GiB | s | loss a token |\n|---|---|---|---|")
    held = {}
    for kind, title in (("ours", "kvtools, a chunk at a time"), ("stored", "logits stored")):
        words = [sys.executable, HERE / "keye_speed.py", "memory", kind, str(n_words), str(n_tokens), str(width)]
        told = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
        held[kind] = told["held"]
        print(f"| {title} | {told['held'] / 2**30:.2f} | {told['seconds']:.1f} | {told['loss']:.4f} |")
    print(f"\n- {held['stored'] / held['ours']:.1f}× less memory; logits alone take {n_words * n_tokens * 4 / 2**30:.2f} GiB.")
    sys.stdout.flush()


def main():
    first, *words = sys.argv[1:]
    if first == "memory":
        memory(words[0], *map(int, words[1:]))
        return
    shape, rest = asked(words, DecoderShape())
    tower_shape, rest = asked([f"{name}={value}" for name, value in rest.items()], TowerShape())
    n_rounds, n_threads = (int(rest.pop(*pair)) for pair in (("rounds", 5), ("threads", 2)))
    only = rest.pop("only", None)
    assert not rest, rest
    torch.set_num_threads(n_threads)
    keep_freed_memory()
    passed = [word for word in words if word.split("=")[0] not in ("rounds", "threads", "only")]
    if only in (None, "train"):
        measure_training(first, shape, n_rounds, n_threads, passed)
    if only in (None, "encode"):
        measure_encoding(first, tower_shape, n_rounds, n_threads, passed)
    if only in (None, "memory"):
        measure_memory(151_936, 2048, 1024)


if __name__ == "__main__":
    main()
