"""Any model that devices train: layers as a TOML recipe lists them, or a torch.nn.Module of the user's own.

A recipe has one key, `layers`, a list of tables with a `kind` each; what comes out of the last goes through one more linear
layer, to the classes. Nothing of a recipe is executed. `FILE.py:NAME` is code of the user's, and is: NAME(shape, n_classes)
must give a module that takes (b, *shape) and gives (b, n_classes).

Gradients of many devices come from one vmap over all; modules with convolutions take the devices one after another on CPUs,
where a grouped convolution is slower than a loop. Refused are modules with buffers, such as running means, which devices would
share, and with dropout, whose chance would depend on chunks. `linear` and `relu` alone train as models.Dense does, to rounding,
from the same weights; but Dense is several times faster.

Legend: B devices, b samples of each, C classes, M models, P parameters. Weights of a model are one row, parameter after
parameter.
"""

import copy
import importlib.util
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from kvtools.chance import rng_for
from kvtools.errors import Missing
from kvtools.etree.train.models import Step

_LARGEST = 1 << 28  # parameters
_DROPOUT = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
_SIZES: dict[str, dict[str, int | None]] = {  # of each kind, and their defaults; None: must be there
    "linear": {"width": None}, "conv": {"channels": None, "kernel": None, "stride": 1, "padding": 0},
    "max-pool": {"size": None}, "mean-pool": {"size": None}, "group-norm": {"groups": None},
    "layer-norm": {}, "relu": {}, "gelu": {}, "tanh": {}, "flatten": {},
}  # fmt: skip


class _Flat(nn.Linear):
    """Of samples of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


class Module:
    """A torch module as `models.Model` has it. `architecture` is what a `model` bag should say of it."""

    def __init__(self, module: nn.Module, start: dict[str, np.ndarray] | None, architecture: Any) -> None:
        """start: the first weights, by name; None draws them as recipes do. Raises ValueError for modules that cannot be
        trained apart from one another."""
        kept = [name for name, _ in module.named_buffers()]
        if kept:
            raise ValueError(f"a module with buffers found ({kept[0]}), none that devices would share expected")
        if any(isinstance(part, _DROPOUT) and part.p for part in module.modules()):
            raise ValueError("a module with dropout found, one without chance of its own expected")
        self._module, self._start, self.architecture = module, start, architecture
        self._shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
        if not 0 < self.n_parameters <= _LARGEST:
            raise ValueError(f"{self.n_parameters} parameters found, from 1 to {_LARGEST} expected")
        self._has_conv = any(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in module.modules())

    @property
    def n_parameters(self) -> int:
        return sum(map(math.prod, self._shapes.values()))

    def init(self, seed: int) -> np.ndarray:
        """float32 (P,): of a recipe U(+-1/sqrt(fan in)), as Dense and Conv draw it; the user's own module keeps its weights."""
        start = _drawn(self._module, seed) if self._start is None else self._start
        return np.concatenate([start[name].reshape(-1) for name in self._shapes]).astype(np.float32)

    def _views(self, rows_BP: Tensor) -> dict[str, Tensor]:
        found, begin = {}, 0
        for name, shape in self._shapes.items():
            end = begin + math.prod(shape)
            found[name] = rows_BP[:, begin:end].view(-1, *shape)
            begin = end
        return found

    def descent(self, rows_BP: Tensor, rate: float) -> Step:
        """As models.Dense.descent."""
        module = copy.deepcopy(self._module)  # functional_call lends it weights, which threads cannot share
        views = self._views(rows_BP)

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
            terms = functional.cross_entropy(functional_call(module, weights, (x,)), y, reduction="none")
            return (terms * weight).sum()

        slope = grad(loss)
        is_looped = self._has_conv and rows_BP.device.type == "cpu"
        many = vmap(slope)

        def step(x: Tensor, y: Tensor, weight: Tensor) -> None:
            if not is_looped:
                for name, part in many(views, x, y, weight).items():
                    views[name].sub_(part, alpha=rate)
                return
            for place in range(len(x)):
                own = {name: view[place] for name, view in views.items()}
                for name, part in slope(own, x[place], y[place], weight[place]).items():
                    own[name].sub_(part, alpha=rate)

        return step

    def logits(self, rows_MP: Tensor, x_ND: Tensor) -> Tensor:
        """(M, N, C): what each model says of the same samples."""
        module, views = copy.deepcopy(self._module), self._views(rows_MP)
        each = [{name: view[place] for name, view in views.items()} for place in range(len(rows_MP))]
        return torch.stack([functional_call(module, weights, (x_ND,)) for weights in each])

    def named(self, row_P: np.ndarray) -> dict[str, np.ndarray]:
        """The weights as the module names and lays them out."""
        return {name: view[0].numpy() for name, view in self._views(torch.from_numpy(row_P[None])).items()}


