"""Where the processor time of trainings, the tower and beams goes, by kinds of operations; a Markdown table on stdout.

Usage: shares.py [WORK]...      two minutes on an idle core for all of: keye, keye-real, tower, beams, onerec, onerec-scores
keye: a step of keye_speed.py on two full rows, bfloat16; keye-real: on one row of conversations of 20 to 400 tokens. tower:
16 square images, bfloat16. beams: a search of generate.py, bfloat16. onerec: steps of `pretrain onerec` on Amazon Beauty by
its defaults but for 128 targets a step, random codes; onerec-scores: without neighbours, with scores of items.

One thread. Every operation of torch is timed by the processor time of its thread, so that other work on the machine counts
little; what operations consist of is not timed again. "Around operations" is the rest of the processor time of the same steps
without that timing: Python, autograd, dispatch. Operations count for the part of the autograd function that calls them, but
for matrix products, which are one part wherever they are.
"""

import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from generate_peers import Work, catalogue
from keye_peers import DecoderShape, TowerShape
from ours import CLICKS, histories, random_ids
from torch.utils._python_dispatch import TorchDispatchMode

from kvtools.keye.model import cpu_kernels, layers, rope
from kvtools.onerec.model import cpu_training, item_scores
from kvtools.train import cross_entropy
from kvtools.train.device import add_in_one_order, keep_freed_memory

SECONDS = 2.0
FUNCTIONS = {
    layers._RMSNorm: "norms",
    rope._Rotate: "rotations",
    cpu_kernels._Attention: "softmax and attention",
    cross_entropy._LinearCrossEntropy: "loss",
    item_scores._FirstMasses: "scores of items",
    cpu_training._Rows: "gathered rows",
}
KINDS = {
    "products": "mm addmm addmm_ bmm baddbmm _linear_pointwise addmv addmv_ mv linear matmul",
    "casts": "_to_copy to",
    "norms": "layer_norm native_layer_norm native_layer_norm_backward rms_norm _fused_rms_norm _fused_rms_norm_backward",
    "softmax and attention": "softmax log_softmax logsumexp _softmax _softmax_backward_data "
    "_scaled_dot_product_flash_attention_for_cpu scaled_dot_product_attention "
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "SwiGLU and GELU": "silu silu_backward gelu gelu_backward",
    "optimiser": "_fused_adamw_",
    "loss": "_log_softmax _log_softmax_backward_data nll_loss_forward nll_loss_backward",
    "gathered rows": "index index_select index_put index_put_ _index_put_impl_ embedding embedding_dense_backward gather "
    "scatter_add scatter_add_ index_add index_add_ scatter",
    "dropout": "bernoulli_ native_dropout random_ addcmul",
    "copies": "reshape contiguous flatten copy_ clone cat stack fill_ zero_ new_zeros zeros zeros_like "
    "empty empty_like new_empty empty_strided",
    "sorting": "topk sort argsort",
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split()}
ORDER = [*KINDS, "rotations", "scores of items", "other passes", "around operations"]


class Timed(TorchDispatchMode):
    """Processor seconds of operations by kind, and how many there were."""

    def __init__(self):
        super().__init__()
        self.seconds, self.n, self.within = Counter(), 0, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        begun = time.thread_time()
        out = operation(*args, **(kwargs or {}))
        spent = time.thread_time() - begun
        kind = KIND_OF.get(operation.overloadpacket.__name__, "other passes")
        self.seconds[self.within[-1] if self.within and kind != "products" else kind] += spent
        self.n += 1
        return out

    def label(self, function, kind):
        """Make what an autograd function calls count as of that kind."""
        for name in ("forward", "backward"):
            plain = getattr(function, name)

            def labelled(*args, plain=plain):
                self.within.append(kind)
                try:
                    return plain(*args)
                finally:
                    self.within.pop()

            setattr(function, name, staticmethod(labelled))


def keye(rows):
    from keye_speed import Ours

    return Ours(DecoderShape(), torch.bfloat16, [rows]).step


