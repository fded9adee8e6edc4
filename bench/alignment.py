"""Does learning from rewards help? Tiny Keye-VLs on questions that they half know, three seeds; figures for bench/README.md.

    python bench/alignment.py FOLDER [--seeds 3] [--steps 60]

Each seed: a model learns to count letters and to find the largest digit, in two modes, from one pass over some questions; then
`rl grpo` with both modes mixed, on prompts that it never saw, by correctness and format. Accuracy is that of greedy answers to
held-out prompts, in each mode, before and after; the interval is a bootstrap over questions and seeds of the difference.
MPO then learns from pairs of its own answers (`rl sample`, `rl pairs`, `rl mpo`): repetition and accuracy before and after.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

KVTOOLS = [str(Path(sys.executable).parent / "kvtools")]
SIZE = ["--architecture", "vision.layers=1", "--architecture", "language.layers=3"]


def kvtools(*words):
    subprocess.run([*KVTOOLS, *map(str, words)], check=True)


def question(rng):
    """A question, its answer, and the thought that leads to it."""
    if rng.random() < 0.5:
        digits = "".join(rng.choice("0123456789") for _ in range(3))
        return f"Largest digit of {digits}?", max(digits), f"The digits are {', '.join(digits)}. {max(digits)} is the largest."
    word = "".join(rng.choice("aaabcd") for _ in range(rng.randint(3, 7)))
    return f"How many a in {word}?", str(word.count("a")), f"The letters are {', '.join(word)}. I count {word.count('a')}."


def questions(n, seed, seen=()):
    rng, found = random.Random(seed), {}
    while len(found) < n:
        text, answer, thought = question(rng)
        if text not in seen:
            found[text] = (answer, thought)
    return found


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def talks(asked):
    for text, (answer, thought) in asked.items():
        reply = f"<think>{thought}</think><answer>\\boxed{{{answer}}}</answer>"
        for mode, said in (("no_think", answer), ("think", reply)):
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": said}]
            yield {"id": f"{text} {mode}", "mode": mode, "messages": messages}


def prompts(asked):
    return [{"id": text, "prompt": text, "answer": answer} for text, (answer, _) in asked.items()]


def is_right(model, held, mode, folder, name):
    """0 or 1 for each held-out question, greedily, and the mean repetition."""
    out = folder / f"{name}-{mode}.kvs"
    kvtools(
        "rl", "sample", "-q", held, "--model", model, "--group", 1, "--temperature", 0, "--max-new", 96, "--modes", mode,
        "--reward", "correct", "--reward", "repetition:0", "--overlong", "keep", "-o", out, "--force",
    )  # fmt: skip
    lines = subprocess.run([*KVTOOLS, "cat", "--json", str(out)], check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in lines.splitlines()]
    right = {row["prompt"]: row["rewards"]["correct"] for row in rows}
    return [right[key] for key in sorted(right)], float(np.mean([row["rewards"]["repetition"] for row in rows]))


def interval(differences):
    """The mean and the 95 % interval of a difference, drawn over questions and seeds together."""
    values = np.array(differences, float)
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(2000, len(values)))].mean(1)
    return values.mean(), *np.quantile(means, [0.025, 0.975])


def one_seed(folder, seed, arguments):
    folder.mkdir(parents=True, exist_ok=True)
    learnt = questions(arguments.learnt, 100 * seed)
    asked = questions(arguments.asked, 100 * seed + 1, learnt)
    held = questions(arguments.held, 100 * seed + 2, {**learnt, **asked})
    write(folder / "talks.jsonl", talks(learnt))
    write(folder / "prompts.jsonl", prompts(asked))
    write(folder / "held.jsonl", prompts(held))
    start, after = folder / "start.model", folder / "grpo.model"
    if not start.exists():
        kvtools(
            "pretrain", "keye", "-q", folder / "talks.jsonl", "--stage", "cold-start", "--lr", 2e-3,
            "--steps", arguments.pretrain, "--batch-tokens", 2048, "--length", 1024, "--seed", seed, *SIZE, "-o", start,
        )  # fmt: skip
    if not after.exists():
        kvtools(
            "rl", "grpo", "-q", folder / "prompts.jsonl", "--model", start, "--modes", "think:1,no_think:1",
            "--reward", "correct", "--reward", "format:0.2", "--batch", 16, "--group", 8, "--max-new", 96,
            "--steps", arguments.steps, "--lr", arguments.lr, "--seed", seed, "--log", folder / "grpo.jsonl", "-o", after,
        )  # fmt: skip
    rows = {}
    for mode in ("no_think", "think"):
        before, _ = is_right(start, folder / "held.jsonl", mode, folder, "before")
        then, _ = is_right(after, folder / "held.jsonl", mode, folder, "after")
        rows[mode] = (before, then)
        print(json.dumps({"seed": seed, "mode": mode, "before": np.mean(before), "after": np.mean(then)}), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pretrain", default="1ep")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--learnt", type=int, default=1500)
    parser.add_argument("--asked", type=int, default=400)
    parser.add_argument("--held", type=int, default=200)
    arguments = parser.parse_args()
    results = [one_seed(arguments.folder / str(seed), seed, arguments) for seed in range(arguments.seeds)]
    for mode in ("no_think", "think"):
        before, after = (np.concatenate([rows[mode][side] for rows in results]) for side in (0, 1))
        mean, low, high = interval(after - before)
        print(f"{mode}: {before.mean():.3f} -> {after.mean():.3f}, difference {mean:+.3f} (95 % {low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()
