"""What the tower and the decoder share: in which precision a layer's products are, norms that end in it, repeating a layer.

Under autocast norms and rotations are float32 and their results leave in autocast's precision, once: each of the three products
after a norm would otherwise convert its input again.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as nf
from torch.utils.checkpoint import checkpoint


def product_dtype(x: Tensor) -> torch.dtype:
    """The precision of matrix products of x: autocast's where it is on, x's own else."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.dtype != torch.float64 else x.dtype


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm in float32, its result in the precision of products."""
    dtype = product_dtype(x)
    if x.dtype in (torch.bfloat16, torch.float16):
        return nf.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps).to(dtype)
    return nf.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)


class RMSNorm(nn.Module):
    """x over the root of its mean square, times a gain. float32 inside; as wide as the product precision, or float32, outside.

    Source: Qwen3's, whose gain is applied after the result is back in x's precision; that is ours too for bfloat16 weights.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        normed: Tensor = _RMSNorm.apply(wide, self.weight.to(wide.dtype), self.eps)  # type: ignore[no-untyped-call]
        return normed


class _RMSNorm(torch.autograd.Function):
    """Saves x and one number a row; backward is written out, since torch's composite form passes over x eleven times."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        normed: Tensor = x * scale
        return normed.mul_(weight)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        grad = grads[0]
        normed = x * scale
        n_leading = tuple(range(x.ndim - 1))
        weight_grad = (grad * normed).sum(n_leading)
        inner = grad * weight
        share = (inner * normed).mean(-1, keepdim=True)
        return inner.sub_(normed.mul_(share)).mul_(scale), weight_grad, None


def repeated(layer: Callable[..., Tensor], *given: object, is_checkpointed: bool) -> Tensor:
    """The layer's result; where checkpointed, only its input is kept and the rest computed again for gradients."""
    if is_checkpointed and torch.is_grad_enabled():
        again: Tensor = checkpoint(layer, *given, use_reentrant=False)
        return again
    return layer(*given)
