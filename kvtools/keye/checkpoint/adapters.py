"""Low-rank adapters in folders, in the layout of peft: adapter_config.json and adapter_model.safetensors.

peft loads such a folder onto the model's directory in transformers, and kvtools reads adapters that peft has trained. In
kvtools.json stand the base model, its digest, the recipe and the history. Read: LoRA on matrices, with one rank and alpha or
with patterns of them, and rank-stabilised scaling. Refused by name: what changes anything else, such as DoRA or trained biases.

Legend: A (rank, in) and B (out, rank), the thin matrices of a layer.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kvtools.artifact.blob import bytes_of
from kvtools.artifact.casts import to_numpy, to_torch
from kvtools.artifact.directory import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_small, read_tensors, write_tensors
from kvtools.artifact.history import Step
from kvtools.errors import Corrupt, Missing, raising
from kvtools.keye.checkpoint.weights import Weights, open_weights
from kvtools.keye.model.lora import LoraConfig, adapters_of, product_added

_PREFIX = "base_model.model."  # what peft puts before a module's name
_OURS = "kvtools.json"
# settings of peft that change what an adapter computes, and the values of them that are built here
_BUILT: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": (None, "none"), "fan_in_fan_out": (None, False), "use_dora": (None, False),
    "lora_bias": (None, False), "modules_to_save": (None, []), "trainable_token_indices": (None,), "layer_replication": (None,),
    "target_parameters": (None, []), "use_qalora": (None, False), "alora_invocation_tokens": (None,),
}  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An adapter of a folder: A and B by layer, the factor of each product, and what is known of its making."""

    name: str  # of the folder, for messages
    products: dict[str, tuple[np.ndarray, np.ndarray]]
    scales: dict[str, float]
    base: str | None = None  # where its base model is, as the folder says
    digest: str | None = None  # of the base model
    history: list[Step] = field(default_factory=list)


def is_adapter(src: str) -> bool:
    """Whether a path is a folder with an adapter."""
    return src != "-" and (Path(src) / ADAPTER_CONFIG).is_file()


