"""Very small Keye-VL models and rows, made with a seed."""

from dataclasses import replace

import numpy as np
import torch

from kvtools.keye.model.config import LanguageConfig, ModelConfig, VisionConfig
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.positions import mrope_positions

IMAGE, VIDEO = 48, 49
CONFIG = ModelConfig(
    VisionConfig(width=24, hidden=40, layers=2, heads=2, table_side=5),
    LanguageConfig(width=32, hidden=48, layers=2, heads=4, kv_heads=2, head_dim=16, vocabulary=50),
    image_token=IMAGE,
    video_token=VIDEO,
)


def model(seed=0, *, vision=None, language=None):
    torch.manual_seed(seed)
    config = replace(CONFIG, vision=replace(CONFIG.vision, **vision or {}), language=replace(CONFIG.language, **language or {}))
    return Keye(config).eval()


def pixels(grids, seed=0):
    n = sum(t * h * w for t, h, w in grids)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, 14, 14), dtype=np.uint8))


def conversation(*parts, seed=0):
    """Text by its length, visual items by their grids: tokens int64 (S,), positions int32 (3, S), grids."""
    rng = np.random.default_rng(seed)
    tokens_parts, grids, seconds = [], [], []
    for part in parts:
        if isinstance(part, int):
            tokens_parts.append(rng.integers(0, 48, part))
        else:
            frames, rows, columns = part
            tokens_parts.append(np.full(frames * rows * columns // 4, VIDEO if frames > 1 else IMAGE))
            grids.append(part)
            seconds.append(np.arange(frames) / 2)
    tokens = np.concatenate(tokens_parts)
    return torch.from_numpy(tokens), torch.from_numpy(mrope_positions(tokens, IMAGE, VIDEO, grids, seconds)), grids


def row(*conversations):
    """Conversations packed: tokens, positions, starts, grids."""
    tokens, positions, grids = zip(*conversations, strict=True)
    starts = np.cumsum([0, *map(len, tokens)])[:-1].tolist()
    return torch.cat(tokens), torch.cat(positions, 1), starts, [grid for part in grids for grid in part]
