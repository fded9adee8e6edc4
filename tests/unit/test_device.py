"""Where to compute: which device --device means, and whose GPU is whose."""

import pytest
import torch

from kvtools.errors import Usage
from kvtools.train.device import add_in_one_order, resolve_device


def test_without_a_gpu_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == ("cpu", "float32")
    assert resolve_device("cpu", "bfloat16", rank=3) == ("cpu", "bfloat16")
    with pytest.raises(Usage, match="--device cuda"):
        resolve_device("cuda")


def test_ranks_take_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device("auto", rank=rank) for rank in range(3)] == [(f"cuda:{n}", "bfloat16") for n in (0, 1, 0)]
    assert resolve_device("cuda", "float32", rank=1) == ("cuda:1", "float32")
    assert resolve_device("cpu", rank=1) == ("cpu", "float32")


def test_gradients_of_gathered_rows_are_added_in_one_order():
    n_threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    rows = torch.randint(3, (80_000,), generator=torch.Generator().manual_seed(0))
    weight = torch.randn(80_000, 16, generator=torch.Generator().manual_seed(1))
    try:
        torch.set_num_threads(4)
        add_in_one_order("cpu")
        sums = set()
        for _ in range(5):
            table = torch.zeros(3, 16, requires_grad=True)
            (table[rows] * weight).sum().backward()
            sums.add(table.grad.numpy().tobytes())
        assert len(sums) == 1
    finally:
        torch.set_num_threads(n_threads)
        torch.use_deterministic_algorithms(is_deterministic)
