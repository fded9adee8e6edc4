"""Cross-entropy of a linear head whose logits are never stored: a chunk of rows at a time, gradients on the way.

With S rows and V classes the logits, their softmax and its gradient would take 3 * S * V numbers; here it is one chunk * V.
The gradients of a chunk are made while its softmax is at hand, so that nothing is computed twice. What has no target costs
nothing. Not here: label smoothing, z-loss.

Legend: S rows, D width, V classes.
"""

from typing import Any

import torch
from torch import Tensor

IGNORED = -1
_CHUNK_LOGITS = 1 << 24  # 64 MiB in float32: beyond it nothing gets faster, below it products get thin
_CHUNK_ROWS = 512  # a small vocabulary's chunk stays in cache


def linear_cross_entropy(
    hidden_SD: Tensor, weight_VD: Tensor, targets_S: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """(sum of the losses, number of right answers, ties among them) of softmax(hidden @ weight.T) against targets.

    targets_S: int64 (S,) in [0, V), or IGNORED. Returns two float32 scalars (float64 for float64 weights), of which the
    first has gradients. Under autocast the products are in its dtype, and the softmax and all sums in float32. Memory
    O(chunk * V), and for the gradients what the inputs take. Raises ValueError for targets out of range.
    """
    wanted = targets_S != IGNORED
    hidden, targets = hidden_SD[wanted], targets_S[wanted]
    n_classes = len(weight_VD)
    if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= n_classes):
        raise ValueError(f"targets: {int(targets.min())} to {int(targets.max())} found, ids below {n_classes} expected")
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VD.dtype
    chunk = chunk or min(_CHUNK_ROWS, max(1, _CHUNK_LOGITS // n_classes))
    return _LinearCrossEntropy.apply(hidden, weight_VD, targets, chunk, dtype)  # type: ignore[no-untyped-call,no-any-return]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_SD: Tensor, weight_VD: Tensor, targets_S: Tensor, chunk: int, dtype: torch.dtype) -> Any:
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        exact = torch.promote_types(dtype, torch.float32)
        with torch.autocast(hidden_SD.device.type, enabled=False):
            weight = weight_VD.to(dtype)
            # sums over chunks stay in full precision: bfloat16 would lose small terms against a large sum
            weight_grad = torch.zeros_like(weight_VD, dtype=exact) if of_weight else None
            hidden_grad = torch.empty_like(hidden_SD) if of_hidden else None
            loss, n_right = (torch.zeros((), dtype=exact, device=hidden_SD.device) for _ in range(2))
            for begin in range(0, len(hidden_SD), chunk):
                hidden, targets = hidden_SD[begin : begin + chunk].to(dtype), targets_S[begin : begin + chunk]
                logits = (hidden @ weight.T).to(exact)
                of_target, largest = logits.gather(1, targets[:, None]).squeeze(1), logits.amax(1)
                # torch's exp costs more than all of softmax, whose largest share tells the sum of exponentials as well
                shares = logits.softmax(1)
                loss += (largest - shares.amax(1).log() - of_target).sum()
                n_right += (of_target >= largest).sum()
                if not (of_hidden or of_weight):
                    continue
                shares[torch.arange(len(targets), device=targets.device), targets] -= 1
                gradient = shares.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[begin : begin + chunk] = gradient @ weight
                if weight_grad is not None:
                    _add_product(weight_grad, gradient.T, hidden)
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(n_right)
        return loss, n_right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = gradients[0]
        if scale != 1:  # a sum of losses has 1, and its gradients need no second copy
            hidden_grad, weight_grad = (x if x is None else x * scale.to(x.dtype) for x in (hidden_grad, weight_grad))
        return hidden_grad, None if weight_grad is None else weight_grad.to(ctx.weight_dtype), None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to the total, without a pass over it where the precision is the same."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
