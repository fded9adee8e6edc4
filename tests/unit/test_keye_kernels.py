"""Kernels on private operators of torch: each gives what its plain fallback gives."""

import pytest
import torch

from kvtools.keye.model import cpu_kernels
from kvtools.keye.model.cpu_kernels import attention_bf16_cpu, linear_gelu, rms_norm_backward, softmax_backward
from kvtools.keye.model.layers import RMSNorm


def with_and_without(monkeypatch, operator, compute):
    """The results of a computation with the operator, and with the fallback."""
    if getattr(cpu_kernels, operator) is None:
        pytest.skip(f"this torch has no {operator}")
    fast = compute()
    monkeypatch.setattr(cpu_kernels, operator, None)
    return fast, compute()


@pytest.mark.parametrize("tanh", [True, False])
def test_linear_gelu_falls_back_to_two_operations(monkeypatch, tanh):
    torch.manual_seed(0)
    x, layer = torch.randn(9, 24), torch.nn.Linear(24, 40)
    with torch.no_grad():
        fast, plain = with_and_without(monkeypatch, "_LINEAR_GELU", lambda: linear_gelu(x, layer, tanh=tanh))
    torch.testing.assert_close(fast, plain)
    assert torch.equal(plain, torch.nn.functional.gelu(layer(x).detach(), approximate="tanh" if tanh else "none"))


def test_the_backward_of_rms_norm_falls_back_to_its_formula(monkeypatch):
    torch.manual_seed(0)
    norm = RMSNorm(24, 1e-3).double()
    torch.nn.init.normal_(norm.weight)
    x, grad = (torch.randn(9, 24, dtype=torch.float64) for _ in range(2))
    scale = (x.square().mean(1, keepdim=True) + 1e-3).rsqrt()
    weight = norm.weight.detach()
    fast, plain = with_and_without(monkeypatch, "_LAYER_NORM_BACKWARD", lambda: rms_norm_backward(grad, x, weight, scale))
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradcheck(norm, x.requires_grad_())


def test_the_backward_of_softmax_falls_back_to_its_formula(monkeypatch):
    torch.manual_seed(0)
    softmax, grad = torch.randn(3, 5, 7).softmax(2), torch.randn(3, 5, 7)
    fast, plain = with_and_without(monkeypatch, "_SOFTMAX_BACKWARD", lambda: softmax_backward(grad, softmax))
    torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize("length", [40, 1100])  # beyond 1,024 tokens softmaxes are computed again
def test_attention_has_gradients_without_private_operators(monkeypatch, length):
    torch.manual_seed(0)
    inputs = [torch.randn(1, n, length, 16).bfloat16().requires_grad_() for n in (4, 2, 2)]

    def gradients():
        out = attention_bf16_cpu(*inputs, is_causal=True)
        return torch.autograd.grad(out.float().sum(), inputs)

    fast, plain = with_and_without(monkeypatch, "_SOFTMAX_BACKWARD", gradients)
    for one, other in zip(fast, plain, strict=True):
        assert (one - other).float().norm() <= 0.01 * other.float().norm()  # scores have eight bits
