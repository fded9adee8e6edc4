"""Gradients of a model's parameters as one array, and their sums over ranks. Not here: when they are exchanged (loop.py)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kvtools.world import World


def gradients_of(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradient of each parameter, of the same shape; zeros where there was none."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def sum_over_ranks(parameters: Sequence[nn.Parameter], world: World, before: np.ndarray | None = None) -> np.ndarray:
    """What is given and then the gradients of each rank, added one after the other: float32 (n,), of all parameters. A rank's
    own become 0. Collective."""
    gradients = gradients_of(parameters)
    flat = np.concatenate([gradient.detach().cpu().float().numpy().reshape(-1) for gradient in gradients])
    for gradient in gradients:
        gradient.zero_()
    if before is not None and world.is_root:
        flat += before
    return np.asarray(world.sum_array(flat))


def set_gradients(parameters: Sequence[nn.Parameter], flat: np.ndarray) -> None:
    """Give the parameters the gradients of an array, float32 (n,)."""
    gradients = gradients_of(parameters)
    parts = torch.split(torch.from_numpy(flat), [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
