"""Any model that devices train: layers as a recipe lists them, or a torch.nn.Module of the user's own.

A recipe is a list of tables with a `kind` each; the output of the last layer goes through one more linear layer, to the
classes. Nothing of a recipe is executed.

Gradients of all devices come from one vmap. Modules with convolutions train one device after another on CPUs, where a grouped
convolution is slower than a loop. Modules with buffers, such as running means, are refused, since devices would share them,
and so are modules with dropout, whose random numbers would depend on chunks. `linear` and `relu` alone train as models.Dense
does, to rounding, from the same weights; but Dense is several times faster.

Not here: files (etree/data/model_files.py). Legend: B devices, b samples of each, C classes, M models, P parameters. The
weights of a model are one row, parameter after parameter.
"""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from kvtools.chance import rng_for
from kvtools.etree.train.models import SgdStep

_LARGEST = 1 << 28  # parameters
_LARGEST_SIZE = 65_536  # a size of a layer
_DROPOUT = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
_SIZES: dict[str, dict[str, int | None]] = {  # sizes of each kind, with their defaults; None: required
    "linear": {"width": None}, "conv": {"channels": None, "kernel": None, "stride": 1, "padding": 0},
    "max-pool": {"size": None}, "mean-pool": {"size": None}, "group-norm": {"groups": None},
    "layer-norm": {}, "relu": {}, "gelu": {}, "tanh": {}, "flatten": {},
}  # fmt: skip
_PLAIN: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "flatten": nn.Flatten}


class _FlatLinear(nn.Linear):
    """A linear layer for samples of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


class CustomModel:
    """A torch module as a `models.Model`. `architecture` describes it in a `model` bag."""

    def __init__(self, module: nn.Module, start: dict[str, np.ndarray] | None, architecture: Any) -> None:
        """start: the first weights by name; None draws them as recipes do.

        Raises ValueError for modules with buffers, with dropout, without parameters or with too many.
        """
        buffers = [name for name, _ in module.named_buffers()]
        if buffers:
            raise ValueError(f"the module has buffers ({buffers[0]}), which devices would share")
        if any(isinstance(part, _DROPOUT) and part.p for part in module.modules()):
            raise ValueError("the module has dropout, whose random numbers would depend on chunks")
        self._module, self._start, self.architecture = module, start, architecture
        self._shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
        if not 0 < self.n_parameters <= _LARGEST:
            raise ValueError(f"the module has {self.n_parameters} parameters, and from 1 to {_LARGEST} are allowed")
        self._has_conv = any(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in module.modules())

    @property
    def n_parameters(self) -> int:
        """Numbers in a row of weights."""
        return sum(map(math.prod, self._shapes.values()))

    def init(self, seed: int) -> np.ndarray:
        """The first weights, float32 (P,): of a recipe U(+-1/sqrt(fan in)), as in models.py; a user's module keeps its own."""
        start = _drawn(self._module, seed) if self._start is None else self._start
        return np.concatenate([start[name].reshape(-1) for name in self._shapes]).astype(np.float32)

    def _views(self, rows_BP: Tensor) -> dict[str, Tensor]:
        views, begin = {}, 0
        for name, shape in self._shapes.items():
            end = begin + math.prod(shape)
            views[name] = rows_BP[:, begin:end].view(-1, *shape)
            begin = end
        return views

    def sgd(self, rows_BP: Tensor, lr: float) -> SgdStep:
        """As Model.sgd."""
        module = copy.deepcopy(self._module)  # functional_call puts weights into it, and threads cannot share that
        views = self._views(rows_BP)

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
            terms = functional.cross_entropy(functional_call(module, weights, (x,)), y, reduction="none")
            return (terms * weight).sum()

        one_device = grad(loss)
        all_devices = vmap(one_device)
        is_looped = self._has_conv and rows_BP.device.type == "cpu"

        def step(x: Tensor, y: Tensor, weight: Tensor) -> None:
            if not is_looped:
                for name, part in all_devices(views, x, y, weight).items():
                    views[name].sub_(part, alpha=lr)
                return
            for i in range(len(x)):
                own = {name: view[i] for name, view in views.items()}
                for name, part in one_device(own, x[i], y[i], weight[i]).items():
                    own[name].sub_(part, alpha=lr)

        return step

    def logits(self, rows_MP: Tensor, x_ND: Tensor) -> Tensor:
        """As Model.logits."""
        module, views = copy.deepcopy(self._module), self._views(rows_MP)
        models = [{name: view[i] for name, view in views.items()} for i in range(len(rows_MP))]
        return torch.stack([functional_call(module, weights, (x_ND,)) for weights in models])

    def named(self, row_P: np.ndarray) -> dict[str, np.ndarray]:
        """The weights as the module names and lays them out."""
        return {name: view[0].numpy() for name, view in self._views(torch.from_numpy(row_P[None])).items()}


