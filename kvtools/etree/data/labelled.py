"""Labelled samples for the devices: one reader for MNIST idx, image tars, CSV and .tra, .npz, and LEAF JSON.

Legend: N samples, D features, C classes. A folder is read file by file. Files whose names contain `test` or `t10k`, or end in
`.tes`, are the test part. Where there are none, every fifth sample of a fixed random order is held out, the same in every run.

Images are scaled to 0…1; columns of tables are standardised by the training part. Nothing is executed: .npz is read without
pickles. Not here: which device holds what (partition.py).
"""

import gzip
import hashlib
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, cast

import numpy as np

from kvtools.artifact.delimited import read_rows
from kvtools.chance import rng_for
from kvtools.errors import Corrupt, Missing, unreadable
from kvtools.etree.data.partition import load_json

_MAX_CLASSES = 65_536
_HELD_OUT = 5  # one sample in so many
_IMAGES = (".jpg", ".jpeg", ".png")
# what the readers of the formats raise for damaged files
_DAMAGE = (
    ValueError, KeyError, EOFError, TypeError, AttributeError, RecursionError, zlib.error, gzip.BadGzipFile, tarfile.TarError,
    zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Samples:
    """Samples as arrays, and who wrote them where the file says so."""

    x: np.ndarray  # float32 (N, D) or (N, channels, rows, columns)
    y: np.ndarray  # int64 (N,)
    users: np.ndarray | None = None  # strings (N,)

    def take(self, rows: np.ndarray) -> "Samples":
        """The samples of these numbers, int (m,)."""
        return Samples(self.x[rows], self.y[rows], None if self.users is None else self.users[rows])


@dataclass(frozen=True)
class LabelledData:
    """Training and test samples of the same classes."""

    train: Samples
    test: Samples
    n_classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (D,), or (channels, rows, columns)."""
        return self.train.x.shape[1:]

    @property
    def digest(self) -> str:
        """32 hex digits that are the same for the same samples."""
        state = hashlib.blake2b(digest_size=16)
        for part in (self.train, self.test):
            for array in (part.x, part.y):
                state.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return state.hexdigest()


def read_labelled(src: str) -> LabelledData:
    """All samples of a file or folder. Raises Missing where there are none, Corrupt for damage, naming the file."""
    try:
        paths = sorted(entry.path for entry in os.scandir(src) if entry.is_file()) if os.path.isdir(src) else [src]
        os.stat(src)  # a name without a known ending is not opened below
        train, test = (
            _join(src, list(_read_all([path for path in paths if _is_test(path) is is_test]))) for is_test in (False, True)
        )
    except OSError as error:
        raise unreadable(str(error.filename or src), error) from None
    whole = train or test
    if whole is None:
        known = "idx images and labels, a .tar of images, .csv, .tra, .npz or LEAF .json"
        raise Missing(f"{src}: there are no labelled data. Give {known}.")
    if train is None or test is None:
        train, test = _hold_out(src, whole)
    if train.x.shape[1:] != test.x.shape[1:]:
        raise Corrupt(
            f"{src}: test samples have the shape {test.x.shape[1:]}, and training samples {train.x.shape[1:]}. "
            "Give files whose samples have one shape."
        )
    n_classes = int(train.y.max()) + 1
    if int(test.y.max()) >= n_classes:
        raise Corrupt(
            f"{src}: label {int(test.y.max())} is only in the test part, and training labels go up to {n_classes - 1}. "
            "Add training samples of that label, or take it out of the test part."
        )
    if train.x.ndim == 2:
        mean, deviation = train.x.mean(axis=0, dtype=np.float64), train.x.std(axis=0, dtype=np.float64)
        deviation[deviation == 0] = 1
        train, test = (replace(part, x=((part.x - mean) / deviation).astype(np.float32)) for part in (train, test))
    return LabelledData(train, test, n_classes)


def _is_test(path: str) -> bool:
    name = os.path.basename(path).lower()
    return "test" in name or "t10k" in name or name.endswith(".tes")


def _read_all(paths: list[str]) -> Iterator[Samples]:
    """The samples of each file of a known format."""
    for path in paths:
        read = _reader(path, paths)
        if read is None:
            continue
        try:
            with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
                yield _checked(read(cast(BinaryIO, file)))
        except _DAMAGE as fault:
            raise Corrupt(f"{path}: {_damage_of(fault)}. Repair the file, or leave it out.") from None


def _damage_of(fault: Exception) -> str:
    """What is wrong with a file. A library's words for a missing key or attribute would say nothing about it."""
    if isinstance(fault, EOFError):
        return "the file is cut short"
    if isinstance(fault, zlib.error | gzip.BadGzipFile):
        return f"the compressed data are damaged ({fault})"
    if isinstance(fault, zipfile.BadZipFile | tarfile.TarError):
        return "the archive is damaged or cut short"
    if isinstance(fault, ValueError) and str(fault):
        return str(fault).rstrip(".")
    return "its contents are not of the format that its name says"


def _reader(path: str, paths: list[str]) -> Callable[[BinaryIO], Samples] | None:
    """The reader of a file by its name; None where the name says nothing. Raises Missing for idx images without labels."""
    name = path.removesuffix(".gz")
    if name.endswith(("-images-idx3-ubyte", "-images.idx3-ubyte")):
        labels = path.replace("images", "labels").replace("idx3", "idx1")
        if labels not in paths and os.path.dirname(path) and not os.path.exists(labels):
            raise Missing(f"{labels}: no such file. Put the labels of {os.path.basename(path)} there.")
        return partial(_read_idx, labels=labels)
    if name.endswith((".csv", ".tra", ".tes", ".data")):
        return partial(_read_table, path=path)
    return {".tar": _read_tar, ".npz": _read_npz, ".json": _read_leaf}.get(os.path.splitext(name)[1])


def _checked(part: Samples) -> Samples:
    """The same samples, as float32 and int64. Raises ValueError for values and labels that cannot be used."""
    if len(part.x) != len(part.y):
        raise ValueError(f"there are {len(part.x)} samples and {len(part.y)} labels")
    if not len(part.x):
        raise ValueError("it holds no samples")
    is_bad = ~np.isfinite(part.x).reshape(len(part.x), -1).all(axis=1)
    if is_bad.any():
        raise ValueError(f"sample {int(is_bad.argmax())} has a value that is NaN or infinite")
    is_bad = ~((part.y >= 0) & (part.y < _MAX_CLASSES) & (part.y == np.floor(part.y)))
    if is_bad.any():
        row = int(is_bad.argmax())
        raise ValueError(f"sample {row} has the label {part.y[row]:g}; labels are whole numbers from 0 to {_MAX_CLASSES - 1}")
    return Samples(part.x.astype(np.float32, copy=False), part.y.astype(np.int64), part.users)


def _join(src: str, parts: list[Samples]) -> Samples | None:
    """The samples of all files one after the other; None where there are no files."""
    if not parts:
        return None
    shapes = {part.x.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise Corrupt(f"{src}: files hold samples of different shapes: {sorted(shapes)}. Name one of the files.")
    users = None
    if any(part.users is not None for part in parts):
        users = np.concatenate([np.array([""] * len(part.y)) if part.users is None else part.users for part in parts])
    return Samples(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]), users)


