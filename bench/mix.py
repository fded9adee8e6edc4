"""How fast coldstart-mix mixes and packs text, beside Hugging Face's libraries, and whether its memory is flat: Markdown on
stdout.

Usage: mix.py PEERS_PYTHON [n=20000]

Texts are sentences of real instructions and solutions, drawn anew for each sample, so that none repeats another: some 150
tokens a sample. Ours is the whole command, a new process with its imports, near duplicates looked for and every format
checked; of the peer (mix_peers.py) imports are not timed, and it neither checks nor cleans. Each runs three times, in turn;
the medians are told.
"""

import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("KVTOOLS_DATA") or HERE.parent.parent / "shared" / "data")
KVTOOLS = Path(sys.executable).with_name("kvtools")
TOKENIZER = DATA / "tokenizer" / "minimind" / "tokenizer.json"
LENGTH = 4096
BAR = 5.0


def main(peers_python, n="20000", rounds="3"):
    n = int(n)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder, n)
        ours, theirs = [], []
        for _ in range(int(rounds)):
            ours.append(run_ours(folder, n))
            theirs.append(run_peer(folder, n, peers_python))
        seconds, peer = statistics.median(o["seconds"] for o in ours), statistics.median(t["seconds"] for t in theirs)
        print("| | samples/s | rows filled |\n|---|---|---|")
        print(f"| coldstart-mix | {n / seconds:,.0f} | {ours[0]['fill']:.1%} |")
        fill = theirs[0]["tokens"] / (LENGTH * theirs[0]["rows"])
        print(f"| datasets, chat template, trl.pack_dataset | {theirs[0]['samples'] / peer:,.0f} | {fill:.1%} |")
        ratio = n / seconds / (theirs[0]["samples"] / peer)
        print(f"\n{ratio:.1f} times as fast; the bar is {BAR:g}.\n")
    print("| samples | memory of the largest process, MiB |\n|---|---|")
    for times in (1, 20):
        with tempfile.TemporaryDirectory() as folder:
            write_texts(Path(folder), n // 10 * times)
            print(f"| {n // 10 * times:,} | {run_ours(Path(folder), n // 10 * times)['mib']:,.0f} |")


def sentences():
    rows = json.loads((DATA / "reasoning/llamafactory/alpaca_en_demo.json").read_text())
    texts = [row["output"] for row in rows]
    texts += [row["solution"] for row in json.loads((DATA / "reasoning/math_problems_thyme.json").read_text()).values()]
    found = {part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+|\n+", text)}
    return sorted(part for part in found if 30 < len(part) < 200 and "boxed" not in part and "<" not in part)


def write_texts(folder, n):
    pool, rng = sentences(), random.Random(0)
    draw = lambda least, most: " ".join(rng.choices(pool, k=rng.randint(least, most)))
    for mode, count in (("think", n * 230 // 560 + 1), ("no_think", n * 330 // 560 + 1)):
        with open(folder / f"{mode}.jsonl", "w", encoding="utf-8") as file:
            for number in range(count):
                answer = f"<think>{draw(3, 8)}</think><answer>\\boxed{{{number}}}</answer>" if mode == "think" else draw(2, 6)
                messages = [{"role": "user", "content": f"{number}. {draw(1, 2)}"}, {"role": "assistant", "content": answer}]
                file.write(json.dumps({"messages": messages}) + "\n")


def run_ours(folder, n):
    """Seconds, the fill, and the most memory that any of its processes had."""
    words = [
        KVTOOLS,
        "coldstart-mix",
        "-q",
        "--think",
        folder / "think.jsonl",
        "--no-think",
        folder / "no_think.jsonl",
        "-n",
        str(n),
        "--tokenizer",
        TOKENIZER,
        "--length",
        str(LENGTH),
        "-o",
        folder / "rows.kvs",
        "--report",
        folder / "report.json",
        "--force",
    ]
    begin = time.perf_counter()
    done = subprocess.Popen(words)
    _, status, usage = os.wait4(done.pid, 0)
    assert status == 0
    report = json.loads((folder / "report.json").read_text())
    assert report["n"] == n, report
    return {"seconds": time.perf_counter() - begin, "fill": report["fill"], "mib": usage.ru_maxrss / 1024}


def run_peer(folder, n, python):
    shutil.rmtree(folder / "cache", ignore_errors=True)
    words = [python, HERE / "mix_peers.py", folder, TOKENIZER, str(n), str(LENGTH)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main(*(word for word in sys.argv[1:] if "=" not in word), **dict(w.split("=", 1) for w in sys.argv[1:] if "=" in w))
