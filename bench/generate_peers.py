"""Generating semantic IDs with transformers' T5, and the time of the matrix products alone: a JSON line a contestant on stdout.

Usage: generate_peers.py [CONTESTANT]... [NAME=VALUE]...
Contestants: t5-float32, t5-bfloat16, either with -no-trie after it, gemm-float32, gemm-bfloat16; without any, the four of no
suffix. Names: those of Work, below, and rounds (3), threads (2) and serve (0); with serve=1 nothing is timed until asked: lines
are printed at once, and then the seconds of one batch for each contestant's name that comes on stdin.

One batch: 32 users, encoder length 100 (33 items of 3 codes and an end), beam 50, 3 codes of 256, a catalogue of 20,000 items
of distinct random codes. T5: d_model 256, 4 + 4 layers, 4 heads of 64, feed-forward 1024 with ReLU (the ratio and the
activation of the first T5), random weights, generate() as its users call it, the trie a nested dict that
prefix_allowed_tokens_fn walks. Runs in the peers' environment and imports nothing of kvtools; bench/generate.py takes Dims,
gemm_shapes, gemm and users_per_s from here for ours. A contestant is a function without arguments that does one batch.
"""

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch

SEED = 0
PAD, END, N_SPECIAL = 0, 1, 2
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEFAULT = ("t5-float32", "t5-bfloat16", "gemm-float32", "gemm-bfloat16")


@dataclass(frozen=True)
class Work:
    """What everybody is asked for."""

    batch: int = 32  # users
    length: int = 100  # encoder positions
    beam: int = 50
    codes: int = 256  # on each level
    levels: int = 3
    items: int = 20_000


@dataclass(frozen=True)
class Dims:
    """The sizes of an encoder and a decoder with cross-attention, as far as its products need them."""

    n_enc: int = 4
    n_dec: int = 4
    d: int = 256
    n_heads: int = 4
    d_head: int = 64
    ffn: int = 1024  # hidden width, of one expert where there are experts
    is_gated: bool = False  # SwiGLU has three matrices, and its first two are taken as one product
    n_experts: int = 1  # in the decoder's feed-forward; 1 is a dense one
    n_active: int = 1


class Shape(NamedTuple):
    """n products of (rows, inner) by (inner, columns), as one batched torch.matmul; n = 1 is a plain one."""

    part: str
    n: int
    rows: int
    inner: int
    columns: int


def gemm_shapes(dims, work):
    """Every product that one batch cannot do without, in the order of the model.

    The encoder runs once, the decoder's cross-attention keys and values are made once a layer and shared by a user's beams,
    and the decoder takes one row a user, then min(beam, codes ** level) rows a user: it has its own keys and values cached.
    Queries, keys and values of self-attention are one product. A level's head has as many columns as the level has codes.
    Self-attention over one position is no product. Experts are taken as evenly loaded as whole rows can be.
    Left out, since no product: embeddings, norms, softmax, activations, top-k, the trie, and pathways before the encoder.
    """
    inner, rows = dims.n_heads * dims.d_head, work.batch * work.length

    def attention(part, n, n_queries, n_keys):
        return [Shape(part, n, n_queries, dims.d_head, n_keys), Shape(part, n, n_queries, n_keys, dims.d_head)]

    def feed_forward(part, rows, n_experts=1, n_active=1):
        shapes = [Shape(part, 1, rows, dims.d, n_experts)] if n_experts > 1 else []
        each, more = divmod(rows * n_active, n_experts)
        for n_rows in [each + 1] * more + ([each] * (n_experts - more) if each else []):
            shapes += [Shape(part, 1, n_rows, dims.d, dims.ffn * (1 + dims.is_gated)), Shape(part, 1, n_rows, dims.ffn, dims.d)]
        return shapes

    shapes = []
    for _ in range(dims.n_enc):
        shapes.append(Shape("encoder", 1, rows, dims.d, 3 * inner))
        shapes += attention("encoder attention", work.batch * dims.n_heads, work.length, work.length)
        shapes.append(Shape("encoder", 1, rows, inner, dims.d))
        shapes += feed_forward("encoder", rows)
    shapes += [Shape("cross keys and values", 1, rows, dims.d, 2 * inner)] * dims.n_dec
    for level in range(work.levels):
        beams = min(work.beam, work.codes**level)
        rows = work.batch * beams
        for _ in range(dims.n_dec):
            shapes.append(Shape("decoder", 1, rows, dims.d, 3 * inner))
            shapes += attention("self-attention", rows * dims.n_heads, 1, level + 1) if level else []
            shapes += [Shape("decoder", 1, rows, inner, dims.d), Shape("decoder", 1, rows, dims.d, inner)]
            shapes += attention("cross-attention", work.batch * dims.n_heads, beams, work.length)
            shapes.append(Shape("decoder", 1, rows, inner, dims.d))
            shapes += feed_forward("decoder", rows, dims.n_experts, dims.n_active)
        shapes.append(Shape("head", 1, rows, dims.d, work.codes))
    return shapes