def _hold_out(src: str, part: Samples) -> tuple[Samples, Samples]:
    """The samples to train with and those to test with."""
    order = rng_for(0, "held out").permutation(len(part.y))
    n_test = max(1, len(order) // _HELD_OUT)
    if n_test == len(order):
        raise Corrupt(f"{src}: there is only 1 sample. Give two or more, one of them to test with.")
    return part.take(np.sort(order[n_test:])), part.take(np.sort(order[:n_test]))


def _idx(file: BinaryIO, n_axes: int) -> np.ndarray:
    head = file.read(4 + 4 * n_axes)
    if len(head) != 4 + 4 * n_axes or head[:4] != bytes([0, 0, 8, n_axes]):
        raise ValueError(
            f"the file begins with {head[:4].hex(' ') or 'nothing'}; idx of bytes begins with 00 00 08 {n_axes:02x}"
        )
    shape = np.frombuffer(head, ">i4", offset=4).astype(np.int64)
    n_bytes = math.prod(shape.tolist())
    data = file.read(n_bytes + 1) if 0 <= n_bytes < 1 << 40 else b""
    if len(data) != n_bytes:
        raise ValueError(f"there are {len(data)} bytes of samples, and the header says {n_bytes}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_idx(file: BinaryIO, labels: str) -> Samples:
    with gzip.open(labels) if labels.endswith(".gz") else open(labels, "rb") as other:
        y = _idx(cast(BinaryIO, other), 1)
    x = _idx(file, 3)
    return Samples(x[:, None].astype(np.float32) / 255, y)


def _read_table(file: BinaryIO, path: str) -> Samples:
    """Numbers between commas, semicolons, tabs or blanks. The label is in the column `label`, `class` or `target`, or in the
    last; who wrote a sample is in `user`."""
    rows = read_rows(file, path)
    if not len(rows):
        raise ValueError("it holds no samples")
    width = len(rows.fields[0])
    label = rows.index("label", "class", "target")
    label = width - 1 if label is None else label
    user = rows.index("user")
    columns = [column for column in range(width) if column not in (label, user)]
    users = None if user is None else np.array([fields[user] for fields in rows.fields])
    return Samples(rows.numbers(columns).astype(np.float32), rows.numbers([label])[:, 0], users)


def _read_tar(file: BinaryIO) -> Samples:
    """Images in folders, a folder a class; classes are numbered in the order of their names."""
    from PIL import Image

    x, classes = [], []
    with tarfile.open(fileobj=file) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if member.isfile() and member.name.lower().endswith(_IMAGES):
                data = tar.extractfile(member)
                assert data is not None, "a regular file"
                try:
                    with Image.open(data) as image:
                        x.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                    raise ValueError(f"{member.name} is not a picture that can be read") from None
                classes.append(os.path.basename(os.path.dirname(member.name)))
    if len({image.shape for image in x}) > 1:
        raise ValueError("the images have several sizes, and must have one")
    names = sorted(set(classes))
    return Samples(np.array(x, np.float32) / 255, np.array([names.index(name) for name in classes], float))


def _read_npz(file: BinaryIO) -> Samples:
    if not zipfile.is_zipfile(file):
        raise ValueError("this is not an .npz file of plain arrays")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        if not {"x", "y"} <= set(arrays.files):
            raise ValueError(f"the arrays are {', '.join(arrays.files) or 'none'}, and x and y are needed")
        x, y, users = (arrays[name] if name in arrays.files else None for name in ("x", "y", "user"))
    if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray) or isinstance(users, bytes):
        raise ValueError("this is not an .npz file of plain arrays")
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiub" or x.ndim not in (2, 4) or y.ndim != 1:
        raise ValueError(
            f"x is {x.dtype} {x.shape} and y {y.dtype} {y.shape}; numbers (N, D) or (N, C, H, W), and (N,), are needed"
        )
    names = None if users is None else users.astype(str)
    return Samples(x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32), y, names)


def _read_leaf(file: BinaryIO) -> Samples:
    """{"users": [...], "user_data": {user: {"x": [[...]], "y": [...]}}}, as LEAF writes it (arXiv 1812.01097)."""
    leaf = load_json(file)
    try:
        samples = [(str(user), leaf["user_data"][user]["x"], leaf["user_data"][user]["y"]) for user in leaf["users"]]
        n_samples = [(user, len(x), len(y)) for user, x, y in samples]
        images = np.array([row for _, x, _ in samples for row in x], np.float32)
        labels = np.array([label for _, _, y in samples for label in y], float)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise ValueError("this is not JSON as LEAF writes it, with users, and with x and y of each user in user_data") from None
    for user, n_x, n_y in n_samples:
        if n_x != n_y:
            raise ValueError(f"user {user} has {n_x} samples and {n_y} labels")
    return Samples(images, labels, np.array([user for user, _, n_y in n_samples for _ in range(n_y)]))
