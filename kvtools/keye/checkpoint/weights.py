"""Models at rest: `model` bags and Hugging Face directories to weights and back, every tensor accounted for.

A bag holds weights under the names of the published checkpoint they match (layouts.py), small files as uint8 tensors under
their own names (`tokenizer.json` among them), and in its JSON {system: "keye", layout, architecture, unused: names of tensors
that are carried through and that the model does not use, huggingface: the config.json they came with}. A directory has all that
in the places where transformers looks for it, and what is ours alone in `kvtools.json`.

Tensors stay mapped until they are used: converting holds none of them, a model is made one tensor at a time.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from kvtools.artifact import Bag, open_artifact
from kvtools.artifact.bag import write_bag
from kvtools.artifact.blob import NAMES
from kvtools.artifact.directory import SHARD_BYTES, fill_directory, read_directory
from kvtools.artifact.files import Sink
from kvtools.errors import Corrupt
from kvtools.keye.checkpoint.formats import Shapes, canonical, is_unused, stacks
from kvtools.keye.checkpoint.huggingface import companions, config_of, shapes_of_config
from kvtools.keye.data.tokenizer import FILE as TOKENIZER
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import Siglip
from kvtools.train.meta_init import meta_init

SYSTEM = "keye"
_OURS = "kvtools.json"
_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_OWN_FIELDS = ("kind", "config", "history", "crc32", "system", "layout", "architecture", "unused", "huggingface", "parameters")


@dataclass(frozen=True)
class Weights:
    """A model's tensors, unread. `tensors` are those it uses; `unused` travel with them; `told` is what was said beside."""

    name: str
    shapes: Shapes
    tensors: dict[str, np.ndarray]
    unused: dict[str, np.ndarray] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    huggingface: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)  # files of the directory that are left behind


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, and all else that its artifact holds. `weights` still has what the model does not use."""

    model: Keye | Siglip
    tokenizer_json: bytes | None
    fields: dict[str, Any]
    history: list[dict[str, Any]]
    weights: Weights


def open_weights(src: str) -> Weights:
    """What a `model` bag of Keye's, or a Hugging Face directory, holds. Raises Corrupt for anything that does not fit.

    Nothing is made of a size that a header or a config tells before the files have been found to hold as much.
    """
    if src != "-" and Path(src).is_dir():
        return _of_directory(src)
    artifact = open_artifact(src)
    if not isinstance(artifact, Bag):
        raise Corrupt(f"{src}: {artifact.head.kind} records found, a model expected.")
    return of_bag(artifact, "stdin" if src == "-" else src)


def of_bag(bag: Bag, name: str) -> Weights:
    """The weights of a bag that is open. Raises Corrupt for other kinds, systems, and weights that do not fit their shapes."""
    fields = bag.fields
    if fields.get("kind") != "model" or fields.get("system") != SYSTEM:
        found = fields.get("system") or bag.kind or "a foreign bag"
        raise Corrupt(f"{name}: {found} found, a model of keye expected. Train one, or convert one: kvtools convert DIRECTORY.")
    try:
        shapes = Shapes.of(str(fields.get("layout")), fields.get("architecture") or {})
        files = {
            tensor: array.tobytes() for tensor, array in bag.tensors.items() if array.dtype == np.uint8 and array.ndim == 1
        }
        rest = {tensor: array for tensor, array in bag.tensors.items() if tensor not in files}
        used, unused = _accounted(shapes, rest, fields.get("unused") or [])
    except (ValueError, TypeError) as fault:
        raise Corrupt(f"{name}: {fault}.") from None
    told = {word: value for word, value in fields.items() if word not in _OWN_FIELDS}
    huggingface = fields.get("huggingface") if isinstance(fields.get("huggingface"), dict) else {}
    recipe = fields.get("config") if isinstance(fields.get("config"), dict) else {}
    return Weights(name, shapes, used, unused, files, huggingface or {}, told, recipe or {}, bag.history)


def write(weights: Weights, dst: Sink | Path, *, history: list[dict[str, Any]], shard_bytes: int = SHARD_BYTES) -> None:
    """The weights as a bag, or as a directory's files into that folder (artifact.directory.new_directory)."""
    if isinstance(dst, Sink):
        files = {name: np.frombuffer(data, np.uint8) for name, data in weights.files.items()}
        words = {
            **weights.told,
            "system": SYSTEM,
            "layout": weights.shapes.layout,
            "architecture": weights.shapes.to_json(),
            "parameters": sum(array.size for array in weights.tensors.values()),
            "unused": sorted(weights.unused),
            "huggingface": weights.huggingface,
        }
        write_bag(dst, "model", {**weights.tensors, **weights.unused, **files}, config=weights.recipe, history=history, **words)
        return
    dtypes = {NAMES[array.dtype] for array in weights.tensors.values()}
    dtype = str(_FLOATS[min(dtypes, key=list(_FLOATS).index)]).removeprefix("torch.")
    ours = {"history": history, "told": weights.told, "config": weights.recipe}
    made = companions(weights.shapes, has_tokenizer=TOKENIZER in weights.files) | {_OURS: ours}
    fill_directory(
        dst,
        {**weights.tensors, **weights.unused},
        config=config_of(weights.shapes, weights.huggingface, dtype),
        files={name: json.dumps(x, sort_keys=True, ensure_ascii=False).encode("utf-8") for name, x in made.items()}
        | dict(weights.files),
        shard_bytes=shard_bytes,
    )


