"""Low-rank adapters (LoRA): weights stay as they are, and each matrix gets a product of two thin ones that learn.

y = W x + (alpha / rank) B A x, B starting at 0, so that an adapted model begins as the model it adapts. Source: Hu et al. 2021
(arXiv 2106.09685). `merge` adds the products to the weights; checkpoint/adapters.py keeps them in files of their own. Not here:
quantised weights, adapters of embeddings and of the output matrix.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from kvtools.keye.model.keye import Keye

_Layer = TypeVar("_Layer", bound=nn.Module)

# names of the matrices that adapters change, as peft's target_modules: all matrices of the decoder, the tower, the projector
TARGETS = {
    "decoder": r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    "tower": r"visual\.vision_model\.encoder\.layers\.\d+\.(self_attn\.([qkv]|out)_proj|mlp\.fc[12])",
    "projector": r"mlp_AR\.linear_[12]",
}
_PARTS = {"language": ("decoder",), "vision": ("tower", "projector"), "all": tuple(TARGETS)}


@dataclass(frozen=True)
class LoraConfig:
    """rank: of each product. alpha: twice the rank by default, the usual choice, with which one learning rate fits any rank.
    on: the language model, the vision tower with the projector, or all. Raises ValueError for values that cannot be meant."""

    rank: int
    alpha: float = 0.0
    on: Literal["language", "vision", "all"] = "language"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"r is {self.rank}, and a rank of at least 1 is needed")
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha:g}, and a number above 0 is needed")
        if self.on not in _PARTS:
            raise ValueError(f"on is {self.on!r}, and one of {', '.join(_PARTS)} is needed")
        if not self.alpha:
            object.__setattr__(self, "alpha", 2.0 * self.rank)

    @property
    def scale(self) -> float:
        """The factor of the products."""
        return self.alpha / self.rank

    @property
    def parts(self) -> frozenset[str]:
        """The parts of the model that learn, as stages name them."""
        return frozenset(_PARTS[self.on])

    @property
    def targets(self) -> str:
        """A pattern for the whole names of the adapted layers."""
        return "|".join(TARGETS[part] for part in _PARTS[self.on])


class LoraLinear(nn.Module):
    """A linear layer whose weight is frozen, and the product that learns; `is_on` says whether it is added."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.weight, self.bias = (
            base.weight,
            base.bias,
        )  # under their own names, so that a state holds them as the plain model's
        self.in_features, self.out_features, self.scale = base.in_features, base.out_features, config.scale
        self.lora_A = nn.Parameter(torch.empty(config.rank, base.in_features, device=base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=base.weight.device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        out = nf.linear(x, self.weight, self.bias)
        return out.add_(nf.linear(nf.linear(x, self.lora_A), self.lora_B), alpha=self.scale) if self.is_on else out

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that gives the same."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(product_added(self.weight, self.lora_A, self.lora_B, self.scale))
        plain.bias = self.bias
        return plain


def product_added(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The sum of weight and scale * b @ a, computed in float32 and given in the weight's dtype.

    weight: (out, in). a: (rank, in). b: (out, rank).
    """
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


def add_adapters(model: Keye, config: LoraConfig, *, frozen_dtype: torch.dtype = torch.float32) -> None:
    """Give every matrix that the config targets an adapter; nothing else learns from then on. Random numbers are torch's.

    frozen_dtype: of the model's other matrices; that of the training's products costs no precision, and half the memory.
    """
    model.requires_grad_(False)
    for name, _, _, layer in list(_layers(model, nn.Linear)):
        if frozen_dtype != torch.float32 and name != "lm_head":
            layer.to(frozen_dtype)
    for name, parent, attribute, layer in list(_layers(model, nn.Linear)):
        if re.fullmatch(config.targets, name):
            setattr(parent, attribute, LoraLinear(layer, config))


def merge(model: Keye) -> None:
    """Turn adapters into changes of the weights, in place; does nothing without adapters."""
    for _, parent, attribute, layer in list(_layers(model, LoraLinear)):
        setattr(parent, attribute, layer.merged())


def adapters_of(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The thin matrices by the name of the layer that they change: A (rank, in) and B (out, rank)."""
    return {name: (layer.lora_A.detach(), layer.lora_B.detach()) for name, _, _, layer in _layers(model, LoraLinear)}


@contextmanager
def without_adapters(model: Keye) -> Iterator[None]:
    """Within it the model gives what it gave before adapters were added."""
    layers = [layer for _, _, _, layer in _layers(model, LoraLinear)]
    for layer in layers:
        layer.is_on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.is_on = True


def _layers(model: nn.Module, kind: type[_Layer]) -> Iterator[tuple[str, nn.Module, str, _Layer]]:
    """The layers of a kind: whole name, the module that holds it, its attribute there, the layer."""
    for prefix, parent in model.named_modules():
        for attribute, layer in parent.named_children():
            if isinstance(layer, kind):
                yield f"{prefix}.{attribute}".lstrip("."), parent, attribute, layer
