"""Does alignment bring held-out pairs under one first-level code? A Markdown table on stdout.

Usage: align.py validation|test [NAME=VALUE,...]...   each set of values is one AlignConfig to compare

Amazon Beauty's 5-core of 2014 in $KVTOOLS_DATA/rec, vectors by `kvtools embed`, pairs by `kvtools pairs`, which sees the
training part alone (all but a user's last two items). Held-out pairs: (last training item, validation item) to choose a config,
(last training item, test item) once. First-level codes by RQ-KMeans, K 256. Chance: the probability that two random items have
one code, the sum of the codes' squared frequencies. Lift: the fraction of held-out pairs with one code, over chance.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kvtools.artifact import open_artifact
from kvtools.artifact.strings import unpack
from kvtools.onerec.semantic_ids.align import AlignConfig, align
from kvtools.onerec.semantic_ids.nearest import fastest
from kvtools.onerec.semantic_ids.rqkmeans import RqKMeans
from kvtools.onerec.semantic_ids.vector_store import VectorStore
from kvtools.world import World

K, SEEDS = 256, (0, 1, 2)
FOLDER = Path(os.environ["KVTOOLS_DATA"]) / "rec" / "amazon_beauty_2014"


def made(command, *options):
    with tempfile.NamedTemporaryFile(suffix=".kvs") as file:
        subprocess.run(["kvtools", command, *options, "-q", "--force", "-o", file.name], check=True)
        return [{name: np.array(a) for name, a in record.tensors.items()} for record in open_artifact(file.name)]


def first_codes(x_ND, seed):
    rows = VectorStore(x_ND.shape[1])
    rows.append(0, x_ND)
    fit = RqKMeans(1, K, 25, seed)
    for _ in fit.fit(rows, fastest("cpu", x_ND.shape[1], K), World()):
        pass
    return fit.codes_NL[:, 0]


def main():
    which, tries = sys.argv[1], [{}, *(dict(pair.split("=") for pair in word.split(",")) for word in sys.argv[2:])]
    batches = made("embed", FOLDER / "item_keywords.json")
    x_ND = np.concatenate([batch["vectors"] for batch in batches])
    keys = [key for batch in batches for key in unpack("keys", batch)]
    row_of = {key: row for row, key in enumerate(keys)}
    pairs_P2 = np.concatenate(
        [
            np.array([row_of.get(key, -1) for key in unpack("keys", record)])[record["pairs"]]
            for record in made("pairs", FOLDER / "sequential_data.txt")
        ]
    )
    pairs_P2 = pairs_P2[(pairs_P2 >= 0).all(axis=1)]
    lines = [line.split()[1:] for line in (FOLDER / "sequential_data.txt").read_text().splitlines()]
    held_P2 = np.array([(row_of[items[-3]], row_of[items[-2 if which == "validation" else -1]]) for items in lines])
    print(f"\n{len(x_ND):,} items, {len(pairs_P2):,} training pairs, {len(held_P2):,} held-out pairs ({which})\n", flush=True)
    print("| settings | shared, mean (seeds) | chance | lift | entropy, nats | s |\n|---|---|---|---|---|---|")
    for words in tries:
        config = AlignConfig(**{name: type(getattr(AlignConfig, name))(value) for name, value in words.items()})
        shared, chances, entropies, seconds = [], [], [], []
        for seed in SEEDS if which == "test" else SEEDS[:1]:
            begun = time.monotonic()
            vectors = align(x_ND, pairs_P2, config=config, seed=seed).vectors if words else x_ND
            seconds.append(time.monotonic() - begun)
            codes_N = first_codes(vectors, seed)
            share_K = np.bincount(codes_N, minlength=K) / len(codes_N)
            shared.append(float(np.mean(codes_N[held_P2[:, 0]] == codes_N[held_P2[:, 1]])))
            chances.append(float(np.sum(share_K**2)))
            entropies.append(float(-(share_K[share_K > 0] * np.log(share_K[share_K > 0])).sum()))
        name = ", ".join(f"{n} {v}" for n, v in words.items()) or "no alignment"
        each = ", ".join(f"{value:.4f}" for value in shared)
        mean, chance = statistics.mean(shared), statistics.mean(chances)
        cells = f"{mean:.4f} ({each}) | {chance:.4f} | {mean / chance:.1f} | {statistics.mean(entropies):.3f}"
        print(f"| {name} | {cells} | {statistics.mean(seconds):.0f} |", flush=True)


main()
