"""bfloat16 in numpy, and torch tensors as arrays and back. torch does not know numpy's bfloat16: its bits go as int16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    import torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def to_torch(array: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of the same shape on the CPU with memory of its own, because mapped files cannot be written to.

    dtype: None keeps the array's.
    """
    import torch

    if array.dtype == BFLOAT16:
        tensor = torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(np.array(array))
    return tensor if dtype is None else tensor.to(dtype)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A contiguous array of the same shape and dtype; it shares the memory of a contiguous tensor on the CPU."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()
