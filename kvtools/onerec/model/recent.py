"""What the latest items say of the next one by themselves: a weighted sum of their vectors, beside the decoder's first state.

A decoder needs many steps until it passes on what an item of the history tells of others; this sum does so from the first.
Weights depend on how far back an item is, and are learned. Our own; factorised Markov chains (Rendle et al. 2010; He and
McAuley 2016, arXiv 1609.09152) are its relatives.

Legend: B rows, C items of a context, T targets a row, D width, L distances.
"""

import math

import torch
from torch import Tensor, nn

from kvtools.onerec.model.cpu_training import dropout
from kvtools.onerec.model.layers import rms_norm

_DECAY = 0.7  # of the weight, for each step back, at the beginning


class RecentItems(nn.Module):
    """The normed sum of the latest items' vectors. n_distances: how far back weights of their own go."""

    def __init__(self, width: int, n_distances: int) -> None:
        super().__init__()
        self.log_weights = nn.Parameter(math.log(_DECAY) * torch.arange(n_distances, dtype=torch.float32))
        self.turn = nn.Linear(width, width, bias=False)
        self.norm = rms_norm(width)

    def forward(self, vectors_BCD: Tensor, positions_BC: Tensor, target_positions_BT: Tensor, rate: float) -> Tensor:
        """(B, C, D) -> (B, T, D). positions_BC, target_positions_BT: int64, in the user's history; -1 is padding. rate: the
        probability that a target does not see an item."""
        distance_BTC = target_positions_BT.unsqueeze(2) - positions_BC.unsqueeze(1) - 1
        is_before = (distance_BTC >= 0) & (positions_BC >= 0).unsqueeze(1)
        weight_BTC = self.log_weights.exp()[distance_BTC.clamp(0, len(self.log_weights) - 1)].masked_fill(~is_before, 0.0)
        weight_BTC = dropout(weight_BTC, rate)
        out: Tensor = self.norm(self.turn(weight_BTC.to(vectors_BCD.dtype) @ vectors_BCD))
        return out
