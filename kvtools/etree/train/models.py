"""Models that many devices train at once: their weights stacked, one matrix product a layer for all of them.

Legend: B devices, b samples of each, D features, I in, O out, C classes, P parameters. The weights of a model are one row of P
float32; `layers` are views of stacked rows, so that an update in place is an update of the rows.

`Dense` is softmax regression (no hidden layer) or an MLP, with gradients written out: the update of a layer is one product
added into its weights, and no gradient is ever stored. `Conv` is a small CNN as LeNet has it, through autograd, its
convolutions unrolled into products, since a convolution a device in one call is slower than a loop on CPUs. Neither has state
that batches share, such as running means: devices may not see one another.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kvtools.chance import rng_for

_WIDEST = 1 << 20  # of a layer of an MLP: beyond it a model takes gigabytes a group
Rows = list[Tensor]
# x (B, b, ...), y (B, b), weight (B, b): one step of gradient descent for each device, in place. weight: what each sample
# counts, 0 where there is none; the loss is the weighted sum of cross-entropies
Step = Callable[[Tensor, Tensor, Tensor], None]


class Model(Protocol):
    """What training needs of a model."""

    @property
    def n_parameters(self) -> int: ...
    def init(self, seed: int) -> np.ndarray: ...
    def descent(self, rows_BP: Tensor, rate: float) -> Step: ...
    def logits(self, rows_MP: Tensor, x_ND: Tensor) -> Tensor: ...
    def named(self, row_P: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Dense:
    """Linear layers with ReLU between them: `sizes` are D, the hidden widths, C."""

    sizes: tuple[int, ...]

    @property
    def n_parameters(self) -> int:
        return sum(i * o + o for i, o in pairwise(self.sizes))

    def init(self, seed: int) -> np.ndarray:
        """float32 (P,): zeros for softmax regression, which is convex; else as torch.nn.Linear has it, U(+-1/sqrt(in))."""
        chance = rng_for(seed, "etree", "init")
        parts = []
        for i, o in pairwise(self.sizes):
            limit = 1 / math.sqrt(i) if len(self.sizes) > 2 else 0.0
            parts += [chance.uniform(-limit, limit, i * o), chance.uniform(-limit, limit, o)]
        return np.concatenate(parts).astype(np.float32)

    def layers(self, rows_BP: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views: weights (B, I, O) and biases (B, 1, O) of each layer."""
        found, begin = [], 0
        for i, o in pairwise(self.sizes):
            middle, end = begin + i * o, begin + i * o + o
            found.append((rows_BP[:, begin:middle].view(-1, i, o), rows_BP[:, None, middle:end]))
            begin = end
        return found

    def descent(self, rows_BP: Tensor, rate: float) -> Step:
        """What takes a step with these rows. Views are made once: in small models they cost as much as the products."""
        layers = [(w, w.transpose(1, 2), bias) for w, bias in self.layers(rows_BP)]
        minus_one = rows_BP.new_full((), -1.0)

        def step(x_BbD: Tensor, y_Bb: Tensor, weight_Bb: Tensor) -> None:
            inputs = [x_BbD.flatten(2)]
            for weights, _, bias in layers[:-1]:
                inputs.append(torch.baddbmm(bias, inputs[-1], weights).relu_())
            slope = torch.softmax(torch.baddbmm(layers[-1][2], inputs[-1], layers[-1][0]), dim=2)
            slope.scatter_add_(2, y_Bb[:, :, None], minus_one.expand(*y_Bb.shape, 1))
            slope *= weight_Bb[:, :, None]
            for place in range(len(layers) - 1, -1, -1):
                weights, turned, bias = layers[place]
                below = None
                if place:
                    # before the weights move; ReLU lets through what is positive
                    below = torch.ops.aten.threshold_backward(torch.bmm(slope, turned), inputs[place], 0)
                weights.baddbmm_(inputs[place].transpose(1, 2), slope, alpha=-rate)
                bias.sub_(slope.sum(dim=1, keepdim=True), alpha=rate)
                if below is not None:
                    slope = below

        return step

    def logits(self, rows_MP: Tensor, x_ND: Tensor) -> Tensor:
        """(M, N, C): what each model says of the same samples."""
        (weights, bias), *rest = self.layers(rows_MP)
        # all models' first layers side by side are one product, which narrow ones by themselves are slow at
        wide = x_ND.flatten(1) @ weights.transpose(0, 1).flatten(1)
        h = wide.view(len(x_ND), len(rows_MP), -1).transpose(0, 1) + bias
        for weights, bias in rest:
            h = torch.baddbmm(bias, h.relu(), weights)
        return h

    def named(self, row_P: np.ndarray) -> dict[str, np.ndarray]:
        """The weights as torch.nn.Sequential(Linear, ReLU, Linear, …) names and lays them out."""
        found = {}
        for place, (weights, bias) in enumerate(self.layers(torch.from_numpy(row_P[None]))):
            found[f"{2 * place}.weight"] = weights[0].T.contiguous().numpy()
            found[f"{2 * place}.bias"] = bias[0, 0].numpy()
        return found


