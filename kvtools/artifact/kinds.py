"""What each kind of artifact holds: the only definition in code of the table in kvtools-stream(5), "Kinds".

A tensor is declared as "DTYPES SHAPE": dtypes separated by `|`, axes by commas, `-` for a scalar. An axis is a number, or
a letter that stands for one size throughout a record (legend: P patches, T frames, M visual tokens, N items, D width,
L levels, K codes, S tokens). `?` after a name: may be absent. A string column `x` is x.bytes and x.offsets, as in Arrow.

Not here: what the numbers mean to a model. Tensors that are not declared are refused, except in kinds whose names are those
of a public checkpoint (`is_open`: model weights).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvtools.artifact.blob import NAMES


@dataclass(frozen=True)
class Kind:
    """What records of a kind hold."""

    form: str  # "stream" or "bag"
    tensors: Mapping[str, str]  # name → declaration, as above
    fields: tuple[str, ...] = ()  # JSON fields every record must have
    products: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # axis → (tensor whose product it is, divisor)
    is_open: bool = False
    is_looked_up: bool = False  # by key, so that records of one key must be equal
    open_prefix: str | None = None  # tensors with that prefix are not checked


_STRINGS = {"keys.bytes": "U8 B", "keys.offsets": "I64 O"}

KINDS: dict[str, Kind] = {
    "video": Kind(
        "stream",
        {"pixels": "U8 P,3,14,14", "grid": "I32 3", "seconds": "F64 T", "tokens?": "BF16 M,D", "embedding?": "F32 D"},
        ("key", "fps", "duration", "source"),
        {"P": ("grid", 1)},
        is_looked_up=True,
    ),
    # basis: a part of the fit that the vectors come from, V terms and E dimensions
    "embedding": Kind(
        "stream",
        {
            "vectors": "F32 N,D",
            **_STRINGS,
            "basis.terms.bytes?": "U8 C",
            "basis.terms.offsets?": "I64 U",
            "basis.weights?": "F32 V",
            "basis.vectors?": "F32 V,E",
        },
        ("key",),
    ),
    "pair": Kind("stream", {"pairs": "I32 n,2", "scores": "F32 n", **_STRINGS}, ("key",)),
    # U is one more than there are users; author and tag are numbers into authors and tags
    "interaction": Kind(
        "stream",
        {
            "users.bytes": "U8 C",
            "users.offsets": "I64 U",
            "offsets": "I64 U",
            "items": "I32 n",
            **_STRINGS,
            "times?": "I64|F64 n",
            "ratings?": "F32 n",
            "parts?": "I8|U8 n",
            "playtime?": "F64 n",
            "duration?": "F64 n",
            "author?": "I32 n",
            "authors.bytes?": "U8 E",
            "authors.offsets?": "I64 A",
            "tag?": "I32 n",
            "tags.bytes?": "U8 F",
            "tags.offsets?": "I64 G",
        },
        ("key",),
    ),
    "conversation": Kind("stream", {"json": "U8 B"}, ("key",)),
    "sequence": Kind(
        "stream",
        {
            "tokens": "I32 S",
            "targets": "U8 S",
            "segments": "I32 G",
            "positions": "I32 3,S",
            "pixels?": "U8 P,3,14,14",
            "grid?": "I32 V,3",
            "seconds?": "F64 T",
        },
        ("key",),
    ),
    # S is L, or L + 1 where one more token differs between items with the same codes; `encoder.` holds what aligned the items
    "semantic-id": Kind("bag", {"codebooks": "F32 L,K,D", "codes": "U16|I32 N,S", **_STRINGS}, open_prefix="encoder."),
    "model": Kind("bag", {}, is_open=True),
    "recommendation": Kind("stream", {"items": "I32|I64 k", "scores": "F32 k", "codes": "U16|I32 k,L"}, ("key",)),
    "rollout": Kind(
        "stream", {"tokens": "I32 S", "logprobs": "F32 R", "reward": "F32 -", "advantage": "F32 -", "group": "I32 -"}, ("key",)
    ),
    # s is n, or the number of sites of the devices (`site`), each at the end of a last mile in ms; C is 0 without data
    "device": Kind(
        "bag",
        {
            "labels": "I32 n,C",
            "index": "I64 I",
            "offsets": "I64 O",
            "delay?": "F32 s,s",
            "coordinates?": "F32|F64 s,d",
            "site?": "I32 n",
            "last_mile?": "F32 n",
            "edges?": "I32 E,2",
            "edge_ms?": "F32 E",
        },
    ),
    # `order`: a node's rank in the succession of its parent; `accuracy`: what each device reached alone
    "tree": Kind(
        "bag",
        {
            "parent": "I32 N",
            "level": "I32 N",
            "device": "I32 N",
            "ratios": "I32 L",
            "order?": "I32 N",
            "public?": "I32 p",
            "accuracy?": "F32 n",
        },
    ),
}


def check(kind: str, form: str, tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> None:
    """Check one record, or one bag, against the table. Raises ValueError with the first difference."""
    declared = KINDS.get(kind)
    if declared is None:
        raise ValueError(f"kind {kind!r} is unknown; the kinds are {', '.join(KINDS)}")
    if form != declared.form:
        raise ValueError(f"this is a {form}, and kind {kind} is a {declared.form}")
    if fields.get("kind") != kind:
        raise ValueError(f"its kind is {fields.get('kind')!r}, and {kind!r} is needed")
    for name in declared.fields:
        if name not in fields:
            raise ValueError(f"it has no JSON field {name}, which kind {kind} has")
    sizes: dict[str, int] = {}
    names = {name.rstrip("?"): name for name in declared.tensors}
    for name, declaration in names.items():
        if name in tensors:
            _check_tensor(name, tensors[name], declared.tensors[declaration], sizes)
        elif declaration == name:
            raise ValueError(f"it has no tensor {name}, which kind {kind} has")
    foreign = sorted(name for name in set(tensors) - set(names) if not name.startswith(declared.open_prefix or "\0"))
    if foreign and not declared.is_open:
        raise ValueError(f"it has a tensor {foreign[0]}, which kind {kind} does not have")
    for axis, (name, divisor) in declared.products.items():
        expected = math.prod(int(n) for n in tensors[name]) // divisor
        if sizes[axis] != expected or int(tensors[name][0]) != sizes.get("T", expected):
            raise ValueError(
                f"{name} is {tensors[name].tolist()}, and there are {sizes[axis]} patches and {sizes.get('T')} frames"
            )
    _check_columns(tensors)


def _check_tensor(name: str, array: np.ndarray, declaration: str, sizes: dict[str, int]) -> None:
    dtypes, axes = declaration.split()
    shape = () if axes == "-" else tuple(axes.split(","))
    found = f"{NAMES[array.dtype]} {list(array.shape)}"
    if NAMES[array.dtype] not in dtypes.split("|") or array.ndim != len(shape):
        raise ValueError(f"{name} is {found}, and {dtypes} ({axes}) is needed")
    for axis, size in zip(shape, array.shape, strict=True):
        expected = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
        if size != expected:
            raise ValueError(f"{name} is {found}, and {expected} is needed for axis {axis} of ({axes})")


def _check_columns(tensors: Mapping[str, np.ndarray]) -> None:
    for name in [name.removesuffix(".offsets") for name in tensors if name.endswith(".offsets")]:
        offsets, data = tensors[f"{name}.offsets"], tensors.get(f"{name}.bytes")
        if data is None or len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
            raise ValueError(f"the offsets of string column {name} do not run from 0 to the end of its bytes")
