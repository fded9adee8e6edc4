"""Attention on a CPU in bfloat16 by plain matrix products, block of queries after block of queries.

torch's own kernel for CPUs reaches a sixth of what bfloat16 products do there forward and a fifth backward: for 1,024 tokens in
segments of 1,024, 256 and 64 it took 61, 30 and 23 ms forward and backward on one core, this 34, 13 and 6 (8 heads of 64, 4 of
keys; AMD EPYC, torch 2.13, processor time). Every number of a block is passed over as seldom as can be: scores come out of a
product in bfloat16 and go into softmax as they are, which sums in float32, and its backward is one pass. So scores have eight
bits, as in transformers' eager attention, where torch's kernel has float32; that is the price. In float32 it gained nothing.

Legend: B segments of one length L, H heads, K heads of keys and values, R = H / K, X width of a head, A = B * K, N queries of a
block, E keys that a block sees.
"""

import torch
from torch import Tensor

_BLOCK = 128  # queries: fewer make products thin, more hide half a block of pairs in vain and leave the cache
_SCORES = 1 << 24  # of a block that hides none: 32 MiB
# tokens: up to here shares are kept for backward, at most L bytes a token and head; beyond it they are computed again
_KEPT = 1024


def attention_bf16_cpu(q_BHLX: Tensor, k_BKLX: Tensor, v_BKLX: Tensor, *, is_causal: bool) -> Tensor:
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
        hidden, size = _hidden(q_ARLX) if is_causal else None, _size(q_ARLX, is_causal=is_causal)
        is_kept = any(ctx.needs_input_grad) and q_ARLX.shape[2] <= _KEPT  # type: ignore[attr-defined]
        kept = []
        for block in _blocks(q_ARLX, size):
            share_ANE = _share(_scaled(q_ARLX, block), k_ALX, block, hidden)
            _put(out_ARLX, block, torch.bmm(share_ANE, v_ALX[:, : share_ANE.shape[2]]))
            kept += [share_ANE] if is_kept else []
        ctx.save_for_backward(q_ARLX, k_ALX, v_ALX, *kept)
        ctx.is_causal = is_causal  # type: ignore[attr-defined]
        return out_ARLX

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_ARLX, k_ALX, v_ALX, *kept = ctx.saved_tensors  # type: ignore[attr-defined]
        is_causal = ctx.is_causal  # type: ignore[attr-defined]
        hidden, size = _hidden(q_ARLX) if is_causal else None, _size(q_ARLX, is_causal=is_causal)
        q_grad = torch.empty_like(q_ARLX)
        k_grad, v_grad = (torch.zeros_like(k_ALX, dtype=torch.float32) for _ in range(2))  # sums over blocks
        for number, block in enumerate(_blocks(q_ARLX, size)):
            q_ANX = _scaled(q_ARLX, block)
            share_ANE = kept[number] if kept else _share(q_ANX, k_ALX, block, hidden)
            n_seen = share_ANE.shape[2]
            grad_ANX = grads[0][:, :, block].reshape(q_ANX.shape)
            v_grad[:, :n_seen] += torch.bmm(share_ANE.transpose(1, 2), grad_ANX)
            share_grad = torch.bmm(grad_ANX, v_ALX[:, :n_seen].transpose(1, 2))
            score_grad = torch._softmax_backward_data(share_grad, share_ANE, 2, share_ANE.dtype)  # noqa: SLF001
            k_grad[:, :n_seen] += torch.bmm(score_grad.transpose(1, 2), q_ANX)
            _put(q_grad, block, torch.bmm(score_grad, k_ALX[:, :n_seen]).mul_(q_ARLX.shape[3] ** -0.5))
        return q_grad, k_grad.to(k_ALX.dtype), v_grad.to(v_ALX.dtype), None


def _size(q_ARLX: Tensor, *, is_causal: bool) -> int:
    """Queries a block."""
    return _BLOCK if is_causal else max(_BLOCK, _SCORES // (q_ARLX[..., 0].numel() or 1))


def _blocks(q_ARLX: Tensor, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, q_ARLX.shape[2])) for begin in range(0, q_ARLX.shape[2], size)]


def _put(x_ARLX: Tensor, block: slice, result_ANX: Tensor) -> None:
    part = x_ARLX[:, :, block]
    part.copy_(result_ANX.view_as(part))


def _scaled(q_ARLX: Tensor, block: slice) -> Tensor:
    """A block's queries of all heads that share keys, one after the other, (A, R * N, X)."""
    width: int = q_ARLX.shape[3]
    return torch.mul(q_ARLX[:, :, block], width**-0.5).flatten(1, 2)


def _hidden(q_ARLX: Tensor) -> Tensor:
    """What to add to a block's scores of its own keys, so that no query sees a later one: adding is faster than filling."""
    return torch.full((_BLOCK, _BLOCK), -torch.inf, dtype=q_ARLX.dtype, device=q_ARLX.device).triu_(1)


def _share(q_ANX: Tensor, k_ALX: Tensor, block: slice, hidden: Tensor | None) -> Tensor:
    """How much each query of a block sees of each key, (A, R * N, E)."""
    n_queries = block.stop - block.start
    n_seen = k_ALX.shape[1] if hidden is None else block.stop
    score_ANE = torch.bmm(q_ANX, k_ALX[:, :n_seen].transpose(1, 2))
    if hidden is not None:
        score_ANE.view(len(q_ANX), -1, n_queries, n_seen)[..., block.start :].add_(hidden[:n_queries, :n_queries])
    return torch.softmax(score_ANE, 2)
