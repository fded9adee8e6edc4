"""transformers' Qwen3 in training and its SigLIP on images, as plain loops: a JSON line a contestant, then seconds of turns.

Usage: keye_peers.py CONTESTANT... [NAME=VALUE]...
Contestants: {full|padded|by-length}-{float32|bfloat16} train; {square|alone|padded-images}-{float32|bfloat16} encode.
Names: those of DecoderShape and TowerShape below, lengths (a JSON file: tokens of each conversation), threads (2) and serve
(1: turns as named on stdin, of which only that is done here).

full: rows of `length` tokens, no padding. padded: conversations in random order, each batch as long as its longest, as
DataCollatorForSeq2Seq has it; by-length draws those of like length together, as the Trainer's group_by_length does. Attention
is sdpa, the loss the model's own, AdamW fused, rate 1e-4; bfloat16 is autocast over float32 weights. A turn is one step.

square: a batch of images of the size that the table of positions is for. Images of other sizes go one by one (alone), with
interpolated positions, or as a batch of their common square (padded-images), which does the work and not the same thing. Pixels
are floats before the clock starts, in the layout the model wants. A turn is one batch without gradients, in the precision's
weights for bfloat16. Runs in the peers' environment and imports nothing of kvtools.
"""

import itertools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import cpu_torchvision  # noqa: F401 - before transformers
import numpy as np
import torch
import transformers
from generate_peers import DTYPES, SEED, asked, serve

MEGABATCHES = 50
SIZES = ((8, 16), (16, 8), (12, 20), (20, 12), (10, 10), (16, 16), (6, 24), (24, 6))  # patches: rows, columns


@dataclass(frozen=True)
class DecoderShape:
    """The decoder, and what it is trained on."""

    width: int = 512
    hidden: int = 1536
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    vocabulary: int = 6400
    length: int = 1024  # tokens of a full row
    rows: int = 4  # of a full batch
    batch: int = 16  # conversations of a padded one


@dataclass(frozen=True)
class TowerShape:
    """The vision tower, and its images."""

    v_width: int = 384
    v_hidden: int = 1536
    v_layers: int = 6
    v_heads: int = 6
    side: int = 16  # patches, of the table and of square images
    images: int = 16


class Training:
    """A Qwen3 in training, a step a turn."""

    def __init__(self, kind, dtype, shape, lengths):
        torch.manual_seed(SEED)
        config = transformers.Qwen3Config(
            vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.hidden,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            tie_word_embeddings=True, attn_implementation="sdpa", use_cache=False,
        )  # fmt: skip
        self.model = transformers.Qwen3ForCausalLM(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.dtype, self.vocabulary = dtype, shape.vocabulary
        if kind == "full":
            batches = [[shape.length] * shape.rows]
        else:
            batches = batches_of(lengths, shape.batch, by_length=kind == "by-length")
        self.n_real = sum(map(sum, batches)) / len(batches)  # tokens a step, on average over the epoch
        self.not_padding = sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)
        self.batches, self.rng = itertools.cycle(batches), np.random.default_rng(SEED)
        self.tokens = []

    def step(self):
        batch = next(self.batches)
        ids = torch.from_numpy(self.rng.integers(0, self.vocabulary, (len(batch), max(batch))))
        mask = torch.arange(max(batch)) < torch.tensor(batch)[:, None]
        given = {"input_ids": ids, "labels": ids.masked_fill(~mask, -100)}
        if not mask.all():
            given["attention_mask"] = mask.long()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.model(**given).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tokens.append(sum(batch))


def batches_of(lengths, batch, *, by_length):
    """Lengths of the conversations of each batch, one epoch in random order."""
    numbers = np.random.default_rng(SEED).permutation(lengths)
    if by_length:
        parts = np.array_split(numbers, range(batch * MEGABATCHES, len(numbers), batch * MEGABATCHES))
        numbers = np.concatenate([np.sort(part)[::-1] for part in parts])
    found = [numbers[i : i + batch].tolist() for i in range(0, len(numbers) - batch + 1, batch)]
    return [found[i] for i in np.random.default_rng(SEED).permutation(len(found))]


def encoding(kind, dtype, shape):
    """A run that encodes all images once."""
    torch.manual_seed(SEED)
    config = transformers.SiglipVisionConfig(
        hidden_size=shape.v_width, intermediate_size=shape.v_hidden, num_hidden_layers=shape.v_layers,
        num_attention_heads=shape.v_heads, image_size=14 * shape.side, patch_size=14, vision_use_head=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.SiglipVisionModel(config).eval().to(dtype)
    grids = image_grids(kind, shape)
    longest = max(map(max, grids))
    if kind == "alone":
        images = [torch.randn(1, 3, 14 * h, 14 * w, dtype=dtype) for h, w in grids]
    else:
        images = [torch.randn(len(grids), 3, 14 * longest, 14 * longest, dtype=dtype)]
    is_stretched = longest != shape.side or kind == "alone"

    @torch.inference_mode()
    def run():
        for image in images:
            model(pixel_values=image, interpolate_pos_encoding=is_stretched)

    return run, model


def image_grids(kind, shape):
    """Rows and columns of the images of a turn."""
    if kind == "square":
        return [(shape.side, shape.side)] * shape.images
    return [SIZES[i % len(SIZES)] for i in range(shape.images)]


def main():
    names = [word for word in sys.argv[1:] if "=" not in word]
    shape, rest = asked([word for word in sys.argv[1:] if "=" in word], DecoderShape())
    tower_shape, rest = asked([f"{name}={value}" for name, value in rest.items()], TowerShape())
    torch.set_num_threads(int(rest.pop("threads", 2)))
    path = rest.pop("lengths", None)
    assert set(rest) <= {"serve"}, rest
    lengths = json.loads(Path(path).read_text()) if path else []
    runs = {}
    for name in names:
        kind, precision = name.rsplit("-", 1)
        if kind in ("square", "alone", "padded-images"):
            runs[name], model = encoding(kind, DTYPES[precision], tower_shape)
            told = {"images": tower_shape.images, **asdict(tower_shape)}
        else:
            training = Training(kind, DTYPES[precision], shape, lengths)
            runs[name], model = training.step, training.model
            told = {"tokens": training.n_real, "not_padding": training.not_padding, **asdict(shape)}
        runs[name]()
        print(json.dumps({"contestant": name, "parameters": model.num_parameters(), **told}), flush=True)
    serve(runs)


if __name__ == "__main__":
    main()
