"""A pathway of OneRec: items of one kind as tokens, by their vectors and their features. Source: the report, section 2.2.1.

Legend: B rows, P tokens of a pathway, F features, D width.
"""

from typing import cast

import torch
from torch import Tensor, nn

from kvtools.onerec.model.config import ModelConfig
from kvtools.onerec.model.cpu_training import Table


def dense(n_in: int, width: int) -> nn.Sequential:
    """Dense(LeakyReLU(Dense(x))), (..., n_in) -> (..., D)."""
    return nn.Sequential(nn.Linear(n_in, width), nn.LeakyReLU(), nn.Linear(width, width))


class Pathway(nn.Module):
    """Items with their features to tokens: Dense(LeakyReLU(Dense(concat))). features: name to number of categories."""

    def __init__(self, config: ModelConfig, features: dict[str, int]) -> None:
        super().__init__()
        widths = {name: config.author_width if name == "author" else config.feature_width for name in features}
        self.features = nn.ModuleList(Table(n, widths[name]) for name, n in features.items())
        for table in self.features:
            nn.init.normal_(cast("nn.Embedding", table).weight, std=0.02)
        self.dense = dense(config.width + sum(widths.values()), config.width)

    def forward(self, item_BPD: Tensor, features_BPF: Tensor) -> Tensor:
        """Item vectors (B, P, D) and features int64 (B, P, F) to tokens (B, P, D)."""
        parts = [item_BPD, *(table(features_BPF[..., f]) for f, table in enumerate(self.features))]
        out: Tensor = self.dense(torch.cat(parts, dim=-1))
        return out
