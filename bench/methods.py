"""RQ-KMeans, balanced k-means and RQ-VAE on the same real vectors, three seeds each: the comparison of the report's Table 11.

Amazon Beauty's items in $KVTOOLS_DATA/rec by `kvtools embed`; K 256, L 3. A Markdown table on stdout.
"""

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

ITEMS = Path(os.environ["KVTOOLS_DATA"]) / "rec" / "amazon_beauty_2014" / "item_keywords.json"


def main():
    print("\n| method | MSE a dimension (seeds) | utilisation | entropy, nats | distinct | largest bucket | s |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["kvtools", "embed", "-q", ITEMS, "-o", f"{folder}/items.kvs"], check=True)
        for method in ("rq-kmeans", "balanced", "rq-vae"):
            reports = []
            for seed in ("0", "1", "2"):
                words = f"kvtools semid-build {folder}/items.kvs --codes 256 --method {method} --seed {seed} -q --json --force"
                done = subprocess.run([*words.split(), "-o", f"{folder}/x.ids"], check=True, capture_output=True)
                reports.append(json.loads(done.stdout))

            def mean(name, level=None, reports=reports):
                return statistics.mean(r[name] if level is None else r[name][level] for r in reports)

            errors = ", ".join(f"{r['mse']:.6f}" for r in reports)
            used, nats = (" / ".join(f"{mean(name, i):.3f}" for i in range(3)) for name in ("utilisation", "entropy_nats"))
            rest = f"{mean('distinct_share'):.3f} | {mean('max_bucket'):.0f} | {mean('seconds'):.1f}"
            print(f"| {method} | {mean('mse'):.6f} ({errors}) | {used} | {nats} | {rest} |", flush=True)


main()
