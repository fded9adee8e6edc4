"""One safetensors blob: named tensors and a single metadata key, `kvtools`, holding canonical JSON.

Encoding copies no tensor: it yields a short header and the arrays' own memory. Decoding returns views. The bytes equal
those of the safetensors library (tensors by dtype, widest first, then name; header padded with spaces to 8), so any
safetensors reader opens them; one metadata key only, since with two the library's order depends on a hash seed.

Not here: compression, framing, files. Layout after the safetensors README, "Format" (github.com/huggingface/safetensors).
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kvtools.artifact.casts import BFLOAT16

Tensors = Mapping[str, np.ndarray]

MAX_HEADER_BYTES = 100_000_000  # the safetensors library refuses more
# in the order of the safetensors library, which stores tensors from the last of these to the first
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8; equal values give equal bytes. NaN and infinity raise ValueError."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def header(
    specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    fields: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
) -> tuple[bytes, list[str]]:
    """Header bytes (length prefix included) and the tensor names in stored order.

    specs: name → (dtype, shape). fields: the JSON of the `kvtools` key. metadata: other keys in its place, where the
    file is no bag. Raises ValueError for a dtype without a name.
    """
    for name, (dtype, _) in specs.items():
        if dtype not in NAMES:
            raise ValueError(f"{name} is {dtype}, and safetensors has only {', '.join(DTYPES)}")
    order = sorted(specs, key=lambda name: (-_RANK[specs[name][0]], name))
    metadata = {"kvtools": canonical(fields).decode("utf-8")} if metadata is None else metadata
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name in order:
        dtype, shape = specs[name]
        end = begin + dtype.itemsize * math.prod(shape)
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def encode(tensors: Tensors, fields: Mapping[str, Any]) -> list[memoryview]:
    """The blob as consecutive pieces: the header, then the memory of each tensor; contiguous arrays are not copied."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    head, order = header({name: (a.dtype, a.shape) for name, a in arrays.items()}, fields)
    return [memoryview(head), *(bytes_of(arrays[name]) for name in order if arrays[name].size)]


def decode(memory: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors, as views of `memory`, and the JSON of the `kvtools` key, empty where there is none.

    Raises ValueError for all that the safetensors library refuses: a header that is not JSON or is longer than the blob,
    unknown dtypes, sizes that disagree with shapes, gaps, overlaps, and bytes after the last tensor. Allocates nothing
    by the numbers in the header.
    """
    view = memoryview(memory).cast("B")
    entries, base = _parse_header(view)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("__metadata__ in its header is not a JSON object")
    tensors = {}
    expected = 0
    for name, entry in sorted(entries.items(), key=lambda item: _offsets(*item)):
        begin, end = _offsets(name, entry)
        dtype, shape = DTYPES.get(entry.get("dtype")), entry.get("shape")
        if dtype is None:
            raise ValueError(f"tensor {name} has the unknown dtype {entry.get('dtype')!r}")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"tensor {name} has shape {shape!r}, which is not a list of counts")
        if begin != expected or end - begin != dtype.itemsize * math.prod(shape) or base + end > len(view):
            raise ValueError(
                f"tensor {name}: bytes {begin} to {end} do not fit shape {shape} or the {len(view)} bytes there are"
            )
        tensors[name] = np.frombuffer(view[base + begin : base + end], dtype=dtype).reshape(shape)
        expected = end
    if base + expected != len(view):
        raise ValueError(f"{len(view) - base - expected} bytes follow the last tensor")
    return tensors, _fields(metadata)


def head_of(pieces: Iterable[memoryview]) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """The shape of each tensor and the JSON of the `kvtools` key of an encoded blob, of which only the header is read."""
    begin = b""
    for piece in pieces:
        begin += piece
        if len(begin) >= 8 + int.from_bytes(begin[:8], "little"):
            break
    entries, _ = _parse_header(memoryview(begin))
    metadata = entries.pop("__metadata__", {})
    return {name: entry["shape"] for name, entry in entries.items()}, _fields(metadata)


def bytes_of(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array of any shape, byte by byte."""
    return array.reshape(-1).view(np.uint8).data


def _parse_header(view: memoryview) -> tuple[dict[str, Any], int]:
    if len(view) < 8:
        raise ValueError(f"it is cut short after {len(view)} bytes")
    n_bytes = int.from_bytes(view[:8], "little")
    if n_bytes > MAX_HEADER_BYTES or 8 + n_bytes > len(view):
        raise ValueError(f"its header of {n_bytes} bytes does not fit into its {len(view)} bytes")
    try:
        entries = json.loads(bytes(view[8 : 8 + n_bytes]), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its header is not JSON ({error})") from None
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    return entries, 8 + n_bytes


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"its header names {name} twice")
        entries[name] = value
    return entries


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise ValueError(f"tensor {name} has data_offsets {offsets!r}, which are not two offsets")
    return offsets[0], offsets[1]


def _fields(metadata: dict[str, Any]) -> dict[str, Any]:
    if "kvtools" not in metadata:
        return {}
    try:
        fields = json.loads(metadata["kvtools"])
    except (TypeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its metadata key kvtools is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError("its metadata key kvtools is not a JSON object")
    return fields