def from_recipe(layers: list[Any], shape: tuple[int, ...], n_classes: int) -> CustomModel:
    """The model of a recipe's layers, for samples of this shape. Raises ValueError with the number of a layer that fails."""
    parts: list[nn.Module] = []
    with torch.no_grad():
        x = torch.zeros(1, *shape)
        for number, layer in enumerate(layers, start=1):
            where = f"layer {number}, given samples of shape {tuple(x.shape[1:])}"
            try:
                parts.append(_layer(layer, x))
            except (ValueError, RuntimeError) as fault:
                raise ValueError(f"{where}: {str(fault).splitlines()[0].rstrip('.')}") from None
            try:
                x = parts[-1](x)
            except (ValueError, RuntimeError, IndexError):
                raise ValueError(f"{where}: {layer['kind']} does not take samples of that shape") from None
        parts.append(_FlatLinear(x[0].numel(), n_classes))
    return CustomModel(nn.Sequential(*parts), None, {"layers": layers})


def from_module(module: Any, shape: tuple[int, ...], n_classes: int, architecture: str) -> CustomModel:
    """The user's own module with the weights that it has. Raises ValueError where it is none, or gives other logits."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"the function returned {type(module).__name__}, and a torch.nn.Module is needed")
    start = {name: value.detach().numpy().copy() for name, value in module.named_parameters()}
    model = CustomModel(module, start, architecture)
    with torch.no_grad():
        logits = module(torch.zeros(2, *shape))
    if tuple(logits.shape) != (2, n_classes):
        raise ValueError(f"the module returned shape {tuple(logits.shape)} for two samples, and {(2, n_classes)} is needed")
    return model


def _layer(layer: Any, x: Tensor) -> nn.Module:
    """The module of one layer, for samples such as x."""
    if not isinstance(layer, dict) or layer.get("kind") not in _SIZES:
        kind = layer.get("kind") if isinstance(layer, dict) else layer
        raise ValueError(f"kind {kind!r} is none of {', '.join(_SIZES)}")
    kind = layer["kind"]
    size = _layer_sizes(kind, {name: value for name, value in layer.items() if name != "kind"})
    if kind == "linear":
        if x[0].numel() * size["width"] > _LARGEST:
            raise ValueError(f"{x[0].numel()} times {size['width']} weights are more than {_LARGEST}")
        return _FlatLinear(x[0].numel(), size["width"])
    if kind == "conv":
        return nn.Conv2d(x.shape[1], size["channels"], size["kernel"], size["stride"], size["padding"])
    if kind == "group-norm":
        if x.shape[1] % size["groups"]:
            raise ValueError(f"{x.shape[1]} channels are not divisible by {size['groups']} groups")
        return nn.GroupNorm(size["groups"], x.shape[1])
    if kind == "layer-norm":
        return nn.LayerNorm(list(x.shape[1:]))
    if kind.endswith("-pool"):
        return nn.MaxPool2d(size["size"]) if kind == "max-pool" else nn.AvgPool2d(size["size"])
    return _PLAIN[kind]()


def _layer_sizes(kind: str, given: dict[str, Any]) -> dict[str, int]:
    """The sizes of a layer, defaults included. Raises ValueError for one that is unknown, missing or out of range."""
    sizes = _SIZES[kind] | given
    unknown = set(sizes) - set(_SIZES[kind])
    if unknown:
        raise ValueError(f"{kind} has no {min(unknown)}")
    for name, value in sizes.items():
        if type(value) is not int or not (name != "padding") <= value <= _LARGEST_SIZE:
            raise ValueError(f"{name} is {value!r}, and a whole number up to {_LARGEST_SIZE} is needed")
    return {name: value for name, value in sizes.items() if value is not None}


def _drawn(module: nn.Module, seed: int) -> dict[str, np.ndarray]:
    """First weights: norms are the identity; other layers in their order, from one generator, linear ones as (in, out)."""
    rng = rng_for(seed, "etree", "init")
    start: dict[str, np.ndarray] = {}
    # a single layer is softmax regression, which is convex and begins at zero
    is_convex = sum(isinstance(part, nn.Linear | nn.Conv2d) for part in module.modules()) == 1
    for name, part in module.named_modules():
        if isinstance(part, nn.GroupNorm | nn.LayerNorm):
            start |= {f"{name}.weight": np.ones(part.weight.shape), f"{name}.bias": np.zeros(part.bias.shape)}
        elif isinstance(part, nn.Linear | nn.Conv2d):
            n_out, *rest = part.weight.shape
            fan_in = math.prod(rest)
            limit = 0.0 if is_convex else 1 / math.sqrt(fan_in)
            weight = rng.uniform(-limit, limit, n_out * fan_in)
            is_linear = isinstance(part, nn.Linear)
            start[f"{name}.weight"] = weight.reshape(fan_in, n_out).T if is_linear else weight.reshape(part.weight.shape)
            start[f"{name}.bias"] = rng.uniform(-limit, limit, n_out)
    return start
