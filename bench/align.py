"""Does alignment bring held-out pairs under one first-level code? A Markdown table. Usage: align.py [validation|test] STEPS...

Amazon Beauty's 5-core of 2014 in $KVTOOLS_DATA/rec: keywords -> TF-IDF -> SVD 128 -> unit length; pairs are neighbours, up to
3 apart, in each user's training part (all but the last two items). Held out: (last training item, validation item) while
choosing settings, (last training item, test item) once. First level: scikit-learn's KMeans, K 256. Chance: the sum of
squared shares of the codes, weighted by nothing. Lift: shared over chance.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from kvtools.onerec.align import Settings, align


def beauty():
    folder = Path(os.environ["KVTOOLS_DATA"]) / "rec" / "amazon_beauty_2014"
    words = json.loads((folder / "item_keywords.json").read_text())
    users = [[int(n) - 1 for n in line.split()[1:]] for line in (folder / "sequential_data.txt").read_text().splitlines()]
    n_items = max(map(max, users)) + 1
    texts = [words.get(str(i + 1), []) for i in range(n_items)]
    tfidf = TfidfVectorizer(analyzer=lambda terms: terms).fit_transform(texts)
    x_ND = TruncatedSVD(128, random_state=0).fit_transform(tfidf)
    return (x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)).astype(np.float32), users


def main():
    which, steps = sys.argv[1], [int(n) for n in sys.argv[2:]]
    x_ND, users = beauty()
    pairs_P2 = np.array(
        [
            (a, b)
            for items in users
            for i, a in enumerate(items[:-2])
            for b in items[max(0, i - 3) : min(i + 4, len(items) - 2)]
            if a != b
        ]
    )
    held_P2 = np.array([(items[-3], items[-2 if which == "validation" else -1]) for items in users])
    print(f"{len(x_ND)} items, {len(pairs_P2)} training pairs, {len(held_P2)} held-out ({which})\n", flush=True)
    print(
        "| steps | seed | shared | chance | lift | entropy, nats | first and last loss | s |\n|---|---|---|---|---|---|---|---|"
    )
    for seed in range(3):
        for n_steps in (0, *steps):
            begun, vectors, losses = time.monotonic(), x_ND, [np.nan]
            if n_steps:
                result = align(x_ND, pairs_P2, settings=Settings(n_steps=n_steps), seed=seed)
                vectors, losses = result.vectors, result.losses
            seconds = time.monotonic() - begun
            codes_N = KMeans(256, n_init=1, max_iter=25, random_state=seed).fit_predict(vectors)
            share_K = np.bincount(codes_N, minlength=256) / len(codes_N)
            shared, chance = np.mean(codes_N[held_P2[:, 0]] == codes_N[held_P2[:, 1]]), np.sum(share_K**2)
            entropy = -np.sum(share_K[share_K > 0] * np.log(share_K[share_K > 0]))
            print(
                f"| {n_steps} | {seed} | {shared:.4f} | {chance:.4f} | {shared / chance:.1f} | {entropy:.3f} "
                f"| {losses[0]:.3f} to {np.mean(losses[-20:]):.3f} | {seconds:.0f} |",
                flush=True,
            )


main()
