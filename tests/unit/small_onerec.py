"""Small generators, catalogues and histories for tests of OneRec: random from a seed, far from ties."""

import contextlib
from dataclasses import replace

import numpy as np
import torch

from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.model.batching import Batcher
from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.model.onerec import OneRec, VocabularySizes

FEATURES = {"author": 5, "time": 41}
STATIC = (3, 4)
SMALL = ModelConfig(
    width=16, encoder_layers=1, decoder_layers=2, heads=2, hidden=24, short=3, positive=64, lifelong=6, queries=3,
    feature_width=4, author_width=6, static_width=4, item_table=True,
)  # fmt: skip
EXPERTS = {"experts": 4, "active": 2, "expert_hidden": 12, "moe": "both"}
NEAR = {  # what stands beside the codes
    "": {},
    "evidence": {"near": 4, "near_tokens": False},
    "tokens": {"near": 4, "near_tokens": True},
    "some scores": {"item_scores": 11, "near": 4, "recent": True},  # and the other items share one
}
ALL_SCORED = {"scores": {"item_scores": 1 << 20}}


def catalogue(n_items, sizes, seed=0):
    """int32 (N, S) codes, each level below its size; small sizes give collisions."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, n, n_items) for n in sizes], axis=1).astype(np.int32)


def scatter(model, seed=0):
    """Every parameter drawn anew, so that nothing is 0, or the same everywhere: gains about 1, all else about 0."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = 0.3 * torch.randn(parameter.shape, generator=rng)
            parameter.copy_(1 + drawn if "norm" in name else drawn)
    return model.eval()


def model_of(config, codes_NS, sizes, seed=0):
    vocabulary = VocabularySizes(tuple(sizes), len(codes_NS), FEATURES, STATIC)
    return scatter(OneRec(config, vocabulary, torch.from_numpy(codes_NS)), seed)


def histories_of(lengths, n_items, seed=0):
    """Users of these many interactions, half of them positive."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    return Histories(
        np.array([f"u{user}" for user in range(len(lengths))], np.dtypes.StringDType()),
        offsets,
        rng.integers(0, n_items, n).astype(np.int32),
        np.zeros(n, np.int8),
        np.stack([rng.integers(0, size, n) for size in FEATURES.values()], axis=1),
        rng.exponential(1000.0, n),
        rng.random(n) < 0.5,
        np.arange(n),
    )


def near_of(shape, n_items, seed=0):
    """Neighbours int32 and how alike they are, float32; the last of each are missing here and there."""
    rng = np.random.default_rng(seed)
    items = rng.integers(0, n_items, shape).astype(np.int32)
    items[..., 1:][rng.random(items[..., 1:].shape) < 0.2] = -1
    return items, np.where(items >= 0, rng.random(shape), 0).astype(np.float32)


def batcher_of(histories, config, n_items, seed=0):
    rng = np.random.default_rng(seed)
    return Batcher(
        histories,
        config,
        static=np.stack([rng.integers(0, n, len(histories)) for n in STATIC], axis=1),
        neighbours=near_of((len(histories.items), config.near), n_items, seed) if config.near else None,
        vectors=np.random.default_rng(seed).normal(size=(n_items, 5)).astype(np.float32),
        time_column=list(FEATURES).index("time"),
        seed=seed,
    )


def asked(batcher, n_items, users, seed=0):
    """The batch that asks what comes after the histories of these users, each with neighbours of their own."""
    near = near_of((len(batcher.histories), batcher.config.near), n_items, seed + 1)
    return batcher.batch(batcher.next_rows(np.asarray(users)), (near[0][users], near[1][users]))


def in_double(batch):
    """The batch with its only real numbers in float64."""
    return replace(batch, neighbours=(batch.neighbours[0], batch.neighbours[1].double())) if batch.neighbours else batch


@contextlib.contextmanager
def float64():
    """A model in float64 computes in it throughout: attention, routing and logits call .float(), which is left out."""
    single = torch.Tensor.float
    torch.Tensor.float = lambda x: x if x.dtype == torch.float64 else single(x)
    try:
        yield
    finally:
        torch.Tensor.float = single
