"""From patches to visual tokens: blocks of merge x merge patches become one vector of the decoder's width.

Source: Keye-VL's published model (spec/keye.md 1.4): LayerNorm on each patch, the block's patches side by side, Linear, exact
GELU, Linear. Legend: P patches, M visual tokens, D width.
"""

from torch import Tensor, nn

from kvtools.keye.model.config import ModelConfig
from kvtools.keye.model.cpu_kernels import linear_gelu
from kvtools.keye.model.layers import layer_norm


class Projector(nn.Module):
    """(P, width of the tower), block by block, to (M, width of the decoder)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        block_width = config.vision.width * config.merge**2
        self.pre_norm = nn.LayerNorm(config.vision.width, eps=1e-5)
        self.linear_1 = nn.Linear(block_width, block_width)
        self.linear_2 = nn.Linear(block_width, config.language.width)
        for layer in (self.linear_1, self.linear_2):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, features_PD: Tensor) -> Tensor:
        """features_PD: in the order of vision.block_order, so that a block is a view. Returns (M, width of the decoder)."""
        blocks = layer_norm(self.pre_norm, features_PD).view(-1, self.linear_1.in_features)
        out: Tensor = self.linear_2(linear_gelu(blocks, self.linear_1, tanh=False))
        return out
