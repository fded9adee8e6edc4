"""Beam search over semantic IDs: ours, transformers' T5, a plain decoder in torch, and the products alone; Markdown on stdout.

Usage: generate.py PEERS_PYTHON [NAME=VALUE]...      about four minutes, most of them T5's
       generate.py memory PRECISION [NAME=VALUE]...  (what the second table is made of: JSON of one wide search in a process)
Names: those of generate_peers.Work, rounds (3), threads (2) and wide (512: the beam of the second table; 0 leaves it out).

Everybody: 32 users, 100 encoder positions, beam 50, IDs of three codes of 256, 20,000 items, width 256, 4 + 4 layers of 4
heads, random weights, as many parameters as the T5 within 1 %. A position is an item for us, a code for the others; one more
of ours is the user's. Batch, trie and masks are ready before the clock starts. A turn is one batch, for us as many as two
seconds hold. bfloat16 is everybody's weights too, as in `recgen --dtype`. Freed memory is kept, as in recgen, in this
process, which serves all but T5. That all IDs are legal is checked first. With scores of items: of all of them, and the
latest items take part in them, as in `--size tiny`.

The bound is the time of the products that our sizes cannot do without (generate_peers.gemm_shapes, 100 positions): everybody's
share of it is told by users/s. Memory: the most that the process held during a search (VmHWM, reset before), above what it
held before, a search of beam 1 done.
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from generate_peers import DTYPES, END, N_SPECIAL, SEED, Dims, Work, asked, catalogue, gemm, gemm_shapes, gflop, tokens
from ours import HERE, Peer, n_parameters, of_rounds, of_size, resident, verdict
from torch import nn
from torch.nn import functional as nf

from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.model.batching import Batcher
from kvtools.onerec.model.beam import search, search_freely
from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.model.onerec import VocabularySizes
from kvtools.onerec.model.trie import Trie
from kvtools.train.device import keep_freed_memory

TURN_S = 2.0
T5_PARAMETERS = 7_543_040  # of generate_peers' T5; checked against what it says itself


class Ours:
    """A generator, and a batch of users whose histories fill the encoder. A search returns codes (B, W, S)."""

    def __init__(self, work, dtype, *, is_scored=False):
        codes_NS = catalogue(work)
        config = ModelConfig(
            width=256, encoder_layers=4, decoder_layers=4, heads=4, experts=0, attention="full", short=work.length, positive=0,
            lifelong=0, item_table=False, item_scores=work.items if is_scored else 0, recent=is_scored,
        )  # fmt: skip
        vocabulary = VocabularySizes((work.codes,) * work.levels, work.items, {})
        self.model = of_size(config, vocabulary, torch.from_numpy(codes_NS), T5_PARAMETERS).eval().to(dtype)
        self.trie, self.dtype, self.beam = Trie(codes_NS), dtype, work.beam
        items = np.random.default_rng(SEED + 1).integers(0, work.items, work.batch * work.length).astype(np.int32)
        log = Histories(
            np.array([str(n) for n in range(work.batch)]), np.arange(0, len(items) + 1, work.length), items,
            np.zeros(len(items), np.int8), np.zeros((len(items), 0), np.int64), None, None, np.arange(len(items)),
        )  # fmt: skip
        batcher = Batcher(log, self.model.config)
        self.batch = batcher.batch(batcher.next_rows(np.arange(work.batch)))

    @torch.inference_mode()
    def search(self, n_beams=0, *, is_free=False):
        n_beams = n_beams or self.beam
        context = self.model.context(self.batch)
        if is_free:
            return search_freely(self.model, context, n_beams).codes
        return search(self.model, context, self.trie, n_beams).codes


class Layer(nn.Module):
    """x + f(norm(x)) for self-attention, cross-attention in a decoder, and a feed-forward."""

    def __init__(self, dims, *, is_decoder):
        super().__init__()
        d, inner = dims.d, dims.n_heads * dims.d_head
        self.n_heads = dims.n_heads
        self.norms = nn.ModuleList(nn.RMSNorm(d) for _ in range(2 + is_decoder))
        self.qkv, self.out = nn.Linear(d, 3 * inner, bias=False), nn.Linear(inner, d, bias=False)
        self.wide = nn.Sequential(nn.Linear(d, dims.ffn, bias=False), nn.ReLU(), nn.Linear(dims.ffn, d, bias=False))
        if is_decoder:
            self.cross_q, self.cross_out = nn.Linear(d, inner, bias=False), nn.Linear(inner, d, bias=False)
            self.cross_kv = nn.Linear(d, 2 * inner, bias=False)

    def heads(self, x):
        return x.unflatten(2, (self.n_heads, -1)).transpose(1, 2)

    def forward(self, x, past=None, cross=None):
        q, k, v = (self.heads(part) for part in self.qkv(self.norms[0](x)).chunk(3, dim=2))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        x = x + self.out(nf.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        if cross is not None:
            q = self.heads(self.cross_q(self.norms[1](x)))
            x = x + self.cross_out(nf.scaled_dot_product_attention(q, *cross).transpose(1, 2).flatten(2))
        return x + self.wide(self.norms[-1](x)), (k, v)


class Plain(nn.Module):
    """An encoder, a decoder and a beam search as one writes them with a batch in mind: the encoder runs once, its keys and
    values are copied for every beam, those of the codes so far are kept, and a dense table says what may follow a prefix."""

    def __init__(self, work, dims, dtype):
        super().__init__()
        torch.manual_seed(SEED)
        self.work = work
        self.table = nn.Embedding(N_SPECIAL + work.codes * work.levels, dims.d)
        self.places = nn.Parameter(0.02 * torch.randn(work.length, dims.d))
        self.encoder = nn.ModuleList(Layer(dims, is_decoder=False) for _ in range(dims.n_enc))
        self.decoder = nn.ModuleList(Layer(dims, is_decoder=True) for _ in range(dims.n_dec))
        self.norms = nn.ModuleList(nn.RMSNorm(dims.d) for _ in range(2))
        nn.init.normal_(self.table.weight, std=dims.d**-0.5)
        self.to(dtype).eval()
        codes_NS = torch.from_numpy(catalogue(work))
        state_N = torch.zeros(len(codes_NS), dtype=torch.long)
        self.masks = []  # bool (codes ** level, codes) a level
        for level in range(work.levels):
            mask = torch.zeros(work.codes**level, work.codes, dtype=torch.bool)
            mask[state_N, codes_NS[:, level]] = True
            self.masks.append(mask)
            state_N = state_N * work.codes + codes_NS[:, level]
        known = tokens(codes_NS.numpy(), work.codes)
        chosen = np.random.default_rng(SEED + 1).integers(0, work.items, (work.batch, (work.length - 1) // work.levels))
        self.ids = torch.full((work.batch, work.length), END)
        self.ids[:, : chosen.shape[1] * work.levels] = torch.from_numpy(known[chosen].reshape(work.batch, -1))

    @torch.inference_mode()
    def search(self):
        work, n_users, n_codes = self.work, len(self.ids), self.work.codes
        x = self.table(self.ids) + self.places
        for layer in self.encoder:
            x, _ = layer(x)
        x = self.norms[0](x)
        context = [tuple(map(layer.heads, layer.cross_kv(x).chunk(2, dim=2))) for layer in self.decoder]
        copied, n_copies = context, 1
        token_M = torch.zeros(n_users, dtype=torch.long)  # padding begins
        state_M, score_M, pasts = torch.zeros_like(token_M), torch.zeros(n_users), [None] * len(self.decoder)
        found_MS = torch.zeros(n_users, 0, dtype=torch.long)
        for level in range(work.levels):
            x = self.table(token_M)[:, None]
            for number, layer in enumerate(self.decoder):
                x, pasts[number] = layer(x, pasts[number], copied[number])
            first = N_SPECIAL + level * n_codes
            logits_MK = nf.linear(self.norms[1](x[:, 0]), self.table.weight[first : first + n_codes]).float()
            gain_MK = logits_MK.log_softmax(1).masked_fill(~self.masks[level][state_M], -torch.inf)
            total_BX = (score_M[:, None] + gain_MK).view(n_users, -1)
            score_BW, best_BW = total_BX.topk(min(work.beam, total_BX.shape[1]), dim=1)
            n_before, n_beams = len(token_M) // n_users, best_BW.shape[1]
            parent_M = (best_BW // n_codes + n_before * torch.arange(n_users)[:, None]).flatten()
            code_M, score_M = best_BW.flatten() % n_codes, score_BW.flatten()
            found_MS = torch.cat([found_MS[parent_M], code_M[:, None]], dim=1)
            state_M, token_M = state_M[parent_M] * n_codes + code_M, first + code_M
            pasts = [(k[parent_M], v[parent_M]) for k, v in pasts]
            if n_beams != n_copies and level < work.levels - 1:
                copied = [tuple(t.repeat_interleave(n_beams, dim=0) for t in pair) for pair in context]
                n_copies = n_beams
        return found_MS.view(n_users, -1, work.levels)


def legal_share(codes_BWS, work):
    place = work.codes ** np.arange(work.levels)[::-1]
    return float(np.isin(codes_BWS.numpy() @ place, catalogue(work) @ place).mean())


def a_turn(run):
    """Seconds of one run: the mean of as many as TURN_S holds."""
    begun, n = time.perf_counter(), 0
    while n == 0 or time.perf_counter() - begun < TURN_S:
        run()
        n += 1
    return (time.perf_counter() - begun) / n


def bound_dims(ours):
    return Dims(ffn=ours.model.config.hidden)


def measure(python, work, n_rounds, n_threads):
    words = [f"{name}={value}" for name, value in vars(work).items()]
    peer = Peer(python, "generate_peers.py", [f"t5-{name}" for name in DTYPES], [*words, f"threads={n_threads}"])
    for name, error in peer.errors.items():
        print(f"{name}: {error}", file=sys.stderr)
    runs, sizes = {}, {}  # by contestant and precision
    for name, dtype in DTYPES.items():
        ours, plain = Ours(work, dtype), Plain(work, Dims(), dtype)
        shapes = gemm_shapes(bound_dims(ours), work)
        products = gemm(shapes, dtype)
        for contestant in (ours, plain):
            share = legal_share(contestant.search(), work)
            assert share == 1, f"{type(contestant).__name__}, {name}: {share} of the IDs are legal"
        runs["kvtools", name] = lambda ours=ours: a_turn(ours.search)
        runs["kvtools, every code allowed", name] = lambda ours=ours: a_turn(lambda: ours.search(is_free=True))
        scored = Ours(work, dtype, is_scored=True)
        runs["kvtools, scores of items", name] = lambda scored=scored: a_turn(scored.search)
        runs["plain decoder in torch", name] = lambda plain=plain: a_turn(plain.search)
        if f"t5-{name}" in peer.told:
            runs["T5, prefix_allowed_tokens_fn", name] = lambda name=name: peer.turn(f"t5-{name}")
            sizes["T5, prefix_allowed_tokens_fn", name] = peer.told[f"t5-{name}"]["parameters"]
        runs["products alone", name] = lambda run=products: a_turn(run)
        sizes |= {("kvtools", name): n_parameters(ours.model), ("plain decoder in torch", name): n_parameters(plain)}
    t5 = sizes.get(("T5, prefix_allowed_tokens_fn", "float32"), T5_PARAMETERS)
    assert abs(sizes["kvtools", "float32"] / t5 - 1) < 0.02 or work.codes != Work.codes, (sizes, "T5_PARAMETERS is another")
    rates = {key: [] for key in runs}
    for turn in range(n_rounds + 1):
        for key, run in runs.items():
            seconds = run()
            rates[key] += [work.batch / seconds] if turn else []
    peer.close()
    users = f"{work.batch} users, {work.length} positions, beam {work.beam}, {work.items:,} items"
    print(f"\n### Beam search: {users}, {n_rounds} rounds, {n_threads} threads\n")
    print(
        f"Feed-forward {ours.model.config.hidden} wide in ours. The products of our sizes: {gflop(shapes):.1f} GFLOP a batch.\n"
    )
    print(
        "| contestant | parameters | users/s, median (least – most) | kvtools is | share of the bound |\n|---|---|---|---|---|"
    )
    middle = {key: statistics.median(values) for key, values in rates.items()}
    for name in DTYPES:
        for (who, precision), values in rates.items():
            if precision == name:
                times = f"{middle['kvtools', name] / middle[who, name]:.2f}×"
                share = f"{middle[who, name] / middle['products alone', name]:.0%}"
                size = f"{sizes[who, name]:,}" if (who, name) in sizes else ""
                print(f"| {who}, {name} | {size} | {of_rounds(values)} | {times} | {share} |")
    print()
    for name in DTYPES:
        ours, free = middle["kvtools", name], middle["kvtools, every code allowed", name]
        told = [
            f"{ours / middle['products alone', name]:.0%} of the bound (≥ 60 %: {{}})",
            f"masking costs {free / ours - 1:.1%}",
        ]
        told = [told[0].format(verdict(ours >= 0.6 * middle["products alone", name])), told[1]]
        told[1] += f" (≤ 10 %: {verdict(free <= 1.1 * ours)})"
        scored = middle["kvtools, scores of items", name]
        told.append(f"with scores of items {scored / middle['products alone', name]:.0%} of the bound")
        if ("T5, prefix_allowed_tokens_fn", name) in middle:
            theirs = middle["T5, prefix_allowed_tokens_fn", name]
            told.insert(0, f"{ours / theirs:.1f}× T5 (≥ 14×: {verdict(ours >= 14 * theirs)})")
            told[-1] += f", {scored / theirs:.1f}× T5 (≥ 10×: {verdict(scored >= 10 * theirs)})"
        print(f"- {name}: {'; '.join(told)}.")
    sys.stdout.flush()


def memory(name, work, n_rounds, n_threads):
    """A wide search in this process: users/s, and the memory it took."""
    torch.set_num_threads(n_threads)
    keep_freed_memory()
    ours = Ours(work, DTYPES[name])
    ours.search(1)
    ctypes.CDLL(None).malloc_trim(0)  # what is free but kept would be used again, and missing from what the search took
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    assert legal_share(ours.search(), work) == 1
    held = resident("VmHWM") - before
    rates = []
    for _ in range(n_rounds):
        begun = time.perf_counter()
        ours.search()
        rates.append(work.batch / (time.perf_counter() - begun))
    bound = work.batch / statistics.median(
        sum(run().values()) for run in [gemm(gemm_shapes(bound_dims(ours), work), ours.dtype)] * 3
    )
    print(json.dumps({"rates": rates, "held": held, "before": before, "bound": bound}))


def measure_wide(work, n_rounds, n_threads):
    print(f"\n### Beam {work.beam}, {work.batch} users, a process each\n")
    print("| | users/s, median (least – most) | share of the bound | memory, GiB, above | ≤ 2 GiB |\n|---|---|---|---|---|")
    words = [f"{name}={value}" for name, value in vars(work).items()] + [f"rounds={n_rounds}", f"threads={n_threads}"]
    for name in DTYPES:
        done = subprocess.run(
            [sys.executable, HERE / "generate.py", "memory", name, *words], stdout=subprocess.PIPE, check=True, env=os.environ
        )
        told = json.loads(done.stdout)
        share = statistics.median(told["rates"]) / told["bound"]
        held, before = told["held"] / 2**30, told["before"] / 2**30
        print(
            f"| kvtools, {name} | {of_rounds(told['rates'])} | {share:.0%} | {held:.2f}, {before:.2f} | {verdict(held <= 2)} |"
        )
    sys.stdout.flush()


def main():
    first, *words = sys.argv[1:]
    is_memory = first == "memory"
    name, words = (words[0], words[1:]) if is_memory else ("", words)
    work, rest = asked(words, Work())
    n_rounds, n_threads, wide = (int(rest.pop(*pair)) for pair in (("rounds", 3), ("threads", 2), ("wide", 512)))
    assert not rest, rest
    if is_memory:
        memory(name, work, n_rounds, n_threads)
        return
    torch.set_num_threads(n_threads)
    keep_freed_memory()
    measure(first, work, n_rounds, n_threads)
    if wide:
        measure_wide(Work(**{**vars(work), "beam": wide}), n_rounds, n_threads)


if __name__ == "__main__":
    main()
