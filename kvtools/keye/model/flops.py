"""FLOPs of a row's matrix products, by part, forward and in training.

2 a weight and token, and 4 * width a pair of tokens that attend to one another, a layer (half of them in the decoder, which is
causal). Backward costs twice forward through weights that learn, once through weights that are frozen above something that
learns, nothing where nothing below learns; of pairs of tokens, twice wherever it passes. Not counted: embeddings, norms,
rotations, the interpolation of the position table, and the output matrix where a token is no target, as its logits are not
computed.

Legend: V visual items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvtools.keye.model.config import ModelConfig, TextConfig, VisionConfig


@dataclass(frozen=True)
class RowShape:
    """What the cost of a row depends on: lengths of segments, grids (frames, rows, columns), the number of targets. n_before:
    tokens of the prompt that each segment continues, all 0 where it is empty."""

    lengths: Sequence[int]
    grids: Sequence[Sequence[int]]
    n_targets: int
    n_before: Sequence[int] = ()


@dataclass(frozen=True)
class Flops:
    """Forward, by part. patches: the tower's first product, below which nothing learns. pairs: of tokens, in the decoder."""

    patches: float
    tower: float
    projector: float
    decoder: float
    pairs: float
    head: float

    def training(self, trained: frozenset[str], *, has_adapters: bool = False) -> float:
        """Forward and backward where, of `tower`, `projector` and `decoder`, those in `trained` learn; the head is the
        decoder's. has_adapters: thin matrices learn in place of theirs, and their own products are not counted."""
        changed = frozenset() if has_adapters else trained
        total, is_reached = self.patches * (1 + ("tower" in changed)), False
        for part, flops in (("tower", self.tower), ("projector", self.projector), ("decoder", self.decoder + self.head)):
            total += flops * (1 + (part in changed) + (is_reached or part in trained))
            is_reached = is_reached or part in trained
        return total + self.pairs * (1 + 2 * is_reached)

    @property
    def forward(self) -> float:
        """Forward, of all parts."""
        return self.patches + self.tower + self.projector + self.decoder + self.pairs + self.head


def row_flops(config: ModelConfig, row: RowShape) -> Flops:
    """Forward FLOPs of a row of a Keye-VL."""
    vision, language = config.vision, config.language
    n_patches, n_tokens = int(np.array(row.grids, np.int64).reshape(-1, 3).prod(1).sum()), sum(row.lengths)
    patches, tower = _tower_flops(vision, row.grids)
    block_width = vision.width * config.merge**2
    projector = 2 * n_patches // config.merge**2 * (block_width**2 + block_width * language.width)
    q_width = language.heads * language.head_dim
    kv_width = language.kv_heads * language.head_dim
    n_weights = language.width * (2 * q_width + 2 * kv_width + 3 * language.hidden)
    n_before = row.n_before or [0] * len(row.lengths)
    n_pairs = sum(n * (n + 2 * before) for n, before in zip(row.lengths, n_before, strict=True))
    decoder, pairs = (float(language.layers * flops) for flops in (2 * n_tokens * n_weights, 2 * n_pairs * q_width))
    head = 2.0 * row.n_targets * language.vocabulary * language.width
    return Flops(patches, tower, float(projector), decoder, pairs, head)


def pair_flops(vision: VisionConfig, text: TextConfig, grids: Sequence[Sequence[int]], n_words: int) -> float:
    """FLOPs of images against texts of n_words tokens, forward and backward; heads and the texts' attention are left out."""
    patches, tower = _tower_flops(vision, grids)
    return 2 * patches + 3 * tower + 3.0 * 2 * n_words * text.layers * _layer_weights(text)


def _tower_flops(vision: VisionConfig, grids: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Of the first product, and of the layers."""
    grids_V3 = np.array(grids, np.int64).reshape(-1, 3)
    patches_V, frame_V = grids_V3.prod(1), grids_V3[:, 1] * grids_V3[:, 2]
    n_patches = int(patches_V.sum())
    n_pairs = int((patches_V * (patches_V if vision.joint else frame_V)).sum())
    layers = vision.layers * (2 * n_patches * _layer_weights(vision) + 4 * n_pairs * vision.width)
    return 2.0 * n_patches * 3 * vision.patch**2 * vision.width, float(layers)


def _layer_weights(config: VisionConfig | TextConfig) -> int:
    return 4 * config.width**2 + 2 * config.width * config.hidden