def tower():
    from keye_peers import image_grids

    from kvtools.keye.model.config import VisionConfig
    from kvtools.keye.model.vision import VisionTower

    shape = TowerShape()
    vision = VisionConfig(shape.v_width, shape.v_hidden, shape.v_layers, shape.v_heads, table_side=shape.side)
    model = VisionTower(vision).eval().to(torch.bfloat16)
    grids = [(1, h, w) for h, w in image_grids("square", shape)]
    pixels = torch.randint(0, 256, (sum(h * w for _, h, w in grids), 3, 14, 14), dtype=torch.uint8)
    return torch.inference_mode()(lambda: model(pixels, grids))


def beams():
    from generate import Ours

    return Ours(Work(), torch.bfloat16).search


def onerec(near):
    from kvtools.onerec.run.checkpoint import new_model
    from kvtools.onerec.run.dataset import build_training_set
    from kvtools.onerec.run.objectives import NextItemTask
    from kvtools.onerec.run.recipe import OneRecRecipe
    from kvtools.train.loop import Trainer
    from kvtools.train.resume import train_state
    from kvtools.world import World

    ids = random_ids(CLICKS["beauty"], lambda n: catalogue(Work(items=n)))
    log, encoder = histories(CLICKS["beauty"], ids)
    recipe = OneRecRecipe("tiny", "cross", near, [], [], None, 3e-3, batch=128, training=[], seed=0)
    made = build_training_set(log, encoder, ids, None, recipe.config, without=(), n_valid=0, seed=0)
    model = new_model(made.config, ids, encoder, [])
    task = NextItemTask(model, made.batcher, made.rows, validation=None, n_targets=128, smoothing=0.0, device="cpu")
    plan = replace(recipe.plan(task.n_steps(), task.n_tokens(), "float32"), epochs=1 << 30, n_steps=1 << 40, patience=0)
    steps = Trainer(task, plan, train_state(None, {}), World()).run(stop=False)
    return lambda: next(steps)


def measured(step, timed):
    """Processor milliseconds of a step by kind, and operations a step."""
    for _ in range(2):
        step()
    seconds, n = 0.0, 0
    timed.seconds.clear()
    timed.n = 0
    while n < 2 or seconds < SECONDS:  # in turn, so that other work on the machine counts for both
        begun = time.thread_time()
        step()
        n, seconds = n + 1, seconds + time.thread_time() - begun
        with timed:
            step()
    parts = {kind: 1e3 * spent / n for kind, spent in timed.seconds.items()}
    whole = 1e3 * seconds / n
    return whole, parts | {"around operations": max(0.0, whole - sum(parts.values()))}, timed.n / n


def main():
    lengths = np.random.default_rng(0).integers(20, 400, 10).tolist()
    works = {
        "keye": lambda: keye([DecoderShape.length] * 2),
        "keye-real": lambda: keye(lengths),
        "tower": tower,
        "beams": beams,
        "onerec": lambda: onerec(50),
        "onerec-scores": lambda: onerec(0),
    }
    chosen = sys.argv[1:] or list(works)
    torch.set_num_threads(1)
    keep_freed_memory()
    timed, found = Timed(), {}
    for function, kind in FUNCTIONS.items():
        timed.label(function, kind)
    for name in chosen:
        if name.startswith("onerec"):
            add_in_one_order("cpu")
        found[name] = measured(works[name](), timed)
    print(f"| | {' | '.join(chosen)} |\n|---|{'---|' * len(chosen)}")
    for kind in ORDER:
        cells = [f"{parts[kind] / sum(parts.values()):.1%}" if kind in parts else "" for _, parts, _ in found.values()]
        if any(cells):
            print(f"| {kind} | {' | '.join(cells)} |")
    print(f"| ms of processor time | {' | '.join(f'{whole:.1f}' for whole, _, _ in found.values())} |")
    print(f"| operations | {' | '.join(f'{n:.0f}' for _, _, n in found.values())} |")


if __name__ == "__main__":
    main()
