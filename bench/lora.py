"""What a training with --lora holds, against one of all weights: the optimiser's state, the kept state, memory, the result.

Usage: lora.py     a Markdown table on stdout, some two minutes

`pretrain keye --size small --stage sft` on rows of 4,096 tokens of LLaMA-Factory's alpaca_en_demo in $KVTOOLS_DATA, with
MiniMind's tokenizer, float32, one thread, one step. That run is stopped after its step for its state (exit code 75), whose
`exp_avg` and `exp_avg_sq` are the optimiser's; resumed, it writes the model or adapter. Memory is the most that a run held.
"""

import sys
import tempfile
from pathlib import Path

from checkpointing import CHATS, TOKENIZER, run

from kvtools.artifact import open_artifact

BASE = f"pretrain keye {CHATS} -q --stage sft --batch-tokens 4096 --steps 2"
RUNS = {
    "all weights": "",
    "`--lora r=16`": "--lora r=16",
    "`--lora r=16,on=all`": "--lora r=16,on=all",
}
MIB = 2**20


def main():
    print("| learns | numbers | optimiser, MiB | kept state, MiB | memory, GiB | result, MiB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, f"{BASE} --steps 1 --tokenizer {TOKENIZER} --size small -o base.model")
        for number, (label, words) in enumerate(RUNS.items()):
            line, dst = f"{BASE} --init base.model {words}", f"d{number}" if words else f"d{number}.model"
            memory, _ = run(folder, f"{line} -o {dst}", ends=75, SLURM_JOB_END_TIME="1")
            state = folder / f".{dst}.state" / "train.state"
            optimiser = {key: x for key, x in open_artifact(str(state)).tensors.items() if "exp_avg" in key}
            n_numbers = sum(x.size for key, x in optimiser.items() if not key.endswith("exp_avg_sq"))
            size_of_state, n_bytes = state.stat().st_size, sum(x.nbytes for x in optimiser.values())
            run(folder, f"{line} -o {dst}")
            result = folder / dst if not words else folder / dst / "adapter_model.safetensors"
            figures = (f"{x / MIB:.1f}" for x in (n_bytes, size_of_state))
            print(f"| {label} | {n_numbers:,}", *figures, f"{memory:.2f}", f"{result.stat().st_size / MIB:.1f} |", sep=" | ")


if __name__ == "__main__":
    sys.exit(main())
