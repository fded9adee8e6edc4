"""Where to compute: which device --device means, and whose GPU is whose."""

import pytest
import torch

from kvtools.errors import Usage
from kvtools.train.device import resolve_device


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
