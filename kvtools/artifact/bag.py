"""A bag, `.safetensors`: named tensors at rest, readable by every safetensors tool.

One blob (blob.py) whose `kvtools` key holds {kind, config, history, crc32 per tensor}. Reading maps the file where it
can, so opening a large bag costs its header. Not here: models too large for one file, which are directories.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from zlib_ng.zlib_ng import crc32

from kvtools.artifact import blob
from kvtools.artifact.files import Sink
from kvtools.errors import Corrupt


@dataclass(frozen=True)
class Bag:
    """Named tensors, and the JSON of the file's `kvtools` key: fields are empty where kvtools did not write it."""

    tensors: dict[str, np.ndarray]
    fields: dict[str, Any] = field(default_factory=dict)
    n_bytes: int = 0

    @property
    def kind(self) -> str | None:
        """What the bag holds (kinds.py); None where kvtools did not write it."""
        kind = self.fields.get("kind")
        return kind if isinstance(kind, str) else None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The steps that led to it (history.py)."""
        return list(self.fields.get("history", []))


def write_bag(
    sink: Sink, kind: str, tensors: blob.Tensors, *, config: Mapping[str, Any], history: list[dict[str, Any]], **fields: Any
) -> None:
    """Write a bag and commit the sink, or abandon it where that fails. Raises ValueError for fields that are not JSON.

    Each tensor is asked for twice, and none is kept: a mapping may make them when they are asked for.
    """
    try:
        specs, crcs = {}, {}
        for name, array in tensors.items():
            specs[name] = array.dtype, array.shape
            crcs[name] = crc32(blob.bytes_of(np.ascontiguousarray(array)))
        fields |= {"kind": kind, "config": dict(config), "history": history, "crc32": crcs}
        head, order = blob.header(specs, fields)
        sink.write([head])
        for name in order:
            sink.write([blob.bytes_of(np.ascontiguousarray(tensors[name]))])
    except BaseException:
        sink.abandon()
        raise
    sink.commit()


def read_bag(file: BinaryIO, name: str) -> Bag:
    """A bag, its tensors mapped from a file or read from a pipe. Raises Corrupt for damage, or a crc32 that differs.

    Files that kvtools did not write have no crc32; their tensors are not checked.
    """
    try:
        memory: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        memory = file.read()  # a pipe: what arrives is allocated, whatever the header says
    try:
        tensors, fields = blob.decode(memory)
        if fields:
            _verify(tensors, fields)
    except ValueError as fault:
        raise Corrupt(f"{name}: {fault}. Make or fetch it again.") from None
    return Bag(tensors, fields, len(memory))


def fields_of(src: str) -> dict[str, Any]:
    """The JSON of a bag's header, its tensors neither read nor checked; empty for `-`, and for all that is no such file."""
    try:
        with open(src, "rb") as file:
            return blob.decode(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[1]
    except (OSError, ValueError):
        return {}


def _verify(tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> None:
    crcs = fields.get("crc32")
    if not isinstance(crcs, dict) or set(crcs) != set(tensors):
        raise ValueError("its header does not have the crc32 of every tensor")
    for name, array in tensors.items():
        if crc32(blob.bytes_of(array)) != crcs[name]:
            raise ValueError(f"the content of tensor {name} differs from its crc32")
