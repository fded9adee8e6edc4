"""Attention on a CPU in bfloat16 by plain matrix products, block of queries after block of queries.

torch's own kernel for CPUs reaches a sixth of what bfloat16 products do there forward and a fifth backward. Here every number of
a block is passed over as seldom as can be: scores come out of a product in bfloat16 and go into softmax as they are, which sums
in float32, and its backward is one pass. So scores have eight bits, as in transformers' eager attention, where torch's kernel has
float32; that is the price. Nothing of the size of all scores is kept: backward computes each block's again.

Legend: B segments of one length L, H heads, K heads of keys and values, R = H / K, X width of a head, A = B * K, N queries of a
block, E keys that a block sees.
"""

import torch
from torch import Tensor

_BLOCK = 128  # queries: fewer make products thin, more hide half a block of pairs in vain and leave the cache


def products(q_BHLX: Tensor, k_BKLX: Tensor, v_BKLX: Tensor, *, is_causal: bool) -> Tensor:
    """What scaled_dot_product_attention gives, as (B, L, H, X). H a multiple of K: neighbouring heads share keys."""
    n_segments, n_heads, length, width = q_BHLX.shape
    n_kv = k_BKLX.shape[1]
    q_ARLX = q_BHLX.reshape(n_segments * n_kv, n_heads // n_kv, length, width)
    k_ALX, v_ALX = k_BKLX.reshape(-1, length, width), v_BKLX.reshape(-1, length, width)
    out: Tensor = _Products.apply(q_ARLX, k_ALX, v_ALX, is_causal)  # type: ignore[no-untyped-call]
    return out.view(n_segments, n_heads, length, width).transpose(1, 2)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, q_ARLX: Tensor, k_ALX: Tensor, v_ALX: Tensor, is_causal: bool
    ) -> Tensor:
        out_ARLX = torch.empty_like(q_ARLX)
        for begin in range(0, q_ARLX.shape[2], _BLOCK):
            q_ANX, share_ANE = _share(q_ARLX, k_ALX, begin, is_causal=is_causal)
            _block(out_ARLX, begin).copy_(torch.bmm(share_ANE, v_ALX[:, : share_ANE.shape[2]]).view_as(_block(q_ARLX, begin)))
        ctx.save_for_backward(q_ARLX, k_ALX, v_ALX)
        ctx.is_causal = is_causal  # type: ignore[attr-defined]
        return out_ARLX

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_ARLX, k_ALX, v_ALX = ctx.saved_tensors  # type: ignore[attr-defined]
        q_grad = torch.empty_like(q_ARLX)
        k_grad, v_grad = (torch.zeros_like(k_ALX, dtype=torch.float32) for _ in range(2))
        for begin in range(0, q_ARLX.shape[2], _BLOCK):
            q_ANX, share_ANE = _share(q_ARLX, k_ALX, begin, is_causal=ctx.is_causal)  # type: ignore[attr-defined]
            n_seen = share_ANE.shape[2]
            grad_ANX = _block(grads[0], begin).reshape(q_ANX.shape)
            v_grad[:, :n_seen] += torch.bmm(share_ANE.transpose(1, 2), grad_ANX)
            share_grad = torch.bmm(grad_ANX, v_ALX[:, :n_seen].transpose(1, 2))
            score_grad = torch._softmax_backward_data(share_grad, share_ANE, 2, share_ANE.dtype)  # noqa: SLF001
            k_grad[:, :n_seen] += torch.bmm(score_grad.transpose(1, 2), q_ANX)
            of_q = torch.bmm(score_grad, k_ALX[:, :n_seen]).mul_(q_ARLX.shape[3] ** -0.5)
            _block(q_grad, begin).copy_(of_q.view_as(_block(q_ARLX, begin)))
        return q_grad, k_grad.to(k_ALX.dtype), v_grad.to(v_ALX.dtype), None


def _block(x_ARLX: Tensor, begin: int) -> Tensor:
    return x_ARLX[:, :, begin : begin + _BLOCK]


def _share(q_ARLX: Tensor, k_ALX: Tensor, begin: int, *, is_causal: bool) -> tuple[Tensor, Tensor]:
    """The block's queries, scaled, (A, R * N, X), and how much each sees of each key, (A, R * N, E)."""
    block = _block(q_ARLX, begin)
    n_queries = block.shape[2]
    n_seen = begin + n_queries if is_causal else k_ALX.shape[1]
    q_ANX = (block * q_ARLX.shape[3] ** -0.5).flatten(1, 2)
    score_ANE = torch.bmm(q_ANX, k_ALX[:, :n_seen].transpose(1, 2))
    if is_causal:
        is_later = torch.ones(n_queries, n_queries, dtype=torch.bool, device=q_ANX.device).triu(1)
        score_ANE.view(len(q_ANX), -1, n_queries, n_seen)[..., begin:].masked_fill_(is_later, -torch.inf)
    return q_ANX, torch.softmax(score_ANE, 2)
