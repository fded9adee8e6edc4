"""Whether a tiny model keeps the format that it is asked for, after a cold start on real data: a Markdown table.

Usage: formats.py [seeds=0,1,2] [epochs=10]      forty minutes on one core

The data: 500 problems of MATH with solutions, instructions of Alpaca with bare answers, captions and signs of short clips.
Solutions become thinking, their boxes the bare answers of the same problems, and a rule writes the analyses of auto from the
kind of prompt. So a problem alone does not tell the format: it is asked in all three ways. Held out are a fifth of the
problems and of the instructions, in every mode; instructions are never asked to think in training, so that their row tells
whether the switch alone is followed.

Answers are greedy and parsed by kvtools/keye/data/modes.py: format, not truth. The control trains on the same records with
their switches dealt out again at random.
"""

import csv
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("KVTOOLS_DATA") or HERE.parent.parent / "shared" / "data")
KVTOOLS = Path(sys.executable).with_name("kvtools")
FOLDER = HERE / ".formats"
TOKENIZER = DATA / "tokenizer" / "minimind" / "tokenizer.json"
MODES = ("think", "no_think", "auto")
LONGEST = 320  # letters of a question, and of an answer
N_INSTRUCTIONS = 120  # to learn from
N_HELD_OUT = 40  # prompts of a kind
MAX_NEW_TOKENS = 320


def main(seeds="0,1,2", epochs="10", what="mix,control"):
    FOLDER.mkdir(exist_ok=True)
    held_out = make_sources()
    make_mixture()
    make_control()
    rows = []
    for name in what.split(","):
        for seed in map(int, seeds.split(",")):
            begin = time.monotonic()
            model = train(name, seed, epochs)
            rows.append((name, seed, shares(model, held_out)))
            print(f"{name}, seed {seed}: {rows[-1][2]}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    print_table(rows)


def is_held_out(text):
    return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] < 51


def make_sources():
    """The files of the five modes in FOLDER; returns {kind: held-out questions}."""
    told = [
        (row["problem"], row["solution"], row["level"], row["type"])
        for row in json.loads((DATA / "reasoning/math_problems_thyme.json").read_text()).values()
        if len(row["problem"]) < LONGEST
    ]
    problems = [row for row in told if len(row[1]) < LONGEST and "boxed" in row[1]]
    instructions = [
        ("\n".join(filter(None, (row["instruction"], row["input"]))), row["output"])
        for row in json.loads((DATA / "reasoning/llamafactory/alpaca_en_demo.json").read_text())
        if len(row["output"]) < LONGEST and len(row["instruction"]) + len(row["input"]) < LONGEST
    ]
    think, no_think, auto = [], [], []
    for number, (problem, solution, level, kind) in enumerate(p for p in problems if not is_held_out(p[0])):
        think.append({"problem": problem, "solution": solution})
        no_think.append({"question": problem, "answer": boxed(solution)})
        analysis = f"This is a problem of {kind}, of {level.lower()}, and its result takes several steps."
        if number % 3:
            auto.append({"question": problem, "answer": decided(analysis, "think") + thought(solution)})
    for number, (instruction, output) in enumerate([p for p in instructions if not is_held_out(p[0])][:N_INSTRUCTIONS]):
        no_think.append({"question": instruction, "answer": output})
        if number % 2:
            analysis = "This is a plain request, which can be answered at once."
            auto.append({"question": instruction, "answer": decided(analysis, "no_think") + output})
    for name, rows in (("think", think), ("no_think", no_think), ("auto", auto), ("video", video_rows())):
        (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "problems": [p[0] for p in told if is_held_out(p[0])][:N_HELD_OUT],
        "instructions": [p[0] for p in instructions if is_held_out(p[0])][:N_HELD_OUT],
    }


def video_rows():
    rows = [json.loads(line) for line in (DATA / "video_labelled/captions_qa.jsonl").read_text().splitlines()]
    told = [
        {"video": Path(row["video"]).name, "question": row["question"] or "What is shown?", "answer": row["answer"]}
        for row in rows
    ]
    with open(DATA / "video_labelled/asl_gestures/labels.csv", encoding="utf-8") as file:
        signs = [
            {"video": Path(row["file"]).name, "question": "Which sign is made?", "answer": row["label"]}
            for row in csv.DictReader(file)
        ]
    return told + signs


def boxed(solution):
    from kvtools.keye.data.modes import boxes

    return f"\\boxed{{{boxes(solution)[-1]}}}"


