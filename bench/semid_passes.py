"""Where the time of a Lloyd iteration of semid-build goes: Markdown on stdout.

Usage: semid_passes.py [ROUNDS]

Gaussian noise, codes after three iterations, one thread and its processor time, the least of the rounds. The product: blocks of
rows by all codes in bfloat16, with the columns of the bounds, into memory that is used again. The passes: all else that it
takes to find the nearest codes, by torch and compiled. The sums: of the rows that changed their code. The codes: what is
prepared of them for an iteration.
"""

import sys
import time

import numpy as np
import torch

from kvtools.onerec.semantic_ids.exact_sums import CellSums, SquareSums
from kvtools.onerec.semantic_ids.kernels import Kernels
from kvtools.onerec.semantic_ids.nearest import Backend, CodebookIndex
from kvtools.onerec.semantic_ids.rqkmeans import RqKMeans
from kvtools.onerec.semantic_ids.vector_store import VectorStore
from kvtools.world import World

N_SCORES, MOST_ROWS, BLOCK_BYTES, N_EXTRA = 1e8, 100_000, 4 << 20, 8
SHAPES = [(codes, width) for codes in (256, 1024, 8192) for width in (64, 256, 1024)]


def least(work, n_rounds):
    seconds = []
    for _ in range(n_rounds):
        begun = time.thread_time()
        work()
        seconds.append(time.thread_time() - begun)
    return min(seconds)


def product(x_ND, n_codes):
    """The products of an iteration alone."""
    n_rows, width = BLOCK_BYTES // (2 * n_codes), x_ND.shape[1] + N_EXTRA
    rows = torch.randn(n_rows, width).bfloat16()
    codes, out = torch.randn(n_codes, width).bfloat16(), torch.empty(n_rows, n_codes, dtype=torch.bfloat16)
    for begin in range(0, len(x_ND), n_rows):
        torch.mm(rows[: len(x_ND) - begin], codes.T, out=out[: len(x_ND) - begin])


def line(n_codes, width, n_rounds):
    n = min(MOST_ROWS, max(2 * n_codes, int(N_SCORES / n_codes)))
    x = np.random.default_rng(0).standard_normal((n, width), dtype=np.float32)
    cpu = torch.device("cpu")
    store = VectorStore(width)
    store.append(0, x.copy())
    fit = RqKMeans(1, n_codes, 3, 0, "random")
    list(fit.fit(store, Backend(cpu, torch.bfloat16), World()))
    before, codes = fit.codes_NL[:, 0], fit.codebooks[0]
    noise = np.random.default_rng(1).standard_normal(codes.shape, dtype=np.float32)
    codes += 0.02 * noise * np.linalg.norm(codes, axis=1, keepdims=True) / width**0.5  # as if they had moved
    seconds = {"product": least(lambda: product(x, n_codes), n_rounds)}
    for name, is_compiled in (("torch", False), ("compiled", True)):
        index = CodebookIndex(codes, Backend(cpu, torch.bfloat16, is_compiled))
        after = index.nearest(x, before)
        seconds[name] = least(lambda index=index: index.nearest(x, before), n_rounds) - seconds["product"]
    cells = CellSums(n_codes, width, SquareSums(store, n, World()).parts, Kernels())
    cells.move(x, None, before)
    seconds["sums"] = least(lambda: cells.move(x, before, after), n_rounds)
    seconds["codes"] = least(lambda: CodebookIndex(codes, Backend(cpu, torch.bfloat16, True)), n_rounds)
    whole = sum(each for name, each in seconds.items() if name != "torch")
    cells = " | ".join(f"{1e6 * each / n:.2f}" for each in seconds.values())
    print(f"| {n_codes:,} | {width} | {n:,} | {cells} | {seconds['product'] / whole:.0%} |", flush=True)


def main(n_rounds="3"):
    torch.set_num_threads(1)
    print("Microseconds a row:\n")
    print("| codes | width | rows | product | passes by torch | compiled | sums | codes | share of the product, compiled |")
    print("|---|---|---|---|---|---|---|---|---|")
    for n_codes, width in SHAPES:
        line(n_codes, width, int(n_rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
