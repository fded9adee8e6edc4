"""Does learning from rewards help? Tiny Keye-VLs on questions that they half know, three seeds; figures for bench/README.md.

    python bench/alignment.py FOLDER [--seeds 0,1,2] [--steps 120] [--tune]
    python bench/alignment.py FOLDER --mpo

One start model learns counting, comparing and adding in two modes, in one pass over some questions. Each seed of `rl grpo`
then takes prompts that the model never saw, of longer words and more digits, both modes mixed; correctness and format are
rewarded, and the weights that are best on validation prompts are kept. Test prompts are asked once, of the start model and of
the kept one, in each mode: one greedy answer, and the mean of eight at temperature 1. Intervals are of the difference for the
same questions, a bootstrap over questions and seeds. With --tune the validation prompts are asked, not the test prompts.

With --mpo the start model is first taught to say most thoughts three times; each seed samples its answers, pairs the best with
the worst (`rl pairs`), trains on them (`rl mpo`), and tells repetition and accuracy before and after. Nothing that is there
already is made again.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

KVTOOLS = [str(Path(sys.executable).parent / "kvtools")]
SIZE = ["--architecture", "vision.layers=1", "--architecture", "language.layers=3"]
MODES = ("no_think", "think")
N_SAMPLED = 8
MAX_NEW = 64


def kvtools(*words):
    subprocess.run([*KVTOOLS, *map(str, words)], check=True)


def count(rng, is_long):
    word = "".join(rng.choice("abcd") for _ in range(rng.randint(7, 8) if is_long else rng.randint(4, 6)))
    so_far = [f"{letter}{word[: n + 1].count('a')}" for n, letter in enumerate(word)]
    return f"How many a in {word}?", str(word.count("a")), " ".join(so_far)


def compare(rng, is_long):
    digits = [rng.choice("0123456789") for _ in range(rng.randint(5, 7) if is_long else 4)]
    most = [max(digits[: n + 1]) for n in range(len(digits))]
    return f"Largest of {' '.join(digits)}?", max(digits), " ".join(map("".join, zip(digits, most, strict=True)))


def add(rng, _is_long):
    numbers = [rng.randint(1, 9) for _ in range(4)]
    sums = [f"{numbers[n]}={sum(numbers[: n + 1])}" for n in range(4)]
    return f"{'+'.join(map(str, numbers))}?", str(sum(numbers)), " ".join(sums)


KINDS = (count, compare, add)


def questions(n, seed, seen=(), *, is_long=False):
    """{question: (answer, thought)}, n of them, as many of each kind, none of which was seen. is_long: of longer words and more
    digits than the start model learns from."""
    rng, found = random.Random(seed), {}
    while len(found) < n:
        text, answer, thought = KINDS[len(found) % len(KINDS)](rng, is_long)
        if text not in seen:
            found[text] = (answer, thought)
    return found


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def talks(asked):
    for text, (answer, thought) in asked.items():
        reply = f"<think>{thought}</think><answer>{answer}</answer>"
        for mode, said in (("no_think", answer), ("think", reply)):
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": said}]
            yield {"id": f"{text} {mode}", "mode": mode, "messages": messages}


def prompts(asked):
    return [{"id": text, "prompt": text, "answer": answer} for text, (answer, _) in asked.items()]


def asked_of(model, held, mode, out, *, n=1, max_new=MAX_NEW):
    """Each held-out question's share of right answers, in one order, and the answers' mean repetition, length and share of cut
    ones. n: answers a question; one is greedy."""
    if not out.exists():
        kvtools(
            "rl", "sample", "-q", held, "--model", model, "--modes", mode, "--group", n, "--temperature", int(n > 1),
            "--max-new", max_new, "--overlong", "keep", "--reward", "correct", "--reward", "format:0",
            "--reward", "repetition:0", "-o", out,
        )  # fmt: skip
    told = subprocess.run([*KVTOOLS, "cat", "--json", str(out)], check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in told.splitlines()]
    right = {}
    for row in rows:
        right.setdefault(row["prompt"], []).append(row["rewards"]["correct"])
    means = {
        "format": np.mean([row["rewards"]["format"] for row in rows]),
        "repetition": np.mean([row["rewards"]["repetition"] for row in rows]),
        "words": np.mean([len(row["text"].split()) for row in rows]),
        "cut": np.mean([row["ended"] == "length" for row in rows]),
    }
    return np.array([np.mean(right[key]) for key in sorted(right)]), {name: round(float(x), 3) for name, x in means.items()}


def interval(differences):
    """The mean and the 95 % interval of a difference, drawn over questions and seeds together."""
    values = np.array(differences, float)
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(5000, len(values)))].mean(1)
    return values.mean(), *np.quantile(means, [0.025, 0.975])


def told_of(before, after):
    mean, low, high = interval(after - before)
    return f"{before.mean():.3f} -> {after.mean():.3f}, difference {mean:+.3f} (95 % {low:+.3f} to {high:+.3f})"


def start_model(folder, arguments):
    """The model that all seeds start from, and the questions that it has seen."""
    folder.mkdir(parents=True, exist_ok=True)
    learnt = questions(arguments.learnt, 0)
    start = folder / "start.model"
    if not start.exists():
        learn(write(folder / "talks.jsonl", talks(learnt)), start, "--lr", 2e-3, "--steps", arguments.start_steps, *SIZE)
    return start, learnt


def learn(data, dst, *words):
    kvtools(
        "pretrain", "keye", "-q", data, "--batch-tokens", 2048, "--length", 1024, "--stage", "cold-start", *words, "-o", dst
    )


def repeating_model(folder, start, learnt):
    """The start model after it was taught to say most thoughts three times."""
    dst, rng = folder / "repeating.model", random.Random(0)
    if not dst.exists():
        again = {
            text: (answer, " ".join([thought] * (3 if rng.random() < 0.7 else 1))) for text, (answer, thought) in learnt.items()
        }
        data = write(folder / "repeating.jsonl", [talk for talk in talks(again) if talk["mode"] == "think"])
        learn(data, dst, "--init", start, "--lr", 1e-3, "--steps", 100)
    return dst


def prompts_of(folder, seed, arguments, learnt):
    """Files of prompts to learn from, to choose by and to test on, none of which stands in another or was learnt before."""
    folder.mkdir(parents=True, exist_ok=True)
    files, seen = {}, dict(learnt)
    for number, (name, n) in enumerate((("valid", arguments.valid), ("test", arguments.test), ("train", arguments.asked))):
        asked = questions(n, 100 * seed + number + 1, seen, is_long=True)
        seen |= asked
        files[name] = write(folder / f"{name}.jsonl", prompts(asked))
    return files


def grpo(folder, seed, arguments, start, learnt):
    """{(mode, figure): each held-out question's share of right answers, before and after}."""
    files, after = prompts_of(folder, seed, arguments, learnt), folder / "grpo.model"
    begun = time.process_time(), time.monotonic()
    if not after.exists():
        kvtools(
            "rl", "grpo", "-q", files["train"], "--model", start, "--modes", ",".join(f"{mode}:1" for mode in MODES),
            "--reward", "correct", "--reward", f"format:{arguments.format}", "--group", 16, "--training", "chunk=256",
            "--max-new", MAX_NEW, "--valid", files["valid"], "--steps", arguments.steps, "--seed", seed,
            "--log", folder / "grpo.jsonl", *arguments.more, "-o", after,
        )  # fmt: skip
        print(json.dumps({"seed": seed, "seconds": round(time.monotonic() - begun[1])}), flush=True)
    held, rows = files["valid" if arguments.tune else "test"], {}
    for mode in MODES:
        for figure, n in (("greedy", 1), (f"avg@{N_SAMPLED}", N_SAMPLED)):
            outs = [folder / f"{held.stem}-{name}-{mode}-{n}.kvs" for name in ("before", "after")]
            sides = [asked_of(model, held, mode, out, n=n) for model, out in zip((start, after), outs, strict=True)]
            rows[mode, figure] = [right for right, _ in sides]
            print(f"seed {seed}, {mode}, {figure}: {told_of(*rows[mode, figure])} {sides[0][1]} {sides[1][1]}", flush=True)
    return rows


def mpo(folder, seed, arguments, repeating, learnt):
    """Repetition and correctness of held-out answers before and after one round of sampling, pairs and MPO."""
    files = prompts_of(folder, seed, arguments, learnt)
    rollouts, pairs, after = (folder / name for name in ("rollouts.kvs", "pairs.kvs", "mpo.model"))
    if not after.exists():
        kvtools(
            "rl", "sample", "-q", files["train"], "--model", repeating, "--modes", "think", "--group", 8, "--max-new", 256,
            "--overlong", "keep", "--reward", "correct", "--reward", "repetition:-1", "--seed", seed, "--force", "-o", rollouts,
        )  # fmt: skip
        kvtools("rl", "pairs", "-q", "--force", rollouts, "-o", pairs)
        kvtools(
            "rl", "mpo", "-q", pairs, "--model", repeating, "--steps", "2ep", "--batch", 16, "--seed", seed,
            "--log", folder / "mpo.jsonl", *arguments.more, "-o", after,
        )  # fmt: skip
    held = files["valid" if arguments.tune else "test"]
    outs = [folder / f"{held.stem}-{name}.kvs" for name in ("before", "after")]
    sides = [asked_of(model, held, "think", out, max_new=256) for model, out in zip((repeating, after), outs, strict=True)]
    (right, means), (right_after, means_after) = sides
    print(f"seed {seed}: right {told_of(right, right_after)}; {means} {means_after}", flush=True)
    return right, right_after, means["repetition"], means_after["repetition"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", default="120")
    parser.add_argument("--format", type=float, default=1.0, help="weight of the format; a small one is soon given up")
    parser.add_argument("--mpo", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--start-steps", default="1ep")
    parser.add_argument("--learnt", type=int, default=4500)
    parser.add_argument("--asked", type=int, default=1600)
    parser.add_argument("--valid", type=int, default=150)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--more", type=str.split, default=[], help="further words of rl grpo, or of rl mpo")
    arguments = parser.parse_args()
    start, learnt = start_model(arguments.folder, arguments)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.mpo:
        repeating = repeating_model(arguments.folder, start, learnt)
        results = [mpo(arguments.folder / f"mpo-{seed}", seed, arguments, repeating, learnt) for seed in seeds]
        before, after = (np.concatenate([row[side] for row in results]) for side in (0, 1))
        repeated = np.mean([row[2:] for row in results], 0).round(3).tolist()
        print(f"right: {told_of(before, after)}; repetition before and after {repeated}")
        return
    results = [grpo(arguments.folder / f"grpo-{seed}", seed, arguments, start, learnt) for seed in seeds]
    for key in results[0]:
        before, after = (np.concatenate([rows[key][side] for rows in results]) for side in (0, 1))
        print(f"{', '.join(key)}, {len(before)} questions: {told_of(before, after)}")


if __name__ == "__main__":
    main()