def thought(solution):
    return f"<think>\n{solution}\n</think>\n<answer>{boxed(solution)}</answer>"


def decided(analysis, switch):
    return f"<analysis>{analysis} Therefore, /{switch} mode is more appropriate.</analysis>"


def kvtools(*words):
    subprocess.run([KVTOOLS, *map(str, words)], check=True)


def make_mixture():
    clips = FOLDER / "clips.kvs"
    if not clips.exists():
        folders = DATA / "video/clips", DATA / "video_labelled/asl_gestures"
        subprocess.run(
            [KVTOOLS, "tokenize-video", "-q", "--frame-tokens", "4:8", *folders, "-o", clips], check=False
        )  # AV1 may be refused
    words = [word for mode in (*MODES, "video") for word in (f"--{mode.replace('_', '-')}", FOLDER / f"{mode}.jsonl")]
    kvtools(
        "coldstart-mix",
        *words,
        "--media",
        clips,
        "--repair",
        "--epochs",
        "1:1:1:1",
        "--tokenizer",
        TOKENIZER,
        "--max-tokens",
        1024,
        "--report",
        FOLDER / "mix.json",
        "--rejects",
        FOLDER / "rejects.jsonl",
        "-o",
        FOLDER / "mix.kvs",
        "--force",
    )


def make_control():
    """The records of the mixture with their switches dealt out again, as JSON Lines."""
    from kvtools.artifact import open_artifact

    rows = [json.loads(record.tensors["json"].tobytes()) for record in open_artifact(str(FOLDER / "mix.kvs"))]
    plain = [row for row in rows if row["mode"] in MODES]
    modes = [row["mode"] for row in plain]
    random.Random(7).shuffle(modes)
    for row, mode in zip(plain, modes, strict=True):
        row["mode"] = mode
    (FOLDER / "control.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(name, seed, epochs):
    model = FOLDER / f"{name}-{seed}-{epochs}.safetensors"
    if not model.exists():
        kvtools(
            "pretrain",
            "keye",
            FOLDER / ("mix.kvs" if name == "mix" else "control.jsonl"),
            "--stage",
            "cold-start",
            "--size",
            "tiny",
            "--tokenizer",
            TOKENIZER,
            "--media",
            FOLDER / "clips.kvs",
            "--steps",
            f"{epochs}ep",
            "--batch-tokens",
            1024,
            "--lr",
            "2e-3",
            "--seed",
            seed,
            "-q",
            "-o",
            model,
            "--log",
            FOLDER / f"{name}-{seed}.log",
        )
    return model


def shares(model, held_out):
    """{(kind, mode): the share of answers that are of the mode}."""
    from kvtools.keye.data.modes import FormatError, parse
    from kvtools.keye.data.processor import Processor
    from kvtools.keye.model.generate import generate
    from kvtools.keye.run.session import open_model

    keye, template = open_model(str(model), None, device="cpu", dtype="float32")
    processor = Processor.for_model(keye.config, template)
    kept = {}
    for kind, questions in held_out.items():
        for mode in MODES:
            prompts = [
                processor.prompt({"id": str(n), "messages": [{"role": "user", "content": question}]}, mode=mode)
                for n, question in enumerate(questions)
            ]
            n_kept = 0
            answers = generate(keye, prompts, max_new_tokens=MAX_NEW_TOKENS, temperature=0.0, stop_tokens=template.stop_tokens)
            for (answer,) in answers:
                text = template.decode(answer.text_tokens, skip_control=True)
                if answer.ended == "stop":
                    try:
                        parse(text, mode)
                        n_kept += 1
                    except FormatError:
                        pass
            kept[kind, mode] = n_kept / len(prompts)
    return kept


def print_table(rows):
    print("| asked of | mode | format kept, seeds' mean (least to most) | switches shuffled |")
    print("|---|---|---|---|")
    for kind in ("problems", "instructions"):
        for mode in MODES:
            told = []
            for name in ("mix", "control"):
                values = [kept[kind, mode] for which, _, kept in rows if which == name]
                told.append(f"{np.mean(values):.0%} ({min(values):.0%} to {max(values):.0%})" if values else "not run")
            print(f"| {kind} | `{mode}` | {told[0]} | {told[1]} |")


if __name__ == "__main__":
    main(**dict(word.split("=", 1) for word in sys.argv[1:]))
