"""Models in files: `model` bags and Hugging Face directories read and written, every tensor accounted for.

A bag holds weights under the names of the published checkpoint they match (formats.py), small files as uint8 tensors under
their own names (`tokenizer.json` among them), and in its JSON {system: "keye", layout, architecture, unused: names of tensors
that are kept and that the model does not use, huggingface: the config.json they came with}. A directory has all that where
transformers looks for it, and what is ours alone in `kvtools.json`.

Tensors stay mapped until they are used: converting holds none of them, and a model is built one tensor at a time.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from kvtools.artifact.bag import write_bag
from kvtools.artifact.blob import NAMES
from kvtools.artifact.casts import to_numpy, to_torch
from kvtools.artifact.directory import SHARD_BYTES, Writers, fill_directory, read_directory
from kvtools.artifact.files import Sink
from kvtools.artifact.open import open_bag, source_name
from kvtools.errors import Corrupt, raising
from kvtools.keye.checkpoint.companions import companion_files, config_fields, is_ours
from kvtools.keye.checkpoint.formats import CheckpointFormat, canonical_name, is_unused, layer_numbers
from kvtools.keye.checkpoint.huggingface import format_of_config, huggingface_config
from kvtools.keye.data.tokenizer import FILE as TOKENIZER
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import Siglip
from kvtools.train.meta_init import meta_init
from kvtools.train.parts import ModelWriters

SYSTEM = "keye"
_BAD_CONFIG, _UNFIT = "Repair its config, or give another model.", "Give the tensors and the config of one model."
_OURS = "kvtools.json"
_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_OWN_FIELDS = ("kind", "config", "history", "crc32", "system", "layout", "architecture", "unused", "huggingface", "parameters")
_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"
# part of the published layout, and read by no model; vLLM refuses a directory without it
_PACKING, _PACKING_ROWS = "visual.vision_model.embeddings.packing_position_embedding.weight", 32_768


@dataclass(frozen=True)
class Weights:
    """A model's tensors, unread, and all else that its artifact holds."""

    name: str  # of the artifact, for messages
    format: CheckpointFormat
    tensors: dict[str, np.ndarray]  # those that the model uses
    unused: dict[str, np.ndarray] = field(default_factory=dict)  # those that are kept beside them
    files: dict[str, bytes] = field(default_factory=dict)  # small ones, such as the tokenizer's
    huggingface: dict[str, Any] = field(default_factory=dict)  # the config.json they came with
    fields: dict[str, Any] = field(default_factory=dict)  # stage, step and such, of the artifact's JSON
    recipe: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    ignored_files: list[str] = field(default_factory=list)  # of the directory


def open_weights(src: str) -> Weights:
    """The weights of a `model` bag of Keye's or of a Hugging Face directory, format and tensors checked against each other.

    Nothing is allocated by a size that a header or a config claims before the files are known to hold as much. Raises Missing
    where there is nothing, Corrupt for damage, for another kind or system, and for tensors that are not the format's.
    """
    return _of_directory(src) if src != "-" and Path(src).is_dir() else _of_bag(src)


def write(
    weights: Weights, dst: Sink | Path, *, history: list[dict[str, Any]], shard_bytes: int = SHARD_BYTES,
    writers: Writers | None = None,
) -> None:  # fmt: skip
    """Write weights as a bag, or as the files of a directory into that folder (artifact.directory.new_directory).

    writers: ranks that fill the directory together, which have some of the weights in parts.
    """
    tensors = {**weights.tensors, **weights.unused}
    if isinstance(dst, Sink):
        files = {name: np.frombuffer(data, np.uint8) for name, data in weights.files.items()}
        fields = {
            **weights.fields,
            "system": SYSTEM,
            "layout": weights.format.layout,
            "architecture": weights.format.to_json(),
            "parameters": sum(array.size for array in weights.tensors.values()),
            "unused": sorted(weights.unused),
            "huggingface": weights.huggingface,
        }
        write_bag(dst, "model", {**tensors, **files}, config=weights.recipe, history=history, **fields)
        return
    widest = min({NAMES[array.dtype] for array in weights.tensors.values()}, key=list(_FLOATS).index)
    dtype = str(_FLOATS[widest]).removeprefix("torch.")
    ours = {"history": history, "told": weights.fields, "config": weights.recipe}
    small = companion_files(weights.format, weights.files, weights.fields.get("limits"))
    small[_OURS] = json.dumps(ours, sort_keys=True, ensure_ascii=False).encode("utf-8")
    config = huggingface_config(weights.format, weights.huggingface, dtype) | config_fields(weights.format, weights.files)
    if weights.format.config is not None and _PACKING not in tensors:
        bias = weights.tensors["visual.vision_model.post_layernorm.bias"]
        tensors[_PACKING] = np.zeros((_PACKING_ROWS, *bias.shape), bias.dtype)
    fill_directory(dst, tensors, config=config, files=small, shard_bytes=shard_bytes, writers=writers)