def write_adapter(
    folder: Path, model: nn.Module, config: LoraConfig, *, base: Weights, dst: str, recipe: Mapping[str, Any],
    history: list[Step], fields: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the adapters of a model into a folder, which becomes dst. base: what they adapt; fields: stage, step and such."""
    tensors: dict[str, np.ndarray] = {}
    for name, (a, b) in adapters_of(model).items():
        tensors |= {f"{_PREFIX}{name}.lora_A.weight": to_numpy(a), f"{_PREFIX}{name}.lora_B.weight": to_numpy(b)}
    write_tensors(folder / ADAPTER_WEIGHTS, tensors)
    name = os.path.relpath(base.name, os.path.dirname(dst.rstrip("/")) or ".")
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": 0.0,
        "target_modules": config.targets, "bias": "none", "fan_in_fan_out": False, "use_dora": False, "use_rslora": False,
        "modules_to_save": None, "inference_mode": True, "base_model_name_or_path": name,
    }  # fmt: skip
    (folder / ADAPTER_CONFIG).write_bytes(_json(settings))
    ours = {"base": name, "digest": tensors_digest(base), "config": recipe, "history": history, "told": fields}
    (folder / _OURS).write_bytes(_json(ours))


def open_adapter(src: str) -> Adapter:
    """The adapter of a folder. Raises Missing where there is none, Corrupt for damage and for kinds that are not built here."""
    folder = Path(src)
    if not is_adapter(src):
        raise Missing(f"{src}: it has no {ADAPTER_CONFIG}. Give a folder that pretrain keye --lora or peft has written.")
    config = json.loads(read_small(folder / ADAPTER_CONFIG, is_object=True))
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise Corrupt(f"{src}: it has no {ADAPTER_WEIGHTS}. Give the whole folder of the adapter.")
    for name, built in _BUILT.items():
        if config.get(name) not in built:
            raise Corrupt(
                f"{src}: {name} is {config[name]!r}, and only {built[-1]!r} is built here. Give an adapter of matrices alone."
            )
    ours = json.loads(read_small(folder / _OURS, is_object=True)) if (folder / _OURS).is_file() else {}
    with raising(Corrupt, src, "Give an adapter as peft writes it."):
        products = _products(read_tensors(folder / ADAPTER_WEIGHTS))
        scales = {name: _scale(config, name, len(a)) for name, (a, _) in products.items()}
    base = ours.get("base") or config.get("base_model_name_or_path")
    return Adapter(
        src, products, scales, base if isinstance(base, str) else None, ours.get("digest"), ours.get("history") or []
    )  # fmt: skip


def adapted(weights: Weights, adapter: Adapter) -> Weights:
    """The weights with the adapter's products added, each in its own type.

    Raises Corrupt where the adapter changes what the model does not have, or has other shapes.
    """
    tensors = dict(weights.tensors)
    for name, (a, b) in adapter.products.items():
        weight = tensors.get(f"{name}.weight")
        if weight is None:
            raise Corrupt(f"{adapter.name}: it changes {name}, which {weights.name} does not have. Give its base model.")
        if weight.shape != (len(b), a.shape[1]) or len(a) != b.shape[1]:
            raise Corrupt(
                f"{adapter.name}: {name} is {list(weight.shape)} in {weights.name}, and the adapter is for "
                f"{[len(b), a.shape[1]]}. Give its base model."
            )
        total = product_added(to_torch(weight), to_torch(a), to_torch(b), adapter.scales[name])
        tensors[f"{name}.weight"] = to_numpy(total)
    return replace(weights, tensors=tensors, history=adapter.history or weights.history)


def open_model_weights(src: str) -> Weights:
    """The weights of a bag, of a Hugging Face directory, or of an adapter's folder with those of its base model.

    Raises as `open_weights` and `open_adapter`; Missing where the base is gone, Corrupt where it is another model now.
    """
    if not is_adapter(src):
        return open_weights(src)
    adapter = open_adapter(src)
    beside = os.path.join(os.path.dirname(src.rstrip("/")), adapter.base or "")
    base = next((path for path in (beside, adapter.base or "") if path and os.path.exists(path)), None)
    if base is None or is_adapter(base):
        raise Missing(
            f"{src}: this is an adapter, and its base model {adapter.base or 'has no name'} is not found. Give a model that "
            "kvtools merge --adapter has made."
        )
    weights = open_weights(base)
    if adapter.digest is not None and tensors_digest(weights) != adapter.digest:
        raise Corrupt(f"{src}: it was trained on another model than {base} is now. Give that model beside the adapter.")
    return replace(adapted(weights, adapter), name=src)


def tensors_digest(weights: Weights) -> str:
    """A digest of the model's tensors, whatever the form of the artifact."""
    digest = hashlib.blake2b(digest_size=8)
    for name, array in sorted(weights.tensors.items()):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(bytes_of(array))
    return digest.hexdigest()


def _products(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    products: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        match = re.fullmatch(rf"({re.escape(_PREFIX)})?(.+)\.lora_(A|B)(\.default)?\.weight", name)
        if match is None:
            raise ValueError(f"it holds {name}, which is no part of a LoRA on a matrix")
        if array.ndim != 2 or not torch.is_floating_point(to_torch(array)):
            raise ValueError(f"{name} is {array.dtype} of shape {list(array.shape)}, and a matrix of numbers is needed")
        products.setdefault(match[2], {})[match[3]] = array
    for name, both in products.items():
        if both.keys() != {"A", "B"}:
            raise ValueError(f"{name} has lora_{'A' if 'A' in both else 'B'} alone, and A and B are needed")
    return {name: (both["A"], both["B"]) for name, both in products.items()}


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """The factor of a layer's product. rank: that of its tensors."""
    alpha = config.get("lora_alpha")
    for pattern, other in (config.get("alpha_pattern") or {}).items():
        if not re.fullmatch(r"[\w.]+", pattern):  # peft takes any pattern, and one could be made to match forever
            raise ValueError(f"alpha_pattern has {pattern!r}, and only names of layers are read")
        alpha = other if f".{name}".endswith(f".{pattern}") else alpha
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"lora_alpha is {alpha!r}, and a number is needed")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
