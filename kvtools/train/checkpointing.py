"""Activation checkpointing: a layer keeps only its inputs for gradients, and is computed once more when they are taken.

torch's own, which draws the same random numbers both times: losses and gradients are those without it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def run_layer(
    layer: Callable[..., Result],
    *inputs: object,
    is_checkpointed: bool,
    again: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Result:
    """The layer's result, of any shape. Checkpointed, only inputs are kept, and the rest is computed again for gradients.

    again: gives what surrounds the second computation, where a layer would otherwise do something twice, such as counting.
    """
    if not is_checkpointed or not torch.is_grad_enabled():
        return layer(*inputs)
    out: Result = checkpoint(layer, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))
    return out
