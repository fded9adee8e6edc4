"""Low-rank adapters (LoRA): the decoder's weights stay as they are, and each gets a product of two thin matrices to learn.

y = W x + (alpha / rank) B A x, B starting at 0, so that an adapted model begins as the model it adapts. Source: Hu et al. 2021
(arXiv 2106.09685). `merge` adds the products to the weights: what is saved is a model like any other. Not here: quantised
weights, adapters of the vision tower.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.keye.model.keye import Keye

_Layer = TypeVar("_Layer", bound=nn.Module)

_ALPHA_OF_RANK = 2  # alpha is twice the rank, the usual choice: the learning rate then fits any rank


class LoraLinear(nn.Module):
    """A linear layer whose weight is frozen, and the product that learns; `is_on` says whether it is added."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight = base.weight  # under its own name, so that a state holds it as the plain model's does
        self.weight.requires_grad_(False)
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        out = nf.linear(x, self.weight)
        return out + _ALPHA_OF_RANK * nf.linear(nf.linear(x, self.lora_A), self.lora_B) if self.is_on else out

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that gives the same."""
        width_out, width_in = self.weight.shape
        plain = nn.Linear(width_in, width_out, bias=False, device="meta")
        total = self.weight + _ALPHA_OF_RANK * (self.lora_B @ self.lora_A)
        plain.weight = nn.Parameter(total.to(self.weight.dtype))
        return plain


def add_adapters(model: Keye, rank: int) -> None:
    """Give every projection of the decoder an adapter of that rank; nothing else learns from then on. Random numbers are
    torch's."""
    model.requires_grad_(False)
    for parent, name, layer in list(_layers(model, nn.Linear)):
        setattr(parent, name, LoraLinear(layer, rank))


def merge(model: Keye) -> None:
    """Turn adapters into changes of the weights, in place; does nothing without adapters."""
    for parent, name, layer in list(_layers(model, LoraLinear)):
        setattr(parent, name, layer.merged())


@contextmanager
def without_adapters(model: Keye) -> Iterator[None]:
    """Within it the model gives what it gave before adapters were added."""
    layers = [layer for _, _, layer in _layers(model, LoraLinear)]
    for layer in layers:
        layer.is_on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.is_on = True


def _layers(model: Keye, kind: type[_Layer]) -> Iterator[tuple[nn.Module, str, _Layer]]:
    for parent in model.model.layers.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, kind):
                yield parent, name, layer
