"""bfloat16 between torch and numpy, to the bit."""

import numpy as np
import pytest
import torch

from kvtools.artifact.casts import BFLOAT16, to_numpy, to_torch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 4)])
def test_tensors_come_back_to_the_bit(dtype, shape):
    tensor = (torch.randn(shape) * 9).to(dtype)
    array = to_numpy(tensor)
    assert (array.dtype == BFLOAT16) == (dtype == torch.bfloat16)
    back = to_torch(array)
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_a_transposed_tensor_keeps_its_values():
    tensor = torch.arange(6).reshape(2, 3).bfloat16().T
    assert to_numpy(tensor).astype(float).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_tensor_of_a_mapped_array_can_be_written_to():
    array = np.frombuffer(bytes(8), BFLOAT16)
    to_torch(array, torch.float32).fill_(1)
    to_torch(array).fill_(1)
    assert not array.astype(float).any()