def save(
    dst: Sink | Path,
    model: Keye | Siglip,
    *,
    tokenizer_json: bytes | None,
    fields: Mapping[str, Any],
    history: list[dict[str, Any]],
    source: Weights | None = None,
    files: Mapping[str, bytes] | None = None,
    writers: ModelWriters | None = None,
) -> None:
    """Write a model: a bag, or the files of a directory into a folder.

    fields: stage, step and such for the artifact's JSON; `recipe` among them becomes the artifact's. source: the weights that
    the model was built from; where the layout is the same, their unused tensors, small files and config.json are kept. files:
    further small ones, such as a chat template. writers: ranks that have the model in parts and fill a directory together.
    """
    checkpoint = CheckpointFormat.of_model(model)
    if source is None or source.format.layout != checkpoint.layout:
        source = Weights("", checkpoint, {})
    tokenizer = {} if tokenizer_json is None else {TOKENIZER: tokenizer_json}
    rest = dict(fields)
    recipe = rest.pop("recipe", {})
    tensors = writers.like() if writers is not None else {name: to_numpy(x) for name, x in model.state_dict().items()}
    small = {**source.files, **(files or {}), **tokenizer}
    weights = Weights("", checkpoint, tensors, source.unused, small, source.huggingface, rest, recipe)
    write(weights, dst, history=history, writers=writers)


def load(src: str, *, dtype: torch.dtype | None = None) -> tuple[Keye | Siglip, Weights]:
    """The model of a bag or a directory, and its weights. Raises as `open_weights` and `build`."""
    weights = open_weights(src)
    return build(weights, dtype=dtype), weights


def build(weights: Weights, *, dtype: torch.dtype | None = None) -> Keye | Siglip:
    """The model in eval mode, its weights in the dtype they are stored in, or in another.

    Raises Corrupt for a decoder or a tower alone: `copy_shared_weights` takes those.
    """
    if weights.format.layout not in ("keye", "siglip"):
        raise Corrupt(
            f"{weights.name}: this is a {weights.format.layout} alone, and a whole model is needed. Start one from it with "
            "kvtools pretrain keye --init."
        )
    with meta_init():
        model = cast("Keye | Siglip", weights.format.build())
    model.load_state_dict({name: to_torch(array, dtype) for name, array in weights.tensors.items()}, assign=True)
    return model.eval()


def copy_shared_weights(model: Keye | Siglip, weights: Weights) -> list[str]:
    """Copy into a model the tensors it shares with a checkpoint of any layout; returns their names.

    A Keye takes its decoder from a Qwen3, its tower from a SigLIP, everything from a Keye. Raises ValueError where shapes or
    numbers of layers differ, or nothing is shared.
    """
    own = model.state_dict()
    given = {_name_in(model, weights.format.layout, name): array for name, array in weights.tensors.items()}
    if isinstance(model, Keye):
        if _HEAD in own and _TABLE in given:
            given.setdefault(_HEAD, given[_TABLE])
        elif _HEAD in given and _HEAD not in own:
            raise ValueError(f"{_HEAD} is stored, and the model's output matrix is its embedding table")
    shared = [name for name in given if name in own]
    if not shared:
        raise ValueError("none of its tensors is one of this model's")
    stored, needed = layer_numbers(given), layer_numbers(own)
    for stack in stored.keys() & needed.keys():
        if stored[stack] != needed[stack]:
            raise ValueError(f"{stack} has {len(stored[stack])} layers, and {len(needed[stack])} are needed")
    for name in shared:
        if given[name].shape != own[name].shape:
            raise ValueError(f"{name} is {list(given[name].shape)}, and {list(own[name].shape)} is needed")
    with torch.no_grad():
        for name in shared:
            own[name].copy_(to_torch(given[name]))
    return shared


