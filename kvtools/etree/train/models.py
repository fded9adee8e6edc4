"""Models that many devices train at once: their weights stacked, one matrix product a layer for all of them.

Legend: B devices, b samples of each, D features, I in, O out, C classes, P parameters. The weights of a model are one row of P
float32; `layers` are views of stacked rows, so that an update in place is an update of the rows.

`Dense` is softmax regression (no hidden layer) or an MLP, with gradients written out: the update of a layer is one product
added into its weights, and no gradient is ever stored. `Conv` is a small CNN of LeNet's shape, through autograd; its
convolutions are unrolled into products, since one grouped convolution for all devices is slower than a loop on CPUs. Neither
has state that batches share, such as running means: devices must not influence one another. Other models: custom_models.py.
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

_WIDEST = 1 << 20  # a layer of an MLP: a wider model takes gigabytes a group
FORMS = "softmax, mlp:WIDTH[,WIDTH], cnn, FILE.toml and FILE.py:NAME"
# x (B, b, ...), y (B, b), weight (B, b): one step of gradient descent for each device, in place. The loss is the sum of
# cross-entropies times weights; the weight of padding is 0
SgdStep = Callable[[Tensor, Tensor, Tensor], None]


class Model(Protocol):
    """What training needs of a model."""

    @property
    def n_parameters(self) -> int:
        """Numbers in a row of weights."""

    def init(self, seed: int) -> np.ndarray:
        """The first weights, float32 (P,)."""

    def sgd(self, rows_BP: Tensor, lr: float) -> SgdStep:
        """What takes steps of SGD with these weights, float32 (B, P), in place."""

    def logits(self, rows_MP: Tensor, x_ND: Tensor) -> Tensor:
        """Logits of each of M models for the same samples, float32 (M, N, C)."""

    def named(self, row_P: np.ndarray) -> dict[str, np.ndarray]:
        """One model's weights as the tensors of a `model` bag."""


