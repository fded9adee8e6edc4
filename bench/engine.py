"""Training on several ranks: losses against those of one rank, and memory a rank; Markdown tables on stdout.

Usage: engine.py [losses] [exact] [memory] [cuda] [NAME=VALUE]...  losses and memory by default, twenty minutes on two cores
Names: ranks (1,2,4), steps (50 of losses; memory takes 3), sizes (tiny,small), batch (2048 tokens a step of Keye, and targets
of OneRec), systems (keye,onerec)

losses: `pretrain keye` on LLaMA-Factory's pictures and texts in $KVTOOLS_DATA and `pretrain onerec` on ML-100k, no dropout and
no experts, which rounding would choose otherwise. On each number of ranks: each with the whole model; by --shard-optimizer
with a part of the optimiser's state; by --shard-model with a part of all. Told is the largest relative difference of a step's
loss from that of one rank. Expected: rounding, below 1e-3 after so many steps of AdamW.

exact: the same in float64, OneRec with its experts. Expected: below 1e-9. So what float32 differs by is rounding, and what
ranks compute is the same.

memory: what a rank holds between two steps, counted: its weights, gradients and optimiser; and the most that its process held
(ru_maxrss), torch, the data and the activations included. Expected with --shard-model: what is counted, divided by the ranks;
with --shard-optimizer: the optimiser divided by the ranks, as evenly as whole matrices can be.

cuda, on a machine with GPUs, a rank on each: `pretrain keye --size 0.6b --dtype bfloat16` on every rank count that there are
GPUs for, whole and in parts, ten steps. It must show: (1) the first ten losses within 1 % of those of one GPU, as bfloat16's
products round; (2) in parts, counted memory divided by the ranks within 2 %, and `max_memory_allocated` below that of whole
models; (3) tokens/s of whole models at two GPUs at least 1.6 times those of one, since sums hide behind the backward pass; of
parts at least 1.3 times; (4) NCCL, and not gloo, in the output of NCCL_DEBUG=VERSION. Then by hand, for a model that does not
fit on one: `srun -n 4 kvtools pretrain keye … --size 8b --shard-model --training checkpoint=yes`, which must not run out of
memory on 80 GB GPUs: 16 bytes for each of 8.64e9 parameters are 138 GB, 35 GB a rank.

A run is this script under mpiexec with the word `rank`: kvtools in this process, which then tells what it held.
"""

import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from ours import CLICKS, DATA, KVTOOLS

FACTORY = DATA.parent / "reasoning" / "llamafactory"
TOKENIZER = DATA.parent / "tokenizer" / "minimind" / "tokenizer.json"
KEYE = (
    f"pretrain keye {FACTORY}/mllm_demo.json {FACTORY}/alpaca_en_demo.json --media {FACTORY} --ratio 1,1 "
    f"--tokenizer {TOKENIZER} --stage sft --length 256 --frame-tokens 4:64 --max-tokens 64"
)
ONEREC = f"pretrain onerec {CLICKS['ml-100k']} --items items.ids --near 0 --training dropout=0 --training valid_users=0"
SIZES = {"keye": {"tiny": "tiny", "small": "small"}, "onerec": {"tiny": "tiny", "small": "0.015b"}}
MODES = {"whole": "", "whole, optimiser in parts": "--shard-optimizer", "in parts": "--shard-model"}


def command(system, size, batch):
    words = f"{KEYE} --batch-tokens {batch}" if system == "keye" else f"{ONEREC} --batch {batch}"
    return f"{words} --size {SIZES[system].get(size, size)}"


