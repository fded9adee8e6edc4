"""Vectors by key from wherever they lie: `.npy` with a list of keys, `embedding` streams, `video` records with an embedding.

Read in blocks, so that what does not fit in memory passes through. Not here: what the vectors mean.
"""

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from kvtools.artifact import kinds, source_name
from kvtools.artifact.delimited import lines_of, read_text
from kvtools.artifact.files import open_source
from kvtools.artifact.stream import Reader
from kvtools.artifact.strings import unpack
from kvtools.errors import Corrupt
from kvtools.skipped import SkippedRows

Block = tuple[list[str], np.ndarray]  # n keys, float (n, D)

_ROWS = 4096
_NPY = b"\x93NUMPY"


def is_npy(file: BinaryIO) -> bool:
    """Whether a numpy array lies ahead; nothing is consumed."""
    return bytes(file.peek(6)[:6]) == _NPY  # type: ignore[attr-defined]


def read_keys(src: str) -> list[str]:
    """Keys, one a line, or as one JSON list."""
    with open_source(src) as file:
        text = read_text(file, source_name(src))
    if not text.lstrip().startswith("["):
        return lines_of(text)
    try:
        keys = json.loads(text)
    except ValueError as fault:
        raise Corrupt(
            f"{source_name(src)}: this is not one JSON list ({fault}). Give keys one a line, or as a JSON list."
        ) from None
    if not all(isinstance(key, str) for key in keys):
        raise Corrupt(f"{source_name(src)}: some keys are not strings. Put each of the JSON list in quotes.")
    return list(keys)


def read_npy(file: BinaryIO, name: str, keys: list[str]) -> Iterator[Block]:
    """The rows of an (N, D) array of float16, float32 or float64, in blocks; a file is mapped, a pipe is read whole."""
    try:
        # numpy reads real files and file-likes; a pipe's descriptor is neither, and is read whole
        matrix: Any = np.load(file.name, mmap_mode="r") if _has_path(file) else np.load(io.BytesIO(file.read()))
    except (ValueError, EOFError) as fault:  # a pickle is a ValueError too: none is ever opened
        raise Corrupt(f"{name}: {str(fault).splitlines()[0].rstrip('.')}.") from None
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or matrix.dtype.itemsize > 8:
        raise Corrupt(f"{name}: {matrix.dtype} {list(matrix.shape)} found, float16, float32 or float64 (N, D) expected.")
    if len(matrix) != len(keys):
        raise Corrupt(f"{name}: {len(matrix)} rows and {len(keys)} keys found. Give one key a row with --keys.")
    for begin in range(0, len(keys), _ROWS):
        yield keys[begin : begin + _ROWS], np.asarray(matrix[begin : begin + _ROWS])


def read_stream(reader: Reader, name: str, skipped: SkippedRows) -> Iterator[Block]:
    """The vectors of `embedding` records, or the one of each `video` record; records without are counted as lost."""
    for record in reader:
        try:
            kinds.check(reader.head.kind, "stream", record.tensors, record.fields)
        except ValueError as fault:
            raise Corrupt(f"{name}: record {record.number}: {fault}.") from None
        if reader.head.kind == "embedding":
            yield unpack("keys", record.tensors), record.tensors["vectors"]
        elif "embedding" in record.tensors:
            yield [record.key], record.tensors["embedding"][None]
        else:
            skipped.add("records without an embedding left out", 1, [record.key])


def sieve(blocks: Iterator[Block], name: str, skipped: SkippedRows) -> Iterator[Block]:
    """Blocks of float32 without rows that are not finite or are 0, and without keys that came before; these are counted.

    Raises Corrupt where blocks differ in width.
    """
    seen: set[str] = set()
    width: int | None = None
    for keys, x_nD in blocks:
        if width not in (None, x_nD.shape[1]):
            raise Corrupt(f"{name}: vectors of {x_nD.shape[1]} numbers follow vectors of {width}; one width expected.")
        width = x_nD.shape[1]
        # float64 beyond the range of float32 becomes infinite here, and is told
        with np.errstate(over="ignore"):
            narrow = np.asarray(x_nD, np.float32)
        is_finite = np.isfinite(narrow).all(axis=1)
        is_zero = ~narrow.any(axis=1)
        is_again = np.zeros(len(keys), bool)
        for row in np.flatnonzero(is_finite & ~is_zero):
            is_again[row] = keys[row] in seen
            seen.add(keys[row])
        for what, rows in (
            ("vectors with NaN or infinity left out", ~is_finite),
            ("vectors of zeros left out", is_zero),
            ("items that came before left out", is_again),
        ):
            skipped.add(what, int(rows.sum()), (keys[row] for row in np.flatnonzero(rows)))
        keep = np.flatnonzero(is_finite & ~is_zero & ~is_again)
        yield [keys[row] for row in keep], narrow[keep]


def batches(blocks: Iterator[Block], n_rows: int = _ROWS) -> Iterator[Block]:
    """The same rows in batches of n_rows, the last one shorter; fewer a batch where 64 MiB would not hold them."""
    keys: list[str] = []
    pending: list[np.ndarray] = []
    for more, x_nD in blocks:
        size = max(1, min(n_rows, (64 << 20) // (4 * max(1, x_nD.shape[1]))))
        keys += more
        pending.append(x_nD)
        if len(keys) < size:
            continue
        x_mD = np.concatenate(pending)
        begin = 0
        while len(keys) - begin >= size:
            yield keys[begin : begin + size], x_mD[begin : begin + size]
            begin += size
        keys, pending = keys[begin:], [x_mD[begin:]]
    if keys:
        yield keys, np.concatenate(pending)


def _has_path(file: BinaryIO) -> bool:
    return isinstance(file.name, str) and file.seekable()  # stdin's name is its descriptor
