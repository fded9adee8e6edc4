"""What `kvtools info` prints: an artifact in one line, or a line for each of its records."""

from collections.abc import Iterator
from typing import Any

from kvtools.artifact import Bag, Reader, is_stream, open_artifact
from kvtools.artifact.blob import NAMES
from kvtools.artifact.files import open_source
from kvtools.artifact.history import Step
from kvtools.artifact.stream import Head
from kvtools.artifact.stream_index import Index
from kvtools.artifact.text import as_text


def summarize(src: str) -> dict[str, Any]:
    """{"form", "kind", "records", "bytes", "history", "config"}; of a bag also its tensors and its own fields."""
    file = open_source(src)
    if file.seekable() and is_stream(file):
        index = Index(file, src)
        file.seek(0, 2)
        return _stream(index.heads, len(index), file.tell())
    file.close()
    artifact = open_artifact(src)
    if isinstance(artifact, Reader):
        n_records = sum(1 for _ in artifact)
        return _stream(artifact.heads, n_records, artifact.n_bytes)
    fields = {name: value for name, value in artifact.fields.items() if name != "crc32"}
    return {
        **fields,
        "form": "bag",
        "kind": artifact.kind,
        "records": 1,
        "bytes": artifact.n_bytes,
        "history": artifact.history,
        "tensors": _shapes(artifact),
    }


def lines_of(src: str) -> Iterator[dict[str, Any]]:
    """A line a record; a bag is one record."""
    artifact = open_artifact(src)
    if isinstance(artifact, Reader):
        yield from map(as_text, artifact)
    else:
        fields = {name: value for name, value in artifact.fields.items() if name not in ("crc32", "history")}
        yield {**fields, "record": 0, "key": src, "kind": artifact.kind, "tensors": _shapes(artifact)}


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


def _shapes(bag: Bag) -> dict[str, list[Any]]:
    return {name: [NAMES[a.dtype], list(a.shape)] for name, a in sorted(bag.tensors.items())}
