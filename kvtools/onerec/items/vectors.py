"""Vectors by key: `.npy` with a list of keys, `embedding` streams, and `video` records with an embedding.

Read in blocks, so that what does not fit in memory passes through. `VectorSource` is for semantic IDs and refuses bad vectors;
`skip_bad` is for embeddings and leaves them out.
"""

import io
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from kvtools.artifact import checked_records, is_stream, open_stream, source_name
from kvtools.artifact.arrays import load_array
from kvtools.artifact.delimited import lines_of, read_text
from kvtools.artifact.files import open_source
from kvtools.artifact.history import Step
from kvtools.artifact.json_text import read_json
from kvtools.artifact.stream import Reader
from kvtools.artifact.strings import first_repeated, unpack
from kvtools.errors import Corrupt, Usage
from kvtools.skipped import SkippedRows

Block = tuple[list[str], np.ndarray]  # n keys, float (n, D)

_ROWS = 4096
_BATCH_BYTES = 64 << 20
_NPY = b"\x93NUMPY"
_MAKE_AGAIN = "Make the vectors again with kvtools embed."
_TOO_LARGE = 1e15  # squares of larger values, summed, would come near the end of float32's range


class VectorSource:
    """The vectors of an embedding stream, of a stream of video records with embeddings, or of an .npy with its keys.

    Iterate for the blocks, float32 (n, D), once; afterwards `keys` names every row.
    """

    def __init__(self, src: str, keys_src: str | None = None, *, taken: np.ndarray | None = None) -> None:
        """taken: strings, keys that no vector may have. Raises Corrupt for other files, Usage for an .npy without keys."""
        self.name = source_name(src)
        self.skipped = SkippedRows()
        self.weights: dict[str, np.ndarray] = {}  # `encoder.…`: what vectors go through before they come out here
        self.encoder: dict[str, Any] | None = None  # and its settings
        self.fit: str | None = None  # the digest of the fit that the vectors come from, where it is known
        self._keys: list[np.ndarray] = [np.empty(0, np.dtypes.StringDType())]
        self._taken = self._keys[0] if taken is None else taken
        file = open_source(src)
        if not is_vectors(file):
            what = "this is neither a stream nor an .npy file" if file.peek(1) else "this input is empty"  # type: ignore[attr-defined]
            raise Corrupt(f"{self.name}: {what}. Make embeddings with kvtools embed.")
        self._blocks, self.history, config = open_vectors(src, file, keys_src, self.skipped)
        self.fit = fit_of(config)

    @property
    def keys(self) -> np.ndarray:
        """The key of every row that has been read, strings (N,)."""
        self._keys = [np.concatenate(self._keys)]
        return self._keys[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Raises Corrupt for an empty source, for vectors of different widths, for values that are not finite or too large,
        each by its key, and for a key that occurs twice."""
        for keys, x_nD in batches(self._checked()):
            self._keys.append(np.array(keys, np.dtypes.StringDType()))
            yield x_nD
        if not len(self.keys):
            raise Corrupt(f"{self.name}: there are no vectors in it. Look at the stage before this one.")
        if (key := first_repeated(np.concatenate([self._taken, self.keys]))) is not None:
            raise Corrupt(f"{self.name}: key {key!r} names two vectors. Give every item one vector.")

    def _checked(self) -> Iterator[Block]:
        width = None
        for keys, x_nD in self._blocks:
            width = width or x_nD.shape[1]
            if x_nD.shape[1] != width or not width:
                n_dims = x_nD.shape[1]
                raise Corrupt(
                    f"{self.name}: the vector of {keys[0]!r} has {n_dims} dimensions, not {width or 1}. {_MAKE_AGAIN}"
                )
            # a NaN fails every comparison, so one test finds all three faults
            is_bad = ~(np.abs(x_nD).max(axis=1, initial=0.0) < _TOO_LARGE)
            if is_bad.any():
                row = int(np.flatnonzero(is_bad)[0])
                worst = "NaN" if np.isnan(x_nD[row]).any() else f"{float(np.abs(x_nD[row]).max()):g}"
                raise Corrupt(
                    f"{self.name}: the vector of {keys[row]!r} holds {worst}. Give vectors of finite values below 1e15."
                )
            yield keys, np.asarray(x_nD, np.float32)


def is_npy(file: BinaryIO) -> bool:
    """Whether a numpy array lies ahead; nothing is consumed."""
    return bytes(file.peek(6)[:6]) == _NPY  # type: ignore[attr-defined]


def is_vectors(file: BinaryIO) -> bool:
    """Whether a stream or a numpy array lies ahead; nothing is consumed."""
    return is_stream(file) or is_npy(file)


def fit_of(config: Mapping[str, Any]) -> str | None:
    """The digest of the fit that vectors come from, by the config in the head of their stream."""
    fit = config.get("fit")
    return str(fit["digest"]) if isinstance(fit, dict) and "digest" in fit else None


def open_vectors(
    src: str, file: BinaryIO, keys_src: str | None, skipped: SkippedRows
) -> tuple[Iterator[Block], list[Step], Mapping[str, Any]]:
    """The blocks of a stream or an .npy, the history that it brings, and the config in its head.

    file: src, open, for which `is_vectors` holds. skipped: counts records without an embedding. Raises Corrupt for a stream of
    another kind, Usage for an .npy without keys.
    """
    if is_stream(file):
        reader = open_stream(src, ("embedding", "video"), made_by="kvtools embed", file=file)
        return read_stream(reader, skipped), reader.head.history, reader.head.config
    if keys_src is None:
        raise Usage(f"{source_name(src)}: an .npy file does not name its rows. Give their keys with --keys FILE.")
    return read_npy(file, source_name(src), read_keys(keys_src)), [], {}


def read_keys(src: str) -> list[str]:
    """Keys, one a line or as one JSON list. Raises Corrupt for anything else."""
    with open_source(src) as file:
        text = read_text(file, source_name(src))
    if not text.lstrip().startswith("["):
        return lines_of(text)
    try:
        keys = read_json(text)
    except ValueError as fault:
        raise Corrupt(
            f"{source_name(src)}: this is not one JSON list ({fault}). Give keys one a line, or as a JSON list."
        ) from None
    if not all(isinstance(key, str) for key in keys):
        raise Corrupt(f"{source_name(src)}: some keys are not strings. Put each of the JSON list in quotes.")
    return list(keys)


def read_npy(file: BinaryIO, name: str, keys: list[str]) -> Iterator[Block]:
    """The rows of an (N, D) array of float16, float32 or float64, in blocks; a file is mapped, a pipe is read whole.

    Raises Corrupt for another array, and where there is not one key a row.
    """
    try:
        # numpy reads real files and file-likes; a pipe's descriptor is neither, and is read whole
        array, options = (file.name, {"mmap_mode": "r"}) if _has_path(file) else (io.BytesIO(file.read()), {})
        matrix: Any = load_array(array, name, **options)
    except ValueError as fault:
        reason = str(fault).splitlines()[0].rstrip(".")
        raise Corrupt(f"{name}: numpy cannot read it ({reason}). Save the vectors as float32 with numpy.save.") from None
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or matrix.dtype.itemsize > 8:
        shape = list(matrix.shape)
        raise Corrupt(
            f"{name}: this is {matrix.dtype} {shape}, and float16, float32 or float64 (N, D) is needed. Convert it with numpy."
        )
    if len(matrix) != len(keys):
        raise Corrupt(f"{name}: there are {len(matrix)} rows and {len(keys)} keys. Give one key per row with --keys.")
    for begin in range(0, len(keys), _ROWS):
        yield keys[begin : begin + _ROWS], np.asarray(matrix[begin : begin + _ROWS])


def read_stream(reader: Reader, skipped: SkippedRows) -> Iterator[Block]:
    """The vectors of `embedding` records, or the one of each `video` record; records without are counted as skipped."""
    for record in checked_records(reader, made_by="kvtools embed"):
        if reader.head.kind == "embedding":
            yield unpack("keys", record.tensors), record.tensors["vectors"]
        elif "embedding" in record.tensors:
            yield [record.key], record.tensors["embedding"][None]
        else:
            skipped.skip("records without an embedding left out", record.key)


def skip_bad(blocks: Iterator[Block], name: str, skipped: SkippedRows) -> Iterator[Block]:
    """The same as float32, without vectors that are not finite or are 0, and without keys that came before; these are counted.

    Raises Corrupt where blocks differ in width.
    """
    known: set[str] = set()
    width: int | None = None
    for keys, x_nD in blocks:
        if width not in (None, x_nD.shape[1]):
            raise Corrupt(f"{name}: vectors of {width} dimensions are followed by one of {x_nD.shape[1]}. Give all one width.")
        width = x_nD.shape[1]
        # float64 beyond the range of float32 becomes infinite here, and is counted so
        with np.errstate(over="ignore"):
            narrow = np.asarray(x_nD, np.float32)
        is_finite = np.isfinite(narrow).all(axis=1)
        is_zero = ~narrow.any(axis=1)
        is_again = np.zeros(len(keys), bool)
        for row in np.flatnonzero(is_finite & ~is_zero):
            is_again[row] = keys[row] in known
            known.add(keys[row])
        for reason, is_bad in (
            ("vectors with NaN or infinity left out", ~is_finite),
            ("vectors of zeros left out", is_zero),
            ("items that came before left out", is_again),
        ):
            skipped.add(reason, int(is_bad.sum()), (keys[row] for row in np.flatnonzero(is_bad)))
        good = np.flatnonzero(is_finite & ~is_zero & ~is_again)
        yield [keys[row] for row in good], narrow[good]


def n_rows_a_batch(width: int) -> int:
    """How many rows `batches` puts into one: 4096, or fewer where 64 MiB would not hold them."""
    return max(1, min(_ROWS, _BATCH_BYTES // (4 * max(1, width))))


def n_batches(n_rows: int, width: int) -> int:
    """How many batches so many rows are."""
    return -(-n_rows // n_rows_a_batch(width))


def batches(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same rows in batches of `n_rows_a_batch`, the last one shorter."""
    keys: list[str] = []
    pending: list[np.ndarray] = []
    for more, x_nD in blocks:
        n_batch = n_rows_a_batch(x_nD.shape[1])
        keys += more
        pending.append(x_nD)
        if len(keys) < n_batch:
            continue
        x_mD = np.concatenate(pending)
        begin = 0
        while len(keys) - begin >= n_batch:
            yield keys[begin : begin + n_batch], x_mD[begin : begin + n_batch]
            begin += n_batch
        keys, pending = keys[begin:], [x_mD[begin:]]
    if keys:
        yield keys, np.concatenate(pending)


def _has_path(file: BinaryIO) -> bool:
    return isinstance(file.name, str) and file.seekable()  # stdin's name is its descriptor
