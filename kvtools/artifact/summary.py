"""Artifacts and records as JSON, for `kvtools info` and `kvtools cat --json`."""

import json
from collections.abc import Iterator
from typing import Any

from kvtools.artifact.blob import NAMES, Tensors
from kvtools.artifact.files import open_source
from kvtools.artifact.history import Step
from kvtools.artifact.open import is_stream, open_artifact, source_name
from kvtools.artifact.stream import Head, Reader, Record
from kvtools.artifact.stream_index import Index


def summarize(src: str) -> dict[str, Any]:
    """{"form", "kind", "records", "bytes", "history", "config"} of an artifact; of a bag also tensors and its own fields."""
    file = open_source(src)
    if file.seekable() and is_stream(file):
        index = Index(file, source_name(src))
        file.seek(0, 2)
        return _stream(index.heads, len(index), file.tell())
    artifact = open_artifact(src, file)
    if isinstance(artifact, Reader):
        n_records = sum(1 for _ in artifact)
        return _stream(artifact.heads, n_records, artifact.n_bytes)
    return {
        **{name: value for name, value in artifact.fields.items() if name != "crc32"},
        "form": "bag",
        "kind": artifact.kind,
        "records": 1,
        "bytes": artifact.n_bytes,
        "history": artifact.history,
        "tensors": _shapes(artifact.tensors),
    }


def record_lines(src: str) -> Iterator[dict[str, Any]]:
    """`record_json` of each record of an artifact; a bag is one record."""
    artifact = open_artifact(src)
    if isinstance(artifact, Reader):
        yield from map(record_json, artifact)
    else:
        fields = {name: value for name, value in artifact.fields.items() if name not in ("crc32", "history")}
        yield {**fields, "record": 0, "key": src, "kind": artifact.kind, "tensors": _shapes(artifact.tensors)}


def record_json(record: Record) -> dict[str, Any]:
    """{"record", "key", "kind", "tensors": {name: [dtype, [shape]]}, … the record's own fields}, and under "json" the document
    that a tensor of this name holds."""
    line = {**record.fields, "record": record.number, "key": record.key, "tensors": _shapes(record.tensors)}
    if "json" in record.tensors:
        line["json"] = json.loads(record.tensors["json"].tobytes())
    return line


def _stream(heads: list[Head], n_records: int, n_bytes: int) -> dict[str, Any]:
    steps: list[Step] = []
    for head in heads:
        steps += [step for step in head.history if step not in steps]
    return {
        "form": "stream",
        "kind": heads[0].kind,
        "records": n_records,
        "bytes": n_bytes,
        "history": steps,
        "config": heads[0].config,
    }


def _shapes(tensors: Tensors) -> dict[str, list[Any]]:
    return {name: [NAMES[a.dtype], list(a.shape)] for name, a in sorted(tensors.items())}
