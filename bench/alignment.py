"""Does learning from rewards help? Tiny Keye-VLs on questions that they half know, three seeds; figures for bench/README.md.

    python bench/alignment.py FOLDER [--mpo] [--seeds 3] [--steps 40]

One start model learns to count letters and to find the largest digit, in two modes, from one pass over some questions. Each
seed of `rl grpo` then takes prompts that the model never saw, both modes mixed, and rewards correctness and format. Accuracy
is that of greedy answers to held-out prompts, in each mode, before and after; the interval is a bootstrap over questions and
seeds of the difference. With --mpo: the start model is first taught to say most thoughts three times; each seed samples its
answers, pairs the best with the worst (`rl pairs`), trains on them (`rl mpo`), and tells repetition and accuracy before and
after.
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


def start_model(folder, arguments):
    """The model that all seeds start from, the questions that it has seen, and the same model after it was taught to repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    learnt = questions(arguments.learnt, 0)
    start, repeating = folder / "start.model", folder / "repeating.model"
    write(folder / "talks.jsonl", talks(learnt))
    rng = random.Random(0)
    again = {
        text: (answer, " ".join([thought] * (3 if rng.random() < 0.7 else 1))) for text, (answer, thought) in learnt.items()
    }
    write(folder / "repeating.jsonl", [talk for talk in talks(again) if talk["mode"] == "think"])
    common = ["--batch-tokens", 2048, "--length", 1024, "--stage", "cold-start"]
    if not start.exists():
        kvtools("pretrain", "keye", "-q", folder / "talks.jsonl", "--lr", 2e-3, "--steps", "1ep", *common, *SIZE, "-o", start)
    if arguments.mpo and not repeating.exists():
        kvtools(
            "pretrain", "keye", "-q", folder / "repeating.jsonl", "--init", start, "--lr", 1e-3, "--steps", 60, *common,
            "-o", repeating,
        )  # fmt: skip
    return start, repeating, learnt


def grpo(folder, seed, arguments, start, learnt):
    """0 or 1 for each held-out question before and after, by mode."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = questions(arguments.asked, 100 * seed + 1, learnt)
    held = questions(arguments.held, 100 * seed + 2, {**learnt, **asked})
    write(folder / "prompts.jsonl", prompts(asked))
    write(folder / "held.jsonl", prompts(held))
    after = folder / "grpo.model"
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


def mpo(folder, seed, arguments, repeating, learnt):
    """Repetition and correctness of held-out answers before and after one round of sampling, pairs and MPO."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = questions(arguments.asked, 100 * seed + 1, learnt)
    held = questions(arguments.held, 100 * seed + 2, {**learnt, **asked})
    write(folder / "prompts.jsonl", prompts(asked))
    write(folder / "held.jsonl", prompts(held))
    pairs, after = folder / "pairs.kvs", folder / "mpo.model"
    if not after.exists():
        kvtools(
            "rl", "sample", "-q", folder / "prompts.jsonl", "--model", repeating, "--modes", "think", "--group", 8,
            "--max-new", 200, "--overlong", "keep", "--reward", "correct", "--reward", "repetition:-1", "--seed", seed,
            "--force", "-o", folder / "rollouts.kvs",
        )  # fmt: skip
        kvtools("rl", "pairs", "-q", "--force", folder / "rollouts.kvs", "-o", pairs)
        kvtools(
            "rl", "mpo", "-q", pairs, "--model", repeating, "--steps", "2ep", "--batch", 16, "--seed", seed,
            "--log", folder / "mpo.jsonl", "-o", after,
        )  # fmt: skip
    figures = [
        is_right(model, folder / "held.jsonl", "think", folder, name) for model, name in ((repeating, "r"), (after, "m"))
    ]
    (right, repetition), (right_after, repetition_after) = ((np.mean(x), y) for x, y in figures)
    told = {"seed": seed, "repetition": [repetition, repetition_after], "right": [right, right_after]}
    print(json.dumps(told), flush=True)
    return repetition, repetition_after, right, right_after


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--mpo", action="store_true")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--learnt", type=int, default=1500)
    parser.add_argument("--asked", type=int, default=400)
    parser.add_argument("--held", type=int, default=200)
    arguments = parser.parse_args()
    start, repeating, learnt = start_model(arguments.folder, arguments)
    seeds = range(arguments.seeds)
    if arguments.mpo:
        rows = [mpo(arguments.folder / f"mpo-{seed}", seed, arguments, repeating, learnt) for seed in seeds]
        print("repetition before and after, right before and after:", np.mean(rows, 0).round(3).tolist())
        return
    results = [grpo(arguments.folder / f"grpo-{seed}", seed, arguments, start, learnt) for seed in seeds]
    for mode in ("no_think", "think"):
        before, after = (np.concatenate([rows[mode][side] for rows in results]) for side in (0, 1))
        mean, low, high = interval(after - before)
        print(f"{mode}: {before.mean():.3f} -> {after.mean():.3f}, difference {mean:+.3f} (95 % {low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()