@dataclass(frozen=True)
class Dense:
    """Linear layers with ReLU between them: `sizes` are D, the hidden widths, C."""

    sizes: tuple[int, ...]

    @property
    def n_parameters(self) -> int:
        """Numbers in a row of weights."""
        return sum(i * o + o for i, o in pairwise(self.sizes))

    def init(self, seed: int) -> np.ndarray:
        """The first weights, float32 (P,): zeros for softmax regression, which is convex; else U(+-1/sqrt(in)) as in torch."""
        rng = rng_for(seed, "etree", "init")
        parts = []
        for i, o in pairwise(self.sizes):
            limit = 1 / math.sqrt(i) if len(self.sizes) > 2 else 0.0
            parts += [rng.uniform(-limit, limit, i * o), rng.uniform(-limit, limit, o)]
        return np.concatenate(parts).astype(np.float32)

    def layers(self, rows_BP: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of the weights (B, I, O) and biases (B, 1, O) of each layer. rows_BP: float32 (B, P)."""
        layers, begin = [], 0
        for i, o in pairwise(self.sizes):
            middle, end = begin + i * o, begin + i * o + o
            layers.append((rows_BP[:, begin:middle].view(-1, i, o), rows_BP[:, None, middle:end]))
            begin = end
        return layers

    def sgd(self, rows_BP: Tensor, lr: float) -> SgdStep:
        """As Model.sgd. Views are made once: in small models they cost as much as the products."""
        layers = [(w, w.transpose(1, 2), bias) for w, bias in self.layers(rows_BP)]
        minus_one = rows_BP.new_full((), -1.0)

        def step(x_BbD: Tensor, y_Bb: Tensor, weight_Bb: Tensor) -> None:
            inputs = [x_BbD.flatten(2)]
            for weights, _, bias in layers[:-1]:
                inputs.append(torch.baddbmm(bias, inputs[-1], weights).relu_())
            grad = torch.softmax(torch.baddbmm(layers[-1][2], inputs[-1], layers[-1][0]), dim=2)
            grad.scatter_add_(2, y_Bb[:, :, None], minus_one.expand(*y_Bb.shape, 1))
            grad *= weight_Bb[:, :, None]
            for i in range(len(layers) - 1, -1, -1):
                weights, transposed, bias = layers[i]
                # the gradient of the layer below, before the weights change; ReLU passes it on where its output is positive
                below = torch.ops.aten.threshold_backward(torch.bmm(grad, transposed), inputs[i], 0) if i else grad
                weights.baddbmm_(inputs[i].transpose(1, 2), grad, alpha=-lr)
                bias.sub_(grad.sum(dim=1, keepdim=True), alpha=lr)
                grad = below

        return step

    def logits(self, rows_MP: Tensor, x_ND: Tensor) -> Tensor:
        """As Model.logits."""
        (weights, bias), *rest = self.layers(rows_MP)
        # the first layers of all models are one product: a product of its own for each narrow model is slower
        wide = x_ND.flatten(1) @ weights.transpose(0, 1).flatten(1)
        h = wide.view(len(x_ND), len(rows_MP), -1).transpose(0, 1) + bias
        for weights, bias in rest:
            h = torch.baddbmm(bias, h.relu(), weights)
        return h

    def named(self, row_P: np.ndarray) -> dict[str, np.ndarray]:
        """The weights as torch.nn.Sequential(Linear, ReLU, Linear, …) names and lays them out."""
        tensors = {}
        for i, (weights, bias) in enumerate(self.layers(torch.from_numpy(row_P[None]))):
            tensors[f"{2 * i}.weight"] = weights[0].T.contiguous().numpy()
            tensors[f"{2 * i}.bias"] = bias[0, 0].numpy()
        return tensors


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
        """Numbers in a row of weights."""
        return sum(map(math.prod, self._shapes))

    def init(self, seed: int) -> np.ndarray:
        """The first weights, float32 (P,), U(+-1/sqrt(fan in)) as in torch."""
        rng = rng_for(seed, "etree", "init")
        parts: list[np.ndarray] = []
        for weights, bias in zip(self._shapes[::2], self._shapes[1::2], strict=True):
            limit = 1 / math.sqrt(weights[1] if len(parts) < 4 else weights[0])
            parts += [rng.uniform(-limit, limit, math.prod(weights)), rng.uniform(-limit, limit, bias[0])]
        return np.concatenate(parts).astype(np.float32)

    def _views(self, rows_BP: Tensor) -> list[Tensor]:
        views, begin = [], 0
        for shape in self._shapes:
            end = begin + math.prod(shape)
            views.append(rows_BP[:, begin:end].view(-1, *shape))
            begin = end
        return views

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

    def sgd(self, rows_BP: Tensor, lr: float) -> SgdStep:
        """As Model.sgd."""

        def step(x_BbD: Tensor, y_Bb: Tensor, weight_Bb: Tensor) -> None:
            with torch.enable_grad():
                leaf = rows_BP.detach().requires_grad_()
                loss = functional.cross_entropy(self._forward(leaf, x_BbD).flatten(0, 1), y_Bb.flatten(), reduction="none")
                (grad,) = torch.autograd.grad((loss * weight_Bb.flatten()).sum(), leaf)
            rows_BP.sub_(grad, alpha=lr)

        return step

    def logits(self, rows_MP: Tensor, x_ND: Tensor) -> Tensor:
        """As Model.logits."""
        return torch.cat([self._forward(row_P[None], x_ND[None]) for row_P in rows_MP])

    def named(self, row_P: np.ndarray) -> dict[str, np.ndarray]:
        """The weights as torch.nn's Conv2d and Linear lay them out, under conv1, conv2, fc1 and fc2."""
        views = [view[0].numpy() for view in self._views(torch.from_numpy(row_P[None]))]
        k = self._KERNEL
        tensors = {}
        for i, name in enumerate(("conv1", "conv2", "fc1", "fc2")):
            weights, bias = views[2 * i : 2 * i + 2]
            tensors[f"{name}.weight"] = weights.reshape(len(weights), -1, k, k) if i < 2 else np.ascontiguousarray(weights.T)
            tensors[f"{name}.bias"] = bias
        return tensors


def _pooled(n: int, kernel: int) -> int:
    return (n - kernel + 1) // 2


def build(text: str, shape: tuple[int, ...], n_classes: int) -> Model:
    """The model `softmax`, `mlp:200`, `mlp:300,100` or `cnn` for samples of this shape. Raises ValueError for other text."""
    name, _, widths = text.partition(":")
    n_features = math.prod(shape)
    if text == "softmax":
        return Dense((n_features, n_classes))
    if name == "mlp" and all(width.isdecimal() and 0 < int(width) <= _WIDEST for width in widths.split(",")):
        return Dense((n_features, *map(int, widths.split(",")), n_classes))
    if text != "cnn":
        raise ValueError(f"models are {FORMS}, with widths up to {_WIDEST}")
    if len(shape) != 3 or min(_pooled(_pooled(n, 5), 5) for n in shape[1:]) < 1:
        raise ValueError(f"cnn takes images of 16 by 16 or more, and these samples have the shape {shape}")
    return Conv((shape[0], shape[1], shape[2]), n_classes)
