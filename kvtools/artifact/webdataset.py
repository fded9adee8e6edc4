"""Records as a tar in the layout of WebDataset: the files of a sample share their name up to its first dot.

A record becomes NAME.json, its fields, and NAME.TENSOR.npy for each tensor; a document, which is a tensor of JSON, becomes
NAME.document.json. NAME is the key with _ for its dots and for what a path may not hold; the key itself is among the fields.
bfloat16 is written as float32, since npy has no name for it. Equal records give equal bytes.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator

import numpy as np

from kvtools.artifact.casts import BFLOAT16
from kvtools.artifact.files import Sink
from kvtools.artifact.stream_part import Record

_END_BYTES = 1024  # of a tar: two blocks of zeros


def write_tar(records: Iterable[Record], sink: Sink) -> None:
    """Write records as a tar, and commit the sink; what fails abandons it."""
    try:
        taken: set[str] = set()
        for record in records:
            for name, data in _files(record, _name(record.key, taken)):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                sink.write([entry.tobuf(tarfile.PAX_FORMAT), data, bytes(-len(data) % tarfile.BLOCKSIZE)])
        sink.write([bytes(_END_BYTES)])
    except BaseException:
        sink.abandon()
        raise
    sink.commit()


def _name(key: str, taken: set[str]) -> str:
    """A name without dots that no other sample has."""
    parts = [re.sub(r"[.\0\\]", "_", part) for part in key.split("/") if part not in ("", ".", "..")]
    plain = name = "/".join(parts) or "_"
    number = 1
    while name in taken:
        number += 1
        name = f"{plain}-{number}"
    taken.add(name)
    return name


def _files(record: Record, name: str) -> Iterator[tuple[str, bytes]]:
    yield f"{name}.json", json.dumps(record.fields, ensure_ascii=False, sort_keys=True).encode()
    for tensor, array in record.tensors.items():
        if tensor == "json" and array.dtype == np.uint8:
            yield f"{name}.document.json", array.tobytes()
            continue
        buffer = io.BytesIO()
        np.save(buffer, array.astype(np.float32) if array.dtype == BFLOAT16 else array, allow_pickle=False)
        yield f"{name}.{tensor}.npy", buffer.getvalue()
