"""Memory of a training with activation checkpointing and without it; a Markdown table on stdout.

Usage: checkpointing.py [keye] [onerec]     both by default, some three minutes

Each run is a command of its own with --training checkpoint=no or yes: one step, float32, one thread. Memory is the most that
it held (ru_maxrss), with weights, gradients and the optimiser; time is processor time, start and reading included.
keye: `pretrain keye --size small`, rows of 4,096 tokens of LLaMA-Factory's alpaca_en_demo in $KVTOOLS_DATA, MiniMind's
tokenizer. onerec: `pretrain onerec --size 0.015b` on ML-100k, 4,096 targets a step, IDs by `embed` and `semid-build`. The
last column says whether the weights are the same bytes.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ours import CLICKS, DATA, KVTOOLS
from safetensors.numpy import load_file

CHATS = DATA.parent / "reasoning" / "llamafactory" / "alpaca_en_demo.json"
TOKENIZER = DATA.parent / "tokenizer" / "minimind" / "tokenizer.json"
COMMANDS = {
    "keye": f"pretrain keye {CHATS} --tokenizer {TOKENIZER} --size small --stage sft --batch-tokens 4096",
    "onerec": f"pretrain onerec {CLICKS['ml-100k']} --items items.ids --size 0.015b --batch 4096 --training valid_users=0",
}
NAMES = {
    "keye": "`pretrain keye --size small`, rows of 4,096 tokens",
    "onerec": "`pretrain onerec --size 0.015b`, steps of 4,096 targets",
}


def run(folder, words, *, ends=0, **environment):
    """The peak memory in GiB and the processor seconds of a command, which must end with that exit code."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    process = subprocess.Popen([KVTOOLS, *words.split()], cwd=folder, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if (code := os.waitstatus_to_exitcode(status)) != ends:
        sys.exit(f"kvtools {words} ended with {code}.")
    return usage.ru_maxrss / 2**20, usage.ru_utime + usage.ru_stime


def main():
    print("| | memory, GiB: without, with | | processor s: without, with | | weights |\n|---|---|---|---|---|---|", flush=True)
    chosen = sys.argv[1:] or list(COMMANDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "onerec" in chosen:
            run(folder, f"embed -q {CLICKS['ml-100k'].with_suffix('.item')} -o items.kvs")
            run(folder, "semid-build -q items.kvs --codes 64 -o items.ids")
        for system in chosen:
            words = f"{COMMANDS[system]} -q --force --steps 1 --training checkpoint"
            memory, seconds = run(folder, f"{words}=no -o without.model")
            memory_with, seconds_with = run(folder, f"{words}=yes -o with.model")
            one, other = load_file(folder / "without.model"), load_file(folder / "with.model")
            is_same = all(np.array_equal(one[key], other[key]) for key in one)
            print(
                f"| {NAMES[system]} | {memory:.2f}, {memory_with:.2f} | {memory / memory_with:.1f}× less",
                f"{seconds:.0f}, {seconds_with:.0f} | {seconds_with / seconds:.2f}×",
                f"{'the same' if is_same else '**others**'} |",
                sep=" | ",
                flush=True,
            )


if __name__ == "__main__":
    main()
