"""Documents and their results in batches, and as bytes for pipes and files: JSON, then what is large."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from kvtools.keye.mix.examine import Rejected
from kvtools.keye.mix.pool import Sample

BATCH = 64  # documents that one worker gets at once
_BYTES = ("said", "signature", "encoded")  # fields of a sample that travel as bytes

Document = tuple[str, str, str, Any]  # mode, source, where; and JSON as bytes, a value, or the ValueError in its place
Batch = Sequence[Document]
Result = Sample | Rejected


def packed(results: Sequence[Result]) -> bytes:
    """Results as bytes: a line of JSON, then the bytes of the samples."""
    rows, blobs = [], []
    for result in results:
        fields = vars(result).copy()
        if isinstance(result, Sample):
            parts = [fields.pop(name) for name in _BYTES]
            blobs += parts
            rows.append([*map(len, parts), fields])
        else:
            rows.append([fields])
    return b"\n".join([json.dumps(rows, default=str).encode(), b"".join(blobs)])


def unpacked(data: bytes | bytearray) -> list[Result]:
    """What `packed` packed."""
    head, _, rest = bytes(data).partition(b"\n")
    results: list[Result] = []
    at = 0
    for *lengths, fields in json.loads(head):
        if not lengths:
            results.append(Rejected(**fields))
            continue
        ends = [at + sum(lengths[: n + 1]) for n in range(len(lengths))]
        parts: dict[str, Any] = {name: rest[begin:end] for name, begin, end in zip(_BYTES, [at, *ends], ends, strict=False)}
        fields["repairs"] = tuple(fields["repairs"])
        fields["sizes"] = {int(frames): tuple(size) for frames, size in fields["sizes"].items()}
        results.append(Sample(**fields, **parts))
        at = ends[-1]
    return results


def batches_of(documents: Iterator[Document]) -> Iterator[Batch]:
    """The documents in batches, in order."""
    while batch := list(islice(documents, BATCH)):
        yield batch


def packed_documents(batch: Batch) -> bytes:
    """Documents as bytes: a line of JSON, then what they say."""
    rows, blobs = [], []
    for mode, source, where, document in batch:
        is_fault = isinstance(document, ValueError)
        text = (
            document
            if isinstance(document, bytes)
            else (str(document) if is_fault else json.dumps(document, default=str)).encode()
        )
        rows.append([mode, source, where, is_fault, len(text)])
        blobs.append(text)
    return b"\n".join([json.dumps(rows).encode(), b"".join(blobs)])


def digest_of(batch: Batch) -> str:
    """32 hex digits that tell a batch from others."""
    return hashlib.blake2b(packed_documents(batch), digest_size=16).hexdigest()


def unpacked_documents(data: bytes) -> Iterator[Document]:
    """What `packed_documents` packed; values as their JSON."""
    head, _, rest = data.partition(b"\n")
    at = 0
    for mode, source, where, is_fault, length in json.loads(head):
        text = rest[at : at + length]
        yield mode, source, where, ValueError(text.decode()) if is_fault else text
        at += length
