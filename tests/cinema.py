"""A small cinema for tests of Keye-VL: short clips of one colour each as a `video` stream, and what is asked of them."""

import json

import numpy as np

from kvtools.artifact.files import Sink
from kvtools.artifact.stream import Head, Writer

N_CLIPS = 12
COLOURS = {"red": (220, 30, 40), "green": (30, 200, 60), "blue": (40, 50, 210)}
SIZES = [
    "vision.width=32", "vision.hidden=48", "vision.layers=1", "vision.heads=2", "vision.table_side=5",
    "language.width=32", "language.hidden=48", "language.layers=2", "language.heads=2", "language.kv_heads=1",
    "language.head_dim=16",
]  # fmt: skip
SMALL = " ".join(f"--architecture {size}" for size in SIZES) + " --batch-tokens 512 --length 256"
TRAIN = f"kvtools pretrain keye asked.jsonl --media clips.kvs {SMALL}"


def colour(number):
    return list(COLOURS)[number % len(COLOURS)]


def furnish(folder, n_clips=N_CLIPS):
    """clips.kvs of n clips c0, c1, …; asked.jsonl, a question of each; held.jsonl, other questions of four of them."""
    rng = np.random.default_rng(11)
    with Writer(Sink(str(folder / "clips.kvs")), Head("video")) as writer:
        for number in range(n_clips):
            grid = (3, 2, 4) if number % 2 else (2, 4, 4)
            pixels = np.array(COLOURS[colour(number)])[:, None, None] + rng.integers(-30, 30, (np.prod(grid), 3, 14, 14))
            frames = {"pixels": pixels.clip(0, 255).astype(np.uint8), "grid": np.array(grid, np.int32)}
            seconds = np.arange(grid[0]) / 2
            writer.write(f"c{number}", {**frames, "seconds": seconds}, fps=2.0, duration=2.0, source=[56, 56])
    write(folder / "asked.jsonl", [conversation(n, "Which colour?", colour(n)) for n in range(n_clips)])
    write(folder / "held.jsonl", [conversation(n, "What is it like?", f"{colour(n)}.") for n in range(4)])


def conversation(number, question, answer, **more):
    """One about a clip, or about none where number is None."""
    shown = [] if number is None else [{"type": "video", "video": f"c{number}"}]
    asked = {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
    return {"id": f"q{number}", "messages": [asked, {"role": "assistant", "content": answer}], **more}


def write(path, conversations):
    path.write_text("".join(json.dumps(each) + "\n" for each in conversations))


def curve(path):
    """Lines of steps and lines of epochs, without what the clock says."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [{k: x for k, x in line.items() if k not in ("run", "seconds", "tokens_per_s", "mfu")} for line in lines]
    return [line for line in lines if "rate" in line], [line for line in lines if "valid_loss" in line]