def run(folder, words, n, *, exact=False, **environment):
    """What the ranks of a command held, one dict a rank, and its log of steps. exact: whether it computes in float64."""
    (folder / "log").unlink(missing_ok=True)
    mode = "float64" if exact else "as given"
    words = [*shlex.split(words), "-q", "--force", "--log", "log", "-o", "model"]
    line = [sys.executable, __file__, "rank", mode, *words]
    if n > 1:
        line = [str(KVTOOLS.with_name("mpiexec")), "-n", str(n), *line]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(line, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    if done.returncode or len(told) != n:
        sys.exit(f"kvtools {shlex.join(words)} on {n} ranks ended with {done.returncode}:\n{done.stderr}")
    steps = [json.loads(x) for x in (folder / "log").read_text().splitlines()]
    return told, [step for step in steps if "loss" in step]


def rank(words, *, exact):
    """Run kvtools in this process; then a line of JSON with what it held, in bytes."""
    import torch

    from kvtools import cli
    from kvtools.train.loop import Trainer

    if exact:
        compute_in_float64(Trainer)

    told = {}
    before = Trainer.__init__

    def init(trainer, *args, **options):
        before(trainer, *args, **options)
        step = trainer._step

        def counted(batch):
            done = step(batch)
            told.update(held(trainer))
            return done

        trainer._step = counted

    Trainer.__init__ = init
    code = cli.run(words)
    told["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told["cuda"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    print(json.dumps(told), file=sys.stderr, flush=True)
    sys.exit(code)


def compute_in_float64(trainer):
    """Make a class of trainers compute losses and gradients in float64, from the same first weights and the same batches."""
    import torch
    from torch import nn

    def cast(layer, inputs):
        return tuple(x.to(layer.weight.dtype) if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)

    before = trainer.__init__

    def init(self, task, *args, **options):
        task.model.double()
        for module in task.model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
                module.register_forward_pre_hook(cast)
        before(self, task, *args, **options)

    trainer.__init__ = init
    torch.Tensor.float = torch.Tensor.double


def held(trainer):
    """Bytes of this rank's weights, gradients and optimiser."""

    def n_bytes(x):
        return (x.to_local() if hasattr(x, "to_local") else x).nbytes

    parameters = trainer._engine.parameters
    return {
        "weights": sum(map(n_bytes, trainer.task.model.parameters())),
        "gradients": sum(n_bytes(p.grad) for p in parameters if p.grad is not None),
        "optimiser": sum(n_bytes(x) for p in parameters for x in trainer._optimizer.state[p].values()),
    }


def losses(folder, ranks, systems, sizes, steps, batch, *, exact):
    dtype = "float64" if exact else "float32"
    print(f"\n### Losses of {steps} steps against one rank, {dtype}\n\n| | ranks | model | largest difference | last loss |")
    print("|---|---|---|---|---|")
    for system in systems:
        for size in sizes:
            words = f"{command(system, size, batch)} --steps {steps}"
            if system == "onerec" and not exact:
                words += " --architecture experts=0"
            one = [step["loss"] for step in run(folder, words, 1, exact=exact)[1]]
            for n in (n for n in ranks if n > 1):
                for mode, option in MODES.items():
                    found = [step["loss"] for step in run(folder, f"{words} {option}", n, exact=exact)[1]]
                    worst = max(abs(x - y) / abs(x) for x, y in zip(one, found, strict=True))
                    print(f"| {system} {size} | {n} | {mode} | {worst:.1e} | {found[-1]:.5f} |", flush=True)


def memory(folder, ranks, systems, sizes, batch):
    print("\n### Memory a rank, MiB: the most of any rank\n")
    print("| | ranks | model | weights | gradients | optimiser | these | process |\n|---|---|---|---|---|---|---|---|")
    for system in systems:
        for size in sizes:
            for n in ranks:
                for mode, option in MODES.items():
                    if n == 1 and option:
                        continue
                    told, _ = run(folder, f"{command(system, size, batch)} --steps 3 {option}", n)
                    names = ("weights", "gradients", "optimiser", "process")
                    most = [max(one[name] for one in told) for name in names]
                    cells = " | ".join(f"{n_bytes / 2**20:.1f}" for n_bytes in [*most[:3], sum(most[:3]), most[3]])
                    print(f"| {system} {size} | {n} | {mode} | {cells} |", flush=True)


def cuda(folder, batch):
    import torch

    n_gpus = torch.cuda.device_count()
    if not n_gpus:
        sys.exit("cuda: this machine has no GPU.")
    print("\n### GPUs: keye 0.6b, bfloat16\n")
    print("| ranks | model | difference of losses | counted, MiB | allocated, MiB | tokens/s |\n|---|---|---|---|---|---|")
    first = None
    for n in (n for n in (1, 2, 4, 8) if n <= n_gpus):
        for mode, option in MODES.items():
            if n == 1 and option:
                continue
            words = f"{command('keye', '0.6b', batch)} --steps 10 --device cuda --dtype bfloat16 {option}"
            told, steps = run(folder, words, n, NCCL_DEBUG="VERSION")
            found = [step["loss"] for step in steps]
            first = first or found
            worst = max(abs(x - y) / abs(x) for x, y in zip(first, found, strict=True))
            counted = max(sum(one[name] for name in ("weights", "gradients", "optimiser")) for one in told)
            rate = sorted(step["tokens_per_s"] for step in steps[2:])[len(steps[2:]) // 2]
            allocated = max(one["cuda"] for one in told)
            print(f"| {n} | {mode} | {worst:.1e} | {counted / 2**20:.0f} | {allocated / 2**20:.0f} | {rate:.0f} |", flush=True)


def main():
    given = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    ranks = [int(n) for n in given.pop("ranks", "1,2,4").split(",")]
    sizes = given.pop("sizes", "tiny,small").split(",")
    systems = given.pop("systems", ",".join(SIZES)).split(",")
    steps, batch = int(given.pop("steps", 50)), int(given.pop("batch", 2048))
    assert not given, given
    chosen = [word for word in sys.argv[1:] if "=" not in word] or ["losses", "memory"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for words in (
            f"embed -q {CLICKS['ml-100k'].with_suffix('.item')} -o items.kvs",
            "semid-build -q items.kvs --codes 64 -o items.ids",
        ):
            subprocess.run([KVTOOLS, *words.split()], cwd=folder, check=True)
        for table in ("losses", "exact"):
            if table in chosen:
                losses(folder, ranks, systems, sizes, steps, batch, exact=table == "exact")
        if "memory" in chosen:
            memory(folder, ranks, systems, sizes, batch)
        if "cuda" in chosen:
            cuda(folder, batch)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(sys.argv[3:], exact=sys.argv[2] == "float64")
    else:
        main()
