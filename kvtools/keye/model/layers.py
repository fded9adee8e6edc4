"""What the tower and the decoder share: in which precision a layer's products are, norms that end in it, repeating a layer.

Under autocast norms and rotations are float32 and their results leave in autocast's precision, once: each of the three products
after a norm would otherwise convert its input again.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as nf
from torch.utils.checkpoint import checkpoint

_HAS_FUSED = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
_ONEDNN = (torch.float32, torch.bfloat16) if _HAS_FUSED else ()


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
    """Saves x and one number a row. torch's own form passes over x eleven times backward, and takes 1.6 times as long."""

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
        width = x.shape[-1]
        grad_NX, scale_N1 = grads[0].reshape(-1, width), scale.view(-1, 1)
        # LayerNorm's backward is one pass over everything; where the mean is 0 it is ours but for one term, which goes back
        x_grad, weight_grad, _ = torch.ops.aten.native_layer_norm_backward(
            grad_NX, x.reshape(-1, width), [width], torch.zeros_like(scale_N1), scale_N1, weight, None, [True, True, False]
        )
        x_grad.addcmul_((grad_NX @ weight).unsqueeze(1), scale_N1, value=1 / width)
        return x_grad.view_as(x), weight_grad, None


def linear_gelu(layer: nn.Linear, x: Tensor, *, tanh: bool) -> Tensor:
    """gelu(layer(x)). On CPU without gradients as one operation of oneDNN's, the one that torch.compile puts there: GELU by
    itself took 12 % of a tower's time in bfloat16 (one core, 2,048 patches, width 384)."""
    if x.device.type == "cpu" and not torch.is_grad_enabled() and x.dtype == layer.weight.dtype and x.dtype in _ONEDNN:
        fused = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
        out: Tensor = fused(x, layer.weight, layer.bias, "gelu", [], "tanh" if tanh else "none")
        return out
    return nf.gelu(layer(x), approximate="tanh" if tanh else "none")


def repeated(layer: Callable[..., Tensor], *given: object, is_checkpointed: bool) -> Tensor:
    """The layer's result; where checkpointed, only its input is kept and the rest computed again for gradients."""
    if is_checkpointed and torch.is_grad_enabled():
        again: Tensor = checkpoint(layer, *given, use_reentrant=False)
        return again
    return layer(*given)
