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
    """Tensors by name, and what the file says of them. `fields` is empty in a file not written by kvtools."""

    tensors: dict[str, np.ndarray]
    fields: dict[str, Any] = field(default_factory=dict)
    n_bytes: int = 0

    @property
    def kind(self) -> str | None:
        kind = self.fields.get("kind")
        return kind if isinstance(kind, str) else None

    @property
    def history(self) -> list[dict[str, Any]]:
        return list(self.fields.get("history", []))


def write_bag(
    sink: Sink, kind: str, tensors: blob.Tensors, *, config: Mapping[str, Any], history: list[dict[str, Any]], **fields: Any
) -> None:
    """Write a bag and commit the sink; the sink is abandoned where that fails."""
    try:
        crcs = {name: crc32(blob.bytes_of(np.ascontiguousarray(array))) for name, array in tensors.items()}
        words = {**fields, "kind": kind, "config": dict(config), "history": history, "crc32": crcs}
        sink.write(blob.encode(tensors, words))
    except BaseException:
        sink.abandon()
        raise
    sink.commit()


def read_bag(file: BinaryIO, name: str, *, verify: bool = True) -> Bag:
    """A bag from a file, mapped, or from a pipe, read whole. Raises Corrupt for damage or a crc32 that differs.

    verify=False leaves the tensors' bytes unread; foreign files carry no crc32 and are taken at their word.
    """
    try:
        memory: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        memory = file.read()  # a pipe; its length is what arrived, not what a header claims
    try:
        tensors, fields = blob.decode(memory)
        if verify and fields:
            _verify(tensors, fields)
    except ValueError as fault:
        raise Corrupt(f"{name}: {fault}") from None
    return Bag(tensors, fields, len(memory))


def _verify(tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> None:
    crcs = fields.get("crc32")
    if not isinstance(crcs, dict) or set(crcs) != set(tensors):
        raise ValueError("crc32 of every tensor expected in the header")
    for name, array in tensors.items():
        if crc32(blob.bytes_of(array)) != crcs[name]:
            raise ValueError(f"{name}: content differs from its crc32")
