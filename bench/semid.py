"""semid-build against faiss and scikit-learn: same vectors, same first codes, same iterations, two threads; Markdown on stdout.

Usage: semid.py PEERS_PYTHON [ROUNDS]. Vectors: 200,000 patches of real clips on their first 256 principal components, and
200,000 vectors of Gaussian noise, which have no structure to exploit. Each contestant reads the vectors from an .npy before the
clock starts, and makes codebooks and codes of three levels. kvtools is timed as the library call that the command makes; the
whole command, with start-up, reading and writing, is a row of its own.
"""

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

from kvtools.artifact import open_artifact
from kvtools.chance import rng_for
from kvtools.onerec.semantic_ids.nearest import fastest
from kvtools.onerec.semantic_ids.rqkmeans import RqKMeans
from kvtools.onerec.semantic_ids.vector_store import VectorStore
from kvtools.world import World

N, D, LEVELS, ITERATIONS, SEED = 200_000, 256, 3, 20, 0
THREADS = 2
HERE = Path(__file__).parent


def all_patches(width, n=None):
    """Patches of real clips, n of them or all, centred, on their first principal components, float32 (n, width)."""
    clips = Path(os.environ["KVTOOLS_DATA"]) / "video" / "clips"
    with tempfile.NamedTemporaryFile(suffix=".kvs") as file:
        subprocess.run(["kvtools", "tokenize-video", "-q", "--force", "--compress", "0", clips, "-o", file.name], check=True)
        pixels = [record.tensors["pixels"].reshape(-1, 588) for record in open_artifact(file.name)]
    n_all = sum(map(len, pixels))
    chosen = np.sort(rng_for(SEED, "patches").choice(n_all, n or n_all, replace=False))
    starts = np.cumsum([0, *map(len, pixels)])
    parts = [p[chosen[(chosen >= a) & (chosen < b)] - a] for p, a, b in zip(pixels, starts, starts[1:], strict=False)]
    x = np.concatenate(parts).astype(np.float32) / 255
    x -= x.mean(axis=0)
    _, axes = np.linalg.eigh(x.T @ x)
    return np.ascontiguousarray(x @ axes[:, ::-1][:, :width])


def noise():
    return rng_for(SEED, "noise").standard_normal((N, D), dtype=np.float32)


def ceiling(n_codes):
    """GFLOP/s of the products alone: blocks of the rows by all codes, float32 (the better of numpy and torch) and bfloat16."""
    x, c = torch.randn(4096, D), torch.randn(n_codes, D)
    factors = {
        "numpy float32": (x.numpy(), c.numpy().T),
        "torch float32": (x, c.T),
        "torch bfloat16": (x.bfloat16(), c.bfloat16().T),
    }
    best = {}
    for name, (left, right) in factors.items():
        seconds = []
        for _ in range(20):
            begun = time.perf_counter()
            left @ right
            seconds.append(time.perf_counter() - begun)
        best[name] = 2 * 4096 * D * n_codes / min(seconds) / 1e9
    return best


def ours(x, n_codes, n_levels, init):
    rows = VectorStore(D)
    rows.append(0, x)
    fit = RqKMeans(n_levels, n_codes, ITERATIONS, SEED, init)
    begun = time.perf_counter()
    steps = list(fit.fit(rows, fastest("cpu", D, n_codes, N * n_codes * n_levels * (ITERATIONS + 1)), World()))
    return {"seconds": time.perf_counter() - begun, "mse": fit.mse, "passes": len(steps)}


def theirs(python, name, path, n_codes, n_levels, starts):
    words = {"name": name, "x": path, "codes": n_codes, "levels": n_levels, "iterations": ITERATIONS, "starts": starts}
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "OPENBLAS_NUM_THREADS": str(THREADS)}
    done = subprocess.run(
        [python, HERE / "semid_peers.py"], input=json.dumps(words), capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def command(path, n_codes, n_levels, init):
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        keys.write_text("".join(f"{i}\n" for i in range(N)))
        words = f"kvtools semid-build {path} --keys {keys} --codes {n_codes} --levels {n_levels} --iterations {ITERATIONS}"
        begun = time.perf_counter()
        subprocess.run([*words.split(), "--init", init, "-q", "-o", f"{folder}/x.ids"], check=True)
        return {"seconds": time.perf_counter() - begun}


def measure(title, x, python, n_codes, n_levels, contestants, n_rounds):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x.npy"
        np.save(path, x)
        # the rows that kvtools draws as initial centroids of each level, for contestants that accept them
        starts = [
            np.sort(rng_for(SEED, "semid-build", "init", level).choice(N, size=n_codes, replace=False)).tolist()
            for level in range(n_levels)
        ]
        runs = {"kvtools": lambda: ours(x.copy(), n_codes, n_levels, "random")}
        if "command" in contestants:
            runs["kvtools semid-build, whole command"] = lambda: command(path, n_codes, n_levels, "random")
        runs |= {
            name: lambda name=name: theirs(python, name, path, n_codes, n_levels, starts)
            for name in contestants
            if name != "command"
        }
        figures = {name: [] for name in runs}
        for _ in range(n_rounds):
            for name, run in runs.items():
                figures[name].append(run())
    gemm = ceiling(n_codes)
    seconds = {name: statistics.median(f["seconds"] for f in values) for name, values in figures.items()}
    flop = 2 * N * D * n_codes
    print(f"\n### {title}: N={N:,} D={D} K={n_codes:,} L={n_levels}, {ITERATIONS} iterations\n")
    print("Products alone: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in gemm.items()) + ".\n")
    print("| contestant | s, median (least – most) | kvtools is | MSE a dimension | against kvtools | GFLOP/s |")
    print("|---|---|---|---|---|---|")
    for name, values in figures.items():
        least, most = min(f["seconds"] for f in values), max(f["seconds"] for f in values)
        mse = values[0].get("mse")
        error = f"{mse:.6g} | {(mse / figures['kvtools'][0]['mse'] - 1) * 100:+.3f} %" if mse else "– | –"
        passes = values[0].get("passes")
        rate = f"{passes * flop / seconds[name] / 1e9:.0f}" if passes else "–"
        times = f"{seconds[name]:.1f} ({least:.1f} – {most:.1f}) | {seconds[name] / seconds['kvtools']:.2f}×"
        print(f"| {name} | {times} | {error} | {rate} |")
    sys.stdout.flush()


def main():
    torch.set_num_threads(THREADS)
    python, n_rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    everyone = ("command", "faiss.Kmeans", "faiss.ResidualQuantizer", "MiniBatchKMeans")
    real = all_patches(D, N)
    measure("Patches of real clips", real, python, 1024, LEVELS, everyone, n_rounds)
    measure("Gaussian noise", noise(), python, 1024, LEVELS, everyone[:2], n_rounds)
    measure("Patches of real clips, one level of 8192", real, python, 8192, 1, ("faiss.Kmeans",), 1)


if __name__ == "__main__":
    main()
