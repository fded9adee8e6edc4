"""`answer --open` over a file of questions against transformers' generate, one question after another; Markdown on stdout.

Usage: open_answers.py [--questions 200] [--new 64] [--rounds 3]

The model is a small one of random weights, as a model bag for us and as the directory that `convert` makes of it for
transformers. Both answer greedily. Twenty of the questions are asked in transformers in a round and stand for all, since they
are alike; its model is open before the clock starts, ours is opened within. Seconds are those of one thread's processor time,
so that a busy machine counts less. That the twenty answers are equal is checked first.
"""

import argparse
import json
import os
import shlex
import statistics
import tempfile
import time

import cpu_torchvision  # noqa: F401 - before transformers
import torch
import transformers

from kvtools import cli

SIZES = {
    "vision": {"width": 32, "hidden": 48, "layers": 1, "heads": 2, "table_side": 5},
    "language": {"width": 128, "hidden": 384, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 32},
}
MODEL = " ".join(f"--architecture {part}.{name}={size}" for part, sizes in SIZES.items() for name, size in sizes.items())
N_TIMED = 20


def kvtools(line):
    if code := cli.run([*shlex.split(line), "-q"]):
        raise SystemExit(f"kvtools {line}: exit code {code}")


def ours(n_new):
    begun = time.process_time()
    kvtools(f"answer --open asked.jsonl --model m.model --greedy --max-new {n_new} --force -o answers.jsonl")
    return time.process_time() - begun


def theirs(processor, model, conversations, n_new):
    """Processor seconds, and the texts."""
    begun, texts = time.process_time(), []
    for conversation in conversations:
        given = processor.apply_chat_template(
            conversation["messages"], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            tokens = model.generate(**given, do_sample=False, max_new_tokens=n_new)[0, given["input_ids"].shape[1] :]
        texts.append(processor.decode(tokens, skip_special_tokens=True))
    return time.process_time() - begun, texts


def furnish(n_questions):
    """asked.jsonl, m.model and made/, here; the conversations."""
    asked = [[{"role": "user", "content": f"Tell me of number {n}, and of {n * 7}."}] for n in range(n_questions)]
    conversations = [{"id": f"k{n}", "messages": messages} for n, messages in enumerate(asked)]
    with open("asked.jsonl", "w") as file:
        file.writelines(json.dumps(each) + "\n" for each in conversations)
    with open("taught.jsonl", "w") as file:
        file.writelines(
            json.dumps({"id": f"t{n}", "messages": [*messages, {"role": "assistant", "content": "-"}]}) + "\n"
            for n, messages in enumerate(asked[:20])
        )
    kvtools(f"pretrain keye taught.jsonl {MODEL} --steps 1 --lr 1e-9 -o m.model")
    kvtools("convert m.model -o made/")
    return conversations


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--new", type=int, default=64, help="tokens to an answer, at most")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        conversations = furnish(options.questions)
        processor = transformers.AutoProcessor.from_pretrained("made", trust_remote_code=True)
        model = transformers.AutoModelForImageTextToText.from_pretrained("made", trust_remote_code=True).eval()
        ours(options.new)  # imports and first calls
        with open("answers.jsonl") as file:
            answers = [json.loads(line)["text"] for line in file]
        _, texts = theirs(processor, model, conversations[:N_TIMED], options.new)
        if texts != answers[:N_TIMED]:
            raise SystemExit("the answers differ")
        seconds = [
            (
                ours(options.new),
                theirs(processor, model, conversations[:N_TIMED], options.new)[0] / N_TIMED * len(conversations),
            )
            for _ in range(options.rounds)
        ]
        os.chdir("/")
    ratios = sorted(them / us for us, them in seconds)
    here, there = (statistics.median(each) for each in zip(*seconds, strict=True))
    print("| answers | tokens, at most | kvtools, s | transformers, s | kvtools is |")
    print("|---|---|---|---|---|")
    print(f"| {len(conversations)} | {options.new} | {here:.1f} | {there:.1f} |", end=" ")
    print(f"**{statistics.median(ratios):.1f}×** as fast ({ratios[0]:.1f}–{ratios[-1]:.1f}) |")


if __name__ == "__main__":
    main()