def save(
    dst: Sink | Path,
    model: Keye | Siglip,
    *,
    tokenizer_json: bytes | None,
    told: Mapping[str, Any],
    history: list[dict[str, Any]],
    like: Weights | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model: a bag, or a directory's files into a folder. files: further small ones, such as a chat template.

    told: stage, step and what else is to be said; `recipe` among it becomes the artifact's. like: what the model was made from,
    whose unused tensors, small files and config go with it, where the layout is the same.
    """
    if isinstance(model, Keye):
        shapes = Shapes("keye", model.config.vision, model.config.language, None, model.config)
    else:
        shapes = Shapes("siglip", vision=model.vision_model.config, text=model.text_model.config)
    is_alike = like is not None and like.shapes.layout == shapes.layout
    kept = dict(like.files) if like is not None and is_alike else {}
    words = dict(told)
    recipe = words.pop("recipe", {})
    made = Weights(
        "",
        shapes,
        {name: to_numpy(x) for name, x in model.state_dict().items()},
        like.unused if like is not None and is_alike else {},
        kept | dict(files or {}) | ({TOKENIZER: tokenizer_json} if tokenizer_json is not None else {}),
        like.huggingface if like is not None and is_alike else {},
        words,
        recipe,
    )
    write(made, dst, history=history)


def load(src: str, *, dtype: torch.dtype | None = None) -> Loaded:
    """The model of a bag or a directory, its weights in the precision they are stored in, or in another.

    Raises Corrupt for what is not whole: a decoder or a tower alone is a part, for `fill`.
    """
    return made_of(open_weights(src), dtype=dtype)


def made_of(weights: Weights, *, dtype: torch.dtype | None = None) -> Loaded:
    """The model of weights that are open; see `load`."""
    if weights.shapes.layout not in ("keye", "siglip"):
        raise Corrupt(
            f"{weights.name}: a {weights.shapes.layout} alone found, a whole model expected. It can begin one: "
            "kvtools pretrain keye --init."
        )
    with meta_init():
        model = cast("Keye | Siglip", weights.shapes.model())
    state = {name: to_torch(array, dtype) for name, array in weights.tensors.items()}
    model.load_state_dict(state, assign=True)
    model.eval()
    fields = {**weights.told, "system": SYSTEM, "layout": weights.shapes.layout, "config": weights.recipe}
    fields["architecture"] = weights.shapes.to_json()
    return Loaded(model, weights.files.get(TOKENIZER), fields, weights.history, weights)


def fill(model: Keye | Siglip, weights: Weights) -> list[str]:
    """Copy into a model what it shares with a checkpoint of any layout: a Keye takes its decoder from a Qwen3, its tower from a
    SigLIP, everything from a Keye. Returns the names filled. Raises ValueError where shapes differ or nothing is shared."""
    mine = model.state_dict()
    rename: Callable[[str], str] = lambda name: name
    if isinstance(model, Keye) and weights.shapes.layout.startswith("siglip"):
        rename = lambda name: f"visual.{name}"
    elif isinstance(model, Siglip) and weights.shapes.layout == "keye":
        rename = lambda name: name.removeprefix("visual.")
    given = {rename(name): array for name, array in weights.tensors.items()}
    if "lm_head.weight" in mine and "lm_head.weight" not in given and "model.embed_tokens.weight" in given:
        given["lm_head.weight"] = given["model.embed_tokens.weight"]
    if "lm_head.weight" in given and "lm_head.weight" not in mine and isinstance(model, Keye):
        raise ValueError("lm_head.weight: found, though the model's output is its table of embeddings")
    shared = [name for name in given if name in mine]
    if not shared:
        raise ValueError(f"{weights.name}: nothing found that this model has")
    found, expected = stacks(given), stacks(mine)
    for stack in found.keys() & expected.keys():
        if found[stack] != expected[stack]:
            raise ValueError(f"{stack}: {len(found[stack])} layers found, {len(expected[stack])} expected")
    for name in shared:
        if tuple(given[name].shape) != tuple(mine[name].shape):
            raise ValueError(f"{name}: {list(given[name].shape)} found, {list(mine[name].shape)} expected")
    with torch.no_grad():
        for name in shared:
            mine[name].copy_(to_torch(given[name], None))
    return shared


def to_torch(array: np.ndarray, dtype: torch.dtype | None) -> Tensor:
    """A tensor of its own, which may be written to: mapped files may not."""
    if array.dtype == ml_dtypes.bfloat16:
        made = torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    else:
        made = torch.from_numpy(np.array(array))
    return made if dtype is None else made.to(dtype)


def to_numpy(x: Tensor) -> np.ndarray:
    """An array on the tensor's own memory, where that is the machine's."""
    held = x.detach().cpu().contiguous()
    if held.dtype == torch.bfloat16:
        return held.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return held.numpy()


def _of_directory(src: str) -> Weights:
    found = read_directory(src)
    files = dict(found.files)
    try:
        ours = json.loads(files.pop(_OURS, b"{}"))
        shapes = shapes_of_config(found.config)
        names = canonical(shapes.layout, found.tensors)
        used, unused = _accounted(shapes, {names[name]: array for name, array in found.tensors.items()}, None)
    except ValueError as fault:
        raise Corrupt(f"{src}: {fault}.") from None
    ours = ours if isinstance(ours, dict) else {}
    told, recipe, history = ours.get("told") or {}, ours.get("config") or {}, ours.get("history") or []
    return Weights(src, shapes, used, unused, files, found.config, told, recipe, history, found.passed_over)


def _accounted(
    shapes: Shapes, tensors: Mapping[str, np.ndarray], unused: list[str] | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the model uses, and what is carried along. Raises ValueError naming what is unknown, missing or of another shape.

    unused: names that may be carried along; None: those of the published layouts.
    """
    found = dict(tensors)
    is_tied = shapes.language is not None and shapes.language.tied
    if is_tied and "lm_head.weight" in found and "model.embed_tokens.weight" in found:
        head, table = found.pop("lm_head.weight"), found["model.embed_tokens.weight"]
        if head.shape != table.shape or head.dtype != table.dtype or not np.array_equal(_bits(head), _bits(table)):
            raise ValueError("lm_head.weight: differs from model.embed_tokens.weight, though the config ties them")
    wanted = shapes.expected(found)
    rest = [name for name in found if name not in wanted]
    unknown = [name for name in rest if not (is_unused(name) if unused is None else name in unused)]
    missing = [name for name in wanted if name not in found]
    faults = [f"{_listed(names)} {word}" for names, word in ((unknown, "unknown"), (missing, "missing")) if names]
    if faults:
        raise ValueError("; ".join(faults))
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise ValueError(f"{name}: {list(found[name].shape)} found, {list(shape)} of the config expected")
        if NAMES[found[name].dtype] not in _FLOATS:
            raise ValueError(f"{name}: {NAMES[found[name].dtype]} found, one of {', '.join(_FLOATS)} expected")
    return {name: found[name] for name in wanted}, {name: found[name] for name in rest}


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def _listed(names: list[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
