"""Cross-entropy of a linear head whose logits are never stored as a whole: a chunk of them at a time, with its gradients.

With S rows and V classes the logits, their softmax and its gradient would take 3 * S * V numbers; here it is one chunk of them.

A small vocabulary is processed by rows, each with all of its classes: gradients are computed while their softmax is at hand,
so that nothing is computed twice. A large vocabulary would leave few rows per chunk, and the gradient of the head, a pass over
all of it for each chunk, would take longer than the products: it is processed by classes, once for the sums of exponentials
and again for the gradients, which costs a fourth product. Rows without a target cost nothing. Not here: label smoothing,
z-loss.

Legend: S rows, D width, V classes.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORED = -1
_CHUNK = 1 << 24  # logits at a time, 64 MiB in float32: more is not faster, and less makes the products thin
_CHUNK_ROWS = 512  # a small vocabulary's chunk stays in cache
_GROUP_ROWS = 2048  # by classes: more rows leave few classes per chunk, fewer mean more passes over the head's gradient


def linear_cross_entropy(
    hidden_SD: Tensor, weight_VD: Tensor, targets_S: Tensor, *, rows: int | None = None, classes: int | None = None,
    uncounted: int = IGNORED,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sum of the losses of softmax(hidden @ weight.T) against targets, and the number of correct predictions, in which those of
    the target `uncounted` are left out.

    hidden_SD: float (S, D). weight_VD: float (V, D). targets_S: int64 (S,) in [0, V), or IGNORED. rows or classes: how many at
    a time, in place of what suits the sizes. Returns two float32 scalars (float64 for float64 weights), of which the first has
    gradients; a tie for the largest logit counts as correct. Under autocast the products are in its dtype, and the softmax and
    all sums in float32. Memory: a chunk of the logits, and for the gradients what the inputs take. Raises ValueError for
    targets out of range.
    """
    wanted = targets_S != IGNORED
    hidden, targets = hidden_SD[wanted], targets_S[wanted]
    n_classes = len(weight_VD)
    if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= n_classes):
        raise ValueError(f"targets run from {int(targets.min())} to {int(targets.max())}, and 0 to {n_classes - 1} is needed")
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VD.dtype
    n_fitting = max(1, _CHUNK // n_classes)
    if rows is None and classes is None and n_fitting < min(_CHUNK_ROWS, len(targets)):
        classes = max(1, _CHUNK // min(_GROUP_ROWS, len(targets)))
    return _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call,no-any-return]
        hidden, weight_VD, targets, rows or min(_CHUNK_ROWS, n_fitting), classes, dtype, uncounted
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_SD: Tensor, weight_VD: Tensor, targets_S: Tensor, rows: int, classes: int | None, dtype: torch.dtype,
        uncounted: int,
    ) -> Any:  # fmt: skip
        exact = torch.promote_types(dtype, torch.float32)
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        loss, n_correct = (torch.zeros((), dtype=exact, device=hidden_SD.device) for _ in range(2))
        sums = _Sums(
            loss,
            n_correct,
            torch.zeros_like(hidden_SD) if of_hidden else None,
            # sums over chunks stay in full precision: bfloat16 would lose small terms against a large sum
            torch.zeros_like(weight_VD, dtype=exact) if of_weight else None,
            uncounted,
        )
        with torch.autocast(hidden_SD.device.type, enabled=False):
            weight, n_rows = weight_VD.to(dtype), rows if classes is None else _GROUP_ROWS
            for begin in range(0, len(hidden_SD), n_rows):
                span = slice(begin, begin + n_rows)
                hidden, targets = hidden_SD[span].to(dtype), targets_S[span]
                chunk = sums if sums.hidden_grad is None else sums._replace(hidden_grad=sums.hidden_grad[span])
                if classes is None:
                    _add_rows(hidden, weight, targets, chunk)
                else:
                    _add_classes(hidden, weight, targets, chunk, classes)
        ctx.save_for_backward(sums.hidden_grad, sums.weight_grad)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(n_correct)
        return loss, n_correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = gradients[0]
        if scale != 1:  # it is 1 for a sum of losses, whose gradients need no second copy
            hidden_grad, weight_grad = (x if x is None else x * scale.to(x.dtype) for x in (hidden_grad, weight_grad))
        return hidden_grad, None if weight_grad is None else weight_grad.to(ctx.weight_dtype), None, None, None, None, None


