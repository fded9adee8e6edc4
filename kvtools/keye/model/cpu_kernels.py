"""Kernels that lean on operators of torch that are not its public interface, each with a plain fallback.

No other module names such an operator. They are looked up once, at import; where a torch has none of that name, the fallback
computes the same formula.

Attention on a CPU in bfloat16 is computed by plain matrix products, one block of queries after another: torch's own kernel
reaches a sixth of what bfloat16 products do there forward and a fifth backward. For 1,024 tokens in segments of 1,024, 256 and
64 it took 61, 30 and 23 ms forward and backward on one core, this one 34, 13 and 6 (8 heads of 64, 4 of keys; AMD EPYC, torch
2.13, processor time). Scores come out of a product in bfloat16 and go into softmax as they are, which sums in float32: they
have eight bits, as in transformers' eager attention, where torch's kernel has float32. In float32 it gained nothing.

Legend: B segments of one length L, H heads, K heads of keys and values, R = H / K, X width of a head, A = B * K, N queries of a
block, E keys that a block attends to, P rows, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

_HAS_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_LINEAR_GELU = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _HAS_ONEDNN else None
_SOFTMAX_BACKWARD = getattr(torch, "_softmax_backward_data", None)
_LAYER_NORM_BACKWARD = getattr(torch.ops.aten, "native_layer_norm_backward", None)

_BLOCK = 128  # queries: fewer make products thin; more compute half a block of masked pairs in vain and leave the cache
_SCORES = 1 << 24  # of a block without a mask: 32 MiB
# tokens: up to here softmaxes are kept for backward, at most L bytes a token and head; beyond it they are computed again
_KEPT = 1024


def linear_gelu(x: Tensor, layer: nn.Module, *, tanh: bool) -> Tensor:
    """gelu(layer(x)), (P, D) to (P, width of the layer's output); of anything but a plain linear layer, such as one with an
    adapter, in two operations.

    On CPU without gradients one operation of oneDNN's, the one that torch.compile puts there: GELU by itself took 12 % of a
    tower's time in bfloat16 (one core, 2,048 patches, width 384).
    """
    approximate = "tanh" if tanh else "none"
    is_fusible = isinstance(layer, nn.Linear) and x.device.type == "cpu" and not torch.is_grad_enabled()
    if _LINEAR_GELU is not None and is_fusible and x.dtype == layer.weight.dtype and x.dtype in (torch.float32, torch.bfloat16):
        out: Tensor = _LINEAR_GELU(x, layer.weight, layer.bias, "gelu", [], approximate)
        return out
    return nf.gelu(layer(x), approximate=approximate)


def rms_norm_backward(grad_PD: Tensor, x_PD: Tensor, weight_D: Tensor, scale_P1: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x * scale * weight with respect to x and weight, where scale is 1 / sqrt(mean(x**2) + eps) of each row."""
    width = x_PD.shape[1]
    if _LAYER_NORM_BACKWARD is None:
        gained_PD = grad_PD * weight_D
        inner_P1 = (gained_PD * x_PD).mean(1, keepdim=True)
        return (gained_PD - x_PD * inner_P1 * scale_P1**2) * scale_P1, (grad_PD * x_PD * scale_P1).sum(0)
    # LayerNorm's backward is one pass over everything; with a mean of 0 it differs from RMSNorm's by one term, added here
    zero_P1 = torch.zeros_like(scale_P1)
    x_grad, weight_grad, _ = _LAYER_NORM_BACKWARD(
        grad_PD, x_PD, [width], zero_P1, scale_P1, weight_D, None, [True, True, False]
    )
    return x_grad.addcmul_((grad_PD @ weight_D).unsqueeze(1), scale_P1, value=1 / width), weight_grad


def softmax_backward(grad: Tensor, softmax: Tensor) -> Tensor:
    """Gradient of scores (..., E), given that of their softmax over the last dimension; all of the same shape and dtype."""
    if _SOFTMAX_BACKWARD is not None:
        out: Tensor = _SOFTMAX_BACKWARD(grad, softmax, softmax.ndim - 1, softmax.dtype)
        return out
    wide_grad, wide_softmax = grad.float(), softmax.float()
    inner = (wide_grad * wide_softmax).sum(-1, keepdim=True)
    return ((wide_grad - inner) * wide_softmax).to(grad.dtype)


def attention_bf16_cpu(q_BHLX: Tensor, k_BKLX: Tensor, v_BKLX: Tensor, *, is_causal: bool) -> Tensor:
    """What scaled_dot_product_attention gives, as (B, L, H, X), bfloat16. H a multiple of K: neighbouring heads share keys."""
    n_segments, n_heads, length, width = q_BHLX.shape
    n_kv = k_BKLX.shape[1]
    q_ARLX = q_BHLX.reshape(n_segments * n_kv, n_heads // n_kv, length, width)
    k_ALX, v_ALX = k_BKLX.reshape(-1, length, width), v_BKLX.reshape(-1, length, width)
    out: Tensor = _Attention.apply(q_ARLX, k_ALX, v_ALX, is_causal)  # type: ignore[no-untyped-call]
    return out.view(n_segments, n_heads, length, width).transpose(1, 2)


class _Attention(torch.autograd.Function):
    """Forward and backward by blocks of queries; every number of a block is passed over as seldom as can be."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, q_ARLX: Tensor, k_ALX: Tensor, v_ALX: Tensor, is_causal: bool
    ) -> Tensor:
        out_ARLX = torch.empty_like(q_ARLX)
        mask = _causal_mask(q_ARLX) if is_causal else None
        is_kept = any(ctx.needs_input_grad) and q_ARLX.shape[2] <= _KEPT  # type: ignore[attr-defined]
        kept = []
        for block in _blocks(q_ARLX, is_causal=is_causal):
            softmax_ANE = _softmax(_scaled(q_ARLX, block), k_ALX, block, mask)
            _store(out_ARLX, block, torch.bmm(softmax_ANE, v_ALX[:, : softmax_ANE.shape[2]]))
            kept += [softmax_ANE] if is_kept else []
        ctx.save_for_backward(q_ARLX, k_ALX, v_ALX, *kept)
        ctx.is_causal = is_causal  # type: ignore[attr-defined]
        return out_ARLX

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_ARLX, k_ALX, v_ALX, *kept = ctx.saved_tensors  # type: ignore[attr-defined]
        is_causal = ctx.is_causal  # type: ignore[attr-defined]
        mask = _causal_mask(q_ARLX) if is_causal else None
        q_grad = torch.empty_like(q_ARLX)
        k_grad, v_grad = (torch.zeros_like(k_ALX, dtype=torch.float32) for _ in range(2))  # sums over blocks
        for number, block in enumerate(_blocks(q_ARLX, is_causal=is_causal)):
            q_ANX = _scaled(q_ARLX, block)
            softmax_ANE = kept[number] if kept else _softmax(q_ANX, k_ALX, block, mask)
            n_keys = softmax_ANE.shape[2]
            grad_ANX = grads[0][:, :, block].reshape(q_ANX.shape)
            v_grad[:, :n_keys] += torch.bmm(softmax_ANE.transpose(1, 2), grad_ANX)
            score_grad = softmax_backward(torch.bmm(grad_ANX, v_ALX[:, :n_keys].transpose(1, 2)), softmax_ANE)
            k_grad[:, :n_keys] += torch.bmm(score_grad.transpose(1, 2), q_ANX)
            _store(q_grad, block, torch.bmm(score_grad, k_ALX[:, :n_keys]).mul_(q_ARLX.shape[3] ** -0.5))
        return q_grad, k_grad.to(k_ALX.dtype), v_grad.to(v_ALX.dtype), None


def _blocks(q_ARLX: Tensor, *, is_causal: bool) -> list[slice]:
    """The queries in blocks: without a mask, a block is as long as its scores may be many."""
    size = _BLOCK if is_causal else max(_BLOCK, _SCORES // (q_ARLX[..., 0].numel() or 1))
    return [slice(begin, min(begin + size, q_ARLX.shape[2])) for begin in range(0, q_ARLX.shape[2], size)]


def _store(x_ARLX: Tensor, block: slice, result_ANX: Tensor) -> None:
    part = x_ARLX[:, :, block]
    part.copy_(result_ANX.view_as(part))


def _scaled(q_ARLX: Tensor, block: slice) -> Tensor:
    """A block's queries of all heads that share keys, one head after the other, divided by sqrt(X): (A, R * N, X)."""
    width: int = q_ARLX.shape[3]
    return torch.mul(q_ARLX[:, :, block], width**-0.5).flatten(1, 2)


def _causal_mask(q_ARLX: Tensor) -> Tensor:
    """What is added to a block's scores of its own keys: -inf at later ones. Adding is faster than filling."""
    return torch.full((_BLOCK, _BLOCK), -torch.inf, dtype=q_ARLX.dtype, device=q_ARLX.device).triu_(1)


def _softmax(q_ANX: Tensor, k_ALX: Tensor, block: slice, mask: Tensor | None) -> Tensor:
    """The softmax of each query's scores over the keys it may attend to, (A, R * N, E)."""
    n_queries = block.stop - block.start
    n_keys = k_ALX.shape[1] if mask is None else block.stop
    score_ANE = torch.bmm(q_ANX, k_ALX[:, :n_keys].transpose(1, 2))
    if mask is not None:
        score_ANE.view(len(q_ANX), -1, n_queries, n_keys)[..., block.start :].add_(mask[:n_queries, :n_queries])
    return torch.softmax(score_ANE, 2)