def gflop(shapes):
    return sum(2 * s.n * s.rows * s.inner * s.columns for s in shapes) / 1e9


def gemm(shapes, dtype):
    """The contestant that does the products of the shapes and nothing else; it returns the seconds of each part.

    Every plain product has weights of its own, transposed as torch.nn.Linear keeps them, since a model's do not stay in the
    cache either. Results go into memory that is there already: new memory for each cost up to a third of the time.
    """

    def normal(*size):
        return torch.randn(size, dtype=dtype)

    left = {(s.n, s.rows, s.inner): None for s in shapes}
    left = {size: normal(*size) if size[0] > 1 else normal(*size[1:]) for size in left}
    right = [normal(s.columns, s.inner).T if s.n == 1 else normal(s.n, s.inner, s.columns) for s in shapes]
    sizes = {(s.n, s.rows, s.columns) for s in shapes}
    out = {size: torch.empty(size if size[0] > 1 else size[1:], dtype=dtype) for size in sizes}
    products = [
        (s.part, left[s.n, s.rows, s.inner], factor, out[s.n, s.rows, s.columns])
        for s, factor in zip(shapes, right, strict=True)
    ]

    def run():
        seconds = dict.fromkeys((s.part for s in shapes), 0.0)
        begun = time.perf_counter()
        for part, a, b, c in products:
            torch.matmul(a, b, out=c)
            now = time.perf_counter()
            seconds[part] += now - begun
            begun = now
        return seconds

    return run


def gemm_seconds(shapes, dtype, n_rounds=3):
    """Seconds for all products of the shapes: median of the rounds, after one that does not count."""
    run = gemm(shapes, dtype)
    return statistics.median([sum(run().values()) for _ in range(n_rounds + 1)][1:])


def catalogue(work):
    """int64 (items, levels): distinct random codes."""
    space = work.codes**work.levels
    numbers = np.sort(np.random.default_rng(SEED).choice(space, work.items, replace=False))
    return np.stack(np.unravel_index(numbers, (work.codes,) * work.levels), axis=1)


def tokens(codes_NL, n_codes):
    """The T5's tokens of codes: each level has a range of its own, after the special ones."""
    return codes_NL + N_SPECIAL + n_codes * np.arange(codes_NL.shape[1])


def t5_model(n_tokens, d=256, n_enc=4, n_dec=4, n_heads=4, d_head=64, ffn=1024, **more):
    """transformers' T5 with random weights."""
    import cpu_torchvision  # noqa: F401 - before transformers
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(SEED)
    config = T5Config(
        vocab_size=n_tokens,
        d_model=d,
        num_layers=n_enc,
        num_decoder_layers=n_dec,
        num_heads=n_heads,
        d_kv=d_head,
        d_ff=ffn,
        feed_forward_proj="relu",
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        **more,
    )
    return T5ForConditionalGeneration(config)