def _of_bag(src: str) -> Weights:
    bag, name = open_bag(src, "model", made_by="kvtools pretrain keye or kvtools convert"), source_name(src)
    fields = bag.fields
    if fields.get("system") != SYSTEM:
        system = fields.get("system") or "another system"
        raise Corrupt(
            f"{name}: this is a model of {system}, and a model of keye is needed. Make one with kvtools pretrain keye, or from "
            "a Hugging Face directory with kvtools convert."
        )
    files = {tensor: array.tobytes() for tensor, array in bag.tensors.items() if array.dtype == np.uint8 and array.ndim == 1}
    tensors = {tensor: array for tensor, array in bag.tensors.items() if tensor not in files}
    with raising(Corrupt, name, _BAD_CONFIG):
        checkpoint = CheckpointFormat.from_json(str(fields.get("layout")), _object(fields, "architecture"))
    with raising(Corrupt, name, _UNFIT):
        kept = fields.get("unused")
        used, unused = _accounted(checkpoint, tensors, kept if isinstance(kept, list) else [])
    return Weights(
        name,
        checkpoint,
        used,
        unused,
        files=files,
        huggingface=_object(fields, "huggingface"),
        fields={field: value for field, value in fields.items() if field not in _OWN_FIELDS},
        recipe=_object(fields, "config"),
        history=bag.history,
    )


def _of_directory(src: str) -> Weights:
    directory = read_directory(src)
    files = dict(directory.files)
    with raising(Corrupt, f"{src}/{_OURS}", "Repair the file, or remove it."):
        ours = json.loads(files.pop(_OURS, b"{}"))
    with raising(Corrupt, src, _BAD_CONFIG):
        checkpoint = format_of_config(directory.config)
    with raising(Corrupt, src, _UNFIT):
        named = {canonical_name(checkpoint.layout, name): array for name, array in directory.tensors.items()}
        used, unused = _accounted(checkpoint, named, None)
    if _PACKING in unused and not _bits(unused[_PACKING]).any():
        del unused[_PACKING]  # written by `write` for other programs
    ours = ours if isinstance(ours, dict) else {}
    return Weights(
        src,
        checkpoint,
        used,
        unused,
        files=files,
        huggingface=directory.config,
        fields=ours.get("told") or {},
        recipe=ours.get("config") or {},
        history=ours.get("history") or [],
        ignored_files=[name for name in directory.passed_over if not is_ours(Path(src) / name)],
    )


def _object(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _name_in(model: Keye | Siglip, layout: str, name: str) -> str:
    """What a model calls a tensor of a checkpoint of that layout: the tower's names begin with `visual.` in a Keye alone."""
    if isinstance(model, Keye):
        return f"visual.{name}" if layout.startswith("siglip") else name
    return name.removeprefix("visual.") if layout == "keye" else name


def _accounted(
    checkpoint: CheckpointFormat, tensors: Mapping[str, np.ndarray], unused: list[str] | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The tensors that the model uses, and those kept beside them. Raises ValueError for unknown, missing and misshapen ones.

    unused: names that may be kept beside; None: those of the published layouts.
    """
    stored = dict(tensors)
    if checkpoint.language is not None and checkpoint.language.tied and _HEAD in stored and _TABLE in stored:
        head, table = stored.pop(_HEAD), stored[_TABLE]
        if head.shape != table.shape or head.dtype != table.dtype or not np.array_equal(_bits(head), _bits(table)):
            raise ValueError(f"{_HEAD} differs from {_TABLE}, and the config ties them")
    needed = checkpoint.expected_tensors(stored)
    rest = [name for name in stored if name not in needed]
    unknown = [name for name in rest if not (is_unused(name) if unused is None else name in unused)]
    missing = [name for name in needed if name not in stored]
    faults = [(f"it holds tensors that no {checkpoint.layout} has", unknown), ("it lacks tensors", missing)]
    if unknown or missing:
        raise ValueError("; ".join(f"{fault}: {_listed(names)}" for fault, names in faults if names))
    for name, shape in needed.items():
        if stored[name].shape != shape:
            raise ValueError(f"{name} is {list(stored[name].shape)}, and the config needs {list(shape)}")
        if NAMES[stored[name].dtype] not in _FLOATS:
            raise ValueError(f"{name} is {NAMES[stored[name].dtype]}, and one of {', '.join(_FLOATS)} is needed")
    return {name: stored[name] for name in needed}, {name: stored[name] for name in rest}


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}")


def _listed(names: list[str]) -> str:
    first = ", ".join(sorted(names)[:4])
    return first + (f" and {len(names) - 4} more" if len(names) > 4 else "")
