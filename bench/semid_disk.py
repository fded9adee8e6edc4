"""semid-build from a file larger than its memory, against faiss's way with many rows: train on a sample, then encode all.

Usage: semid_disk.py PEERS_PYTHON [ROWS [CODES [ITERATIONS]]]. Vectors: as many rows of 64 dimensions as asked for, patches of
real clips on their first principal components where there are enough, Gaussian noise where not, of unit norm; the table says
which. Three levels from random rows. kvtools reads the stream that kvtools embed writes, and holds 256 MiB of vectors in
memory, the rest in $TMPDIR; peak is the most resident memory of the process. faiss.Kmeans trains on 256 rows a code, its
default, and holds an .npy in memory; it is left out where PEERS_PYTHON is `none`. Markdown on stdout.
"""

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
from semid import HERE, SEED, THREADS, all_patches

from kvtools.chance import rng_for

WIDTH, LEVELS, BLOCK = 64, 3, 1 << 18
LIMIT = {"OMP_NUM_THREADS": str(THREADS), "OPENBLAS_NUM_THREADS": str(THREADS)}


def write_vectors(path, n_rows):
    """The vectors as .npy, block by block; returns what they are."""
    real = all_patches(WIDTH)
    is_real = len(real) >= n_rows
    rng = rng_for(SEED, "disk")
    file = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, WIDTH))
    for begin in range(0, n_rows, BLOCK):
        n = min(BLOCK, n_rows - begin)
        rows = real[begin : begin + n] if is_real else rng.standard_normal((n, WIDTH), dtype=np.float32)
        file[begin : begin + n] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    file.flush()
    return "patches of real clips" if is_real else "Gaussian noise"


def run(words, text=""):
    """Seconds, peak MiB, and stdout and stderr of a process."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as err:
        process = Popen(words, stdin=PIPE, stdout=PIPE, stderr=err, text=True, env=os.environ | LIMIT)
        process.stdin.write(text)
        process.stdin.close()
        out = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        err.seek(0)
        said = err.read()
    assert status == 0, said
    return seconds, used.ru_maxrss / 1024, out, said


def main(python, n_rows="10000000", n_codes="8192", n_iterations="20"):
    n_rows, n_codes = int(n_rows), int(n_codes)
    with tempfile.TemporaryDirectory() as folder:
        path, keys = Path(folder) / "x.npy", Path(folder) / "keys"
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:  # a process begins with the peak of its parent
            what = apart.submit(write_vectors, path, n_rows).result()
        with keys.open("w") as file:
            file.writelines(f"{i}\n" for i in range(n_rows))
        embedded_s, _, _, _ = run(f"kvtools embed -q {path} --keys {keys} -o {folder}/x.kvs".split())
        n_bytes = Path(f"{folder}/x.kvs").stat().st_size
        if python == "none":
            path.unlink()
        sizes = f"--codes {n_codes} --levels {LEVELS} --iterations {n_iterations} --init random --memory 256MiB -v"
        seconds, peak, _, said = run(f"kvtools semid-build {folder}/x.kvs {sizes} -o {folder}/x.ids".split())
        mse = float(said.rsplit("mse ", 1)[1].split(",")[0])
        print(f"\n### From disk, {what}: N={n_rows:,} D={WIDTH} K={n_codes:,} L={LEVELS}, {n_iterations} iterations\n")
        print("| | s | peak MiB | MSE a dimension |\n|---|---|---|---|")
        print(f"| kvtools embed, {n_bytes / 2**30:.2f} GiB written | {embedded_s:.0f} | | |")
        print(f"| kvtools semid-build, whole command | {seconds:.0f} | {peak:.0f} | {mse:.6g} |", flush=True)
        if python != "none":
            words = {"name": "faiss.Kmeans, a sample", "x": str(path), "codes": n_codes, "iterations": int(n_iterations)}
            _, peak, out, _ = run([python, str(HERE / "semid_peers.py")], json.dumps(words | {"levels": LEVELS}))
            theirs = json.loads(out.splitlines()[-1])
            print(f"| faiss.Kmeans, trained on a sample | {theirs['seconds']:.0f} | {peak:.0f} | {theirs['mse']:.6g} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