def t5(work, dtype, *, with_trie=True, **sizes):
    """transformers' T5 as a contestant that returns the tokens (batch, beam, levels); and the T5 itself. sizes: of t5_model."""
    model = t5_model(N_SPECIAL + work.codes * work.levels, **sizes).to(dtype).eval()
    known = tokens(catalogue(work), work.codes)
    trie = {}
    for item in known.tolist():
        node = trie
        for token in item:
            node = node.setdefault(token, {})

    def allowed(_, prefix):
        node = trie
        for token in prefix[1:].tolist():
            node = node[token]
        return list(node)

    rng = np.random.default_rng(SEED + 1)
    n_history = (work.length - 1) // work.levels
    history = known[rng.integers(0, len(known), (work.batch, n_history))].reshape(work.batch, -1)
    # the end fills what items leave of the length: all positions count
    ids = torch.full((work.batch, work.length), END)
    ids[:, : history.shape[1]] = torch.from_numpy(history)

    @torch.inference_mode()
    def run():
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=work.beam,
            num_return_sequences=work.beam,
            max_new_tokens=work.levels,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed if with_trie else None,
        )
        return found[:, 1:].reshape(work.batch, work.beam, -1)

    return run, model


def legal_share(found, work):
    known = set(map(tuple, tokens(catalogue(work), work.codes).tolist()))
    found = found.reshape(-1, found.shape[-1]).tolist()
    return sum(tuple(item) in known for item in found) / len(found)


def users_per_s(contestants, n_users, n_rounds=3):
    """For each name of a contestant: users a second as median, least and most of the rounds, which they take in turn after
    one round that does not count."""
    rates = {name: [] for name in contestants}
    for turn in range(n_rounds + 1):
        for name, run in contestants.items():
            begun = time.perf_counter()
            run()
            rates[name] += [n_users / (time.perf_counter() - begun)] if turn else []
    return {name: {"users_per_s": statistics.median(r), "least": min(r), "most": max(r)} for name, r in rates.items()}


def serve(turns):
    """For each line on stdin, which names a turn, the seconds it took as a line on stdout."""
    for line in sys.stdin:
        begun = time.perf_counter()
        turns[line.strip()]()
        print(time.perf_counter() - begun, flush=True)


def asked(words, default):
    """A dataclass with the words NAME=VALUE put in place of its defaults, and the words it has no field for."""
    given = dict(word.split("=") for word in words)
    types = {field.name: field.type for field in fields(default)}
    return replace(default, **{n: types[n](given.pop(n)) for n in types if n in given}), given


def main():
    names = [word for word in sys.argv[1:] if "=" not in word] or list(DEFAULT)
    work, rest = asked([word for word in sys.argv[1:] if "=" in word], Work())
    n_rounds, n_threads, is_served = (int(rest.pop(*pair)) for pair in (("rounds", 3), ("threads", 2), ("serve", 0)))
    assert not rest, rest
    torch.set_num_threads(n_threads)
    runs, rows = {}, {}
    for name in names:
        kind, precision, *suffix = name.split("-", 2)
        rows[name] = {"contestant": name, **asdict(work), "threads": n_threads}
        if kind == "gemm":
            shapes = gemm_shapes(Dims(), work)
            runs[name] = gemm(shapes, DTYPES[precision])
            rounds = [runs[name]() for _ in range(n_rounds + 1)]
            rows[name] |= {"gflop": gflop(shapes), "parts_s": {part: min(r[part] for r in rounds) for part in rounds[0]}}
            continue
        runs[name], model = t5(work, DTYPES[precision], with_trie=suffix != ["no-trie"])
        try:
            share = legal_share(runs[name](), work)
        except (RuntimeError, NotImplementedError) as error:  # a precision that this build cannot do is a finding
            rows[name]["error"] = str(error).splitlines()[0]
            del runs[name]
            continue
        rows[name] |= {"parameters": model.num_parameters(), "legal_share": share}
    measured = {} if is_served else users_per_s(runs, work.batch, n_rounds)
    for name, row in rows.items():
        print(json.dumps(row | measured.get(name, {})), flush=True)
    if is_served:
        serve(runs)


if __name__ == "__main__":
    main()