class _Sums(NamedTuple):
    """The sums that chunks are added to, in place; None for a gradient that is not needed."""

    loss: Tensor
    n_correct: Tensor
    hidden_grad: Tensor | None
    weight_grad: Tensor | None
    uncounted: int  # a target whose predictions n_correct leaves out

    @property
    def has_gradients(self) -> bool:
        return self.hidden_grad is not None or self.weight_grad is not None


def _add_rows(hidden_SD: Tensor, weight_VD: Tensor, targets_S: Tensor, sums: _Sums) -> None:
    """Add a chunk of rows with all of their classes."""
    logits = (hidden_SD @ weight_VD.T).to(sums.loss.dtype)
    of_target, largest = logits.gather(1, targets_S[:, None]).squeeze(1), logits.amax(1)
    softmax, logsum = _softmax(logits, largest)
    sums.loss.add_((logsum - of_target).sum())
    sums.n_correct.add_(((of_target >= largest) & (targets_S != sums.uncounted)).sum())
    if sums.has_gradients:
        softmax[torch.arange(len(targets_S), device=targets_S.device), targets_S] -= 1
        _add_gradients(hidden_SD, weight_VD, softmax, sums.hidden_grad, sums.weight_grad)


def _add_classes(hidden_SD: Tensor, weight_VD: Tensor, targets_S: Tensor, sums: _Sums, n_classes: int) -> None:
    """Add a chunk of rows, n_classes at a time: their sums of exponentials first, then the gradients."""
    begins = range(0, len(weight_VD), n_classes)
    # one allocation: small tensors that stay, between large ones that are freed, leave holes that nothing fits into
    kept = torch.empty(2, len(begins), len(hidden_SD), dtype=sums.loss.dtype, device=hidden_SD.device)
    tops, logsums = kept
    of_target = torch.empty_like(tops[0])
    for begin, top, logsum in zip(begins, tops, logsums, strict=True):
        weight = weight_VD[begin : begin + n_classes]
        logits = (hidden_SD @ weight.T).to(kept.dtype)
        rows, column = _targets_of(targets_S, begin, len(weight))
        of_target[rows] = logits[rows, column]
        top.copy_(logits.amax(1))
        logsum.copy_(_softmax(logits, top)[1])
    whole = logsums.logsumexp(0)
    sums.loss.add_((whole - of_target).sum())
    sums.n_correct.add_(((of_target >= tops.amax(0)) & (targets_S != sums.uncounted)).sum())
    if not sums.has_gradients:
        return
    for begin, fraction in zip(begins, (logsums - whole).exp_(), strict=True):
        weight = weight_VD[begin : begin + n_classes]
        softmax = (hidden_SD @ weight.T).to(kept.dtype).softmax(1).mul_(fraction.unsqueeze(1))
        softmax[_targets_of(targets_S, begin, len(weight))] -= 1
        weight_grad = None if sums.weight_grad is None else sums.weight_grad[begin : begin + n_classes]
        _add_gradients(hidden_SD, weight, softmax, sums.hidden_grad, weight_grad)


def _softmax(logits: Tensor, largest_S: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax, and the log of the sum of exponentials, which the largest probability gives without another pass of exp."""
    softmax = logits.softmax(1)
    return softmax, largest_S - softmax.amax(1).log()


def _targets_of(targets_S: Tensor, begin: int, n_classes: int) -> tuple[Tensor, Tensor]:
    """The rows whose targets are among n_classes from `begin` on, and the index of each target among them: int64, two of one
    length."""
    rows = ((targets_S >= begin) & (targets_S < begin + n_classes)).nonzero().squeeze(1)
    return rows, targets_S[rows] - begin


def _add_gradients(
    hidden_SD: Tensor, weight_VD: Tensor, gradient: Tensor, hidden_grad: Tensor | None, weight_grad: Tensor | None
) -> None:
    gradient = gradient.to(hidden_SD.dtype)
    if hidden_grad is not None:
        _add_product(hidden_grad, gradient, weight_VD)
    if weight_grad is not None:
        _add_product(weight_grad, gradient.T, hidden_SD)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to the total, without a pass over it where the precision is the same."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