@dataclass(frozen=True)
class Conv:
    """Two convolutions of 5 x 5 with ReLU and max-pooling of 2, then two linear layers: LeNet's shape (LeCun et al. 1998)."""

    shape: tuple[int, int, int]  # channels, rows, columns of a sample
    n_classes: int
    widths: tuple[int, int, int] = (6, 16, 64)

    _KERNEL = 5

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        channels, rows, columns = self.shape
        k, (one, two, hidden) = self._KERNEL, self.widths
        flat = two * _pooled(_pooled(rows, k), k) * _pooled(_pooled(columns, k), k)
        return [
            (one, channels * k * k), (one,), (two, one * k * k), (two,),
            (flat, hidden), (hidden,), (hidden, self.n_classes), (self.n_classes,),
        ]  # fmt: skip

    @property
    def n_parameters(self) -> int:
        return sum(map(math.prod, self._shapes))

    def init(self, seed: int) -> np.ndarray:
        """float32 (P,), U(+-1/sqrt(fan in)) as PyTorch has it."""
        chance = rng_for(seed, "etree", "init")
        parts: list[np.ndarray] = []
        for weights, bias in zip(self._shapes[::2], self._shapes[1::2], strict=True):
            limit = 1 / math.sqrt(weights[1] if len(parts) < 4 else weights[0])
            parts += [chance.uniform(-limit, limit, math.prod(weights)), chance.uniform(-limit, limit, bias[0])]
        return np.concatenate(parts).astype(np.float32)

    def _views(self, rows_BP: Tensor) -> Rows:
        found, begin = [], 0
        for shape in self._shapes:
            end = begin + math.prod(shape)
            found.append(rows_BP[:, begin:end].view(-1, *shape))
            begin = end
        return found

    def _forward(self, rows_BP: Tensor, x: Tensor) -> Tensor:
        n_devices, n_samples = x.shape[:2]
        w1, b1, w2, b2, w3, b3, w4, b4 = self._views(rows_BP)
        for weights, bias in ((w1, b1), (w2, b2)):
            rows = x.shape[3] - self._KERNEL + 1
            # (B * b, I k k, L): every patch a column
            patches = functional.unfold(x.flatten(0, 1), self._KERNEL)
            patches = patches.view(n_devices, n_samples, *patches.shape[1:])
            x = torch.einsum("bok,bnkl->bnol", weights, patches) + bias[:, None, :, None]
            x = functional.max_pool2d(x.relu().reshape(n_devices * n_samples, bias.shape[1], rows, -1), 2)
            x = x.view(n_devices, n_samples, *x.shape[1:])
        h = torch.baddbmm(b3[:, None], x.flatten(2), w3).relu()
        return torch.baddbmm(b4[:, None], h, w4)

    def descent(self, rows_BP: Tensor, rate: float) -> Step:
        """As Dense.descent."""

        def step(x_BbD: Tensor, y_Bb: Tensor, weight_Bb: Tensor) -> None:
            with torch.enable_grad():
                leaf = rows_BP.detach().requires_grad_()
                loss = functional.cross_entropy(self._forward(leaf, x_BbD).flatten(0, 1), y_Bb.flatten(), reduction="none")
                (slope,) = torch.autograd.grad((loss * weight_Bb.flatten()).sum(), leaf)
            rows_BP.sub_(slope, alpha=rate)

        return step

    def logits(self, rows_MP: Tensor, x_ND: Tensor) -> Tensor:
        """As Dense.logits."""
        return torch.cat([self._forward(row_P[None], x_ND[None]) for row_P in rows_MP])

    def named(self, row_P: np.ndarray) -> dict[str, np.ndarray]:
        """The weights as torch.nn's Conv2d and Linear lay them out, under conv1, conv2, fc1 and fc2."""
        views = [view[0].numpy() for view in self._views(torch.from_numpy(row_P[None]))]
        k = self._KERNEL
        found = {}
        for place, name in enumerate(("conv1", "conv2", "fc1", "fc2")):
            weights, bias = views[2 * place : 2 * place + 2]
            found[f"{name}.weight"] = weights.reshape(len(weights), -1, k, k) if place < 2 else np.ascontiguousarray(weights.T)
            found[f"{name}.bias"] = bias
        return found


def _pooled(n: int, kernel: int) -> int:
    return (n - kernel + 1) // 2


def build(words: str, shape: tuple[int, ...], n_classes: int, seed: int = 0) -> Model:
    """`softmax`, `mlp:200` or `mlp:300,100`, `cnn`, a recipe FILE.toml, or FILE.py:NAME, for samples of this shape. Raises
    ValueError for others, Missing where there is no such file."""
    if words.endswith(".toml"):
        from kvtools.etree.train.modules import read_recipe

        return read_recipe(words, shape, n_classes)
    if words.rpartition(":")[0].endswith(".py"):
        from kvtools.etree.train.modules import load_own

        return load_own(words, shape, n_classes, seed)
    name, _, widths = words.partition(":")
    n_features = math.prod(shape)
    if words == "softmax":
        return Dense((n_features, n_classes))
    if name == "mlp" and all(word.isdecimal() and 0 < int(word) <= _WIDEST for word in widths.split(",")):
        return Dense((n_features, *map(int, widths.split(",")), n_classes))
    if words == "cnn" and len(shape) == 3 and min(_pooled(_pooled(n, 5), 5) for n in shape[1:]) >= 1:
        return Conv((shape[0], shape[1], shape[2]), n_classes)
    where = "" if words != "cnn" else f", and samples of {shape} found where cnn wants images of 16 by 16 or more"
    raise ValueError(f"softmax, mlp:WIDTH[,WIDTH], cnn, FILE.toml or FILE.py:NAME expected{where}")
