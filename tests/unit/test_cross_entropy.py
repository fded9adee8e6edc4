"""A linear head's loss without its logits: against torch's own, by finite differences, and in memory."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from kvtools.train.cross_entropy import IGNORED, linear_cross_entropy

PARTS = [{"rows": n} for n in (1, 3, 7, 64)] + [{"classes": n} for n in (1, 5, 16, 17, 64)]


def given(dtype=torch.float64, n=13, width=5, n_classes=17):
    torch.manual_seed(0)
    hidden = torch.randn(n, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(n_classes, width, dtype=dtype, requires_grad=True)
    targets = torch.randint(n_classes, (n,))
    targets[[0, 4, 5]] = IGNORED
    return hidden, weight, targets


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_loss_and_gradients_are_those_of_stored_logits(part):
    hidden, weight, targets = given()
    loss, n_right = linear_cross_entropy(hidden, weight, targets, **part)
    (3 * loss).backward()
    found = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T
    expected = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found[0], hidden.grad)
    torch.testing.assert_close(found[1], weight.grad)
    assert int(n_right) == int((logits.argmax(1) == targets).sum())


@pytest.mark.parametrize("part", [{"rows": 4}, {"classes": 4}], ids=str)
def test_gradients_agree_with_finite_differences(part):
    hidden, weight, targets = given()
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets, **part)[0], (hidden, weight))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("part", [{"rows": 4}, {"classes": 4}], ids=str)
def test_what_is_frozen_gets_no_gradient(which, part):
    inputs = [*given()[:2]]
    inputs[which].requires_grad_(False)
    linear_cross_entropy(*inputs, given()[2], **part)[0].backward()
    assert inputs[which].grad is None
    assert inputs[1 - which].grad is not None


def test_no_target_at_all_is_no_loss_and_a_gradient_of_zeros():
    hidden, weight, targets = given()
    loss, n_right = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORED))
    loss.backward()
    assert loss == n_right == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_bfloat16_products_keep_a_loss_in_full_precision():
    hidden, weight, targets = given(torch.float32)
    exact = linear_cross_entropy(hidden, weight, targets)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)  # bfloat16 has 8 bits


@pytest.mark.parametrize("target", [-2, 17])
def test_target_out_of_the_vocabulary_is_refused(target):
    hidden, weight, targets = given()
    targets[3] = target
    with pytest.raises(ValueError, match=r"^targets run from -?\d+ to \d+, and 0 to 16 is needed$"):
        linear_cross_entropy(hidden, weight, targets)


@pytest.mark.parametrize("part", ["rows=32", "classes=2048"])
def test_logits_are_never_stored(part):
    rows, classes = 1024, 65536  # stored logits alone would be 256 MiB, with softmax and gradient 768
    # not ru_maxrss, which begins at what this process has held
    program = f"""
import torch
from kvtools.train.cross_entropy import linear_cross_entropy
hidden, weight = torch.randn({rows}, 8, requires_grad=True), torch.randn({classes}, 8, requires_grad=True)
def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = most()
linear_cross_entropy(hidden, weight, torch.arange({rows}), {part})[0].backward()
print(most() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) << 10 < 96 << 20