def read_recipe(path: str, shape: tuple[int, ...], n_classes: int) -> Module:
    """The model of a recipe, for samples of this shape. Raises ValueError for what is no recipe, Missing for no file."""
    try:
        recipe = tomllib.loads(_read(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ValueError(f"{path}: {fault}; TOML expected") from None
    layers = recipe.get("layers")
    if set(recipe) != {"layers"} or not isinstance(layers, list):
        raise ValueError(f"{path}: keys {', '.join(recipe) or 'none'} found, layers alone expected")
    parts: list[nn.Module] = []
    with torch.no_grad():
        x = torch.zeros(1, *shape)
        for number, words in enumerate(layers, start=1):
            try:
                parts.append(_layer(words, x))
                x = parts[-1](x)
            except (ValueError, RuntimeError, IndexError) as fault:
                reason = str(fault).splitlines()[0].rstrip(".")
                raise ValueError(f"{path}: layer {number}: {reason}, given samples of {tuple(x.shape[1:])}") from None
        parts.append(_Flat(x[0].numel(), n_classes))
    return Module(nn.Sequential(*parts), None, {"layers": layers})


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as fault:
        raise Missing(f"--model {path}: {(fault.strerror or str(fault)).lower()}.") from None


def _layer(words: Any, x: Tensor) -> nn.Module:
    if not isinstance(words, dict) or words.get("kind") not in _SIZES:
        kind = words.get("kind") if isinstance(words, dict) else words
        raise ValueError(f"kind {kind!r} found, one of {', '.join(_SIZES)} expected")
    kind, known = words["kind"], _SIZES[words["kind"]]
    given = known | {name: value for name, value in words.items() if name != "kind"}
    if set(given) != set(known):
        raise ValueError(f"{min(set(given) - set(known))} found, which {kind} has not")
    for name, value in given.items():
        if type(value) is not int or not (name != "padding") <= value <= 65_536:
            raise ValueError(f"{name} {value!r} found, a whole number up to 65536 expected")
    size: dict[str, int] = {name: int(value) for name, value in given.items() if value is not None}
    if kind == "linear":
        if x[0].numel() * size["width"] > _LARGEST:
            raise ValueError(f"{x[0].numel()} times {size['width']} weights found, up to {_LARGEST} expected")
        return _Flat(x[0].numel(), size["width"])
    if kind == "conv":
        return nn.Conv2d(x.shape[1], size["channels"], size["kernel"], size["stride"], size["padding"])
    if kind == "group-norm":
        return nn.GroupNorm(size["groups"], x.shape[1])
    if kind == "layer-norm":
        return nn.LayerNorm(list(x.shape[1:]))
    if kind.endswith("-pool"):
        return nn.MaxPool2d(size["size"]) if kind == "max-pool" else nn.AvgPool2d(size["size"])
    bare: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "flatten": nn.Flatten}
    return bare[kind]()


def _drawn(module: nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Norms begin as the identity; other layers in their order, from one generator, linear ones as (in, out)."""
    chance = rng_for(seed, "etree", "init")
    found: dict[str, np.ndarray] = {}
    # one layer alone is softmax regression, which is convex and begins at nothing
    is_convex = sum(isinstance(part, nn.Linear | nn.Conv2d) for part in module.modules()) == 1
    for name, part in module.named_modules():
        if isinstance(part, nn.GroupNorm | nn.LayerNorm):
            found |= {f"{name}.weight": np.ones(part.weight.shape), f"{name}.bias": np.zeros(part.bias.shape)}
        elif isinstance(part, nn.Linear | nn.Conv2d):
            n_out, *rest = part.weight.shape
            fan = math.prod(rest)
            limit = 0.0 if is_convex else 1 / math.sqrt(fan)
            drawn = chance.uniform(-limit, limit, n_out * fan)
            is_linear = isinstance(part, nn.Linear)
            found[f"{name}.weight"] = drawn.reshape(fan, n_out).T if is_linear else drawn.reshape(part.weight.shape)
            found[f"{name}.bias"] = chance.uniform(-limit, limit, n_out)
    return found


def load_own(words: str, shape: tuple[int, ...], n_classes: int, seed: int) -> Module:
    """The module that NAME(shape, n_classes) of FILE.py gives, `words` being FILE.py:NAME. Runs that file. Raises ValueError
    where there is no such module, Missing for no file."""
    path, _, name = words.rpartition(":")
    _read(path)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None, "a file's name that ends in .py"
    assert spec.loader is not None, "a file's name that ends in .py"
    code = importlib.util.module_from_spec(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        spec.loader.exec_module(code)
        make = getattr(code, name, None)
        if not callable(make):
            raise ValueError(f"{words}: no such function found, one that makes a torch.nn.Module expected")
        module = make(shape, n_classes)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{words}: {type(module).__name__} found, a torch.nn.Module expected")
    start = {name: value.detach().numpy().copy() for name, value in module.named_parameters()}
    found = Module(module, start, words)
    with torch.no_grad():
        told = module(torch.zeros(2, *shape))
    if tuple(told.shape) != (2, n_classes):
        raise ValueError(f"{words}: {tuple(told.shape)} for two samples found, {(2, n_classes)} expected")
    return found
