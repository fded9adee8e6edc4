"""Labelled samples to be spread over devices: one reader for MNIST idx, image tars, CSV and .tra, .npz, and LEAF JSON.

Legend: N samples, D features, C classes. A folder is read file by file; files whose name says `test`, `t10k` or `.tes` are the
test part. Where there is none, every fifth sample of a fixed random order is held out, the same in every run.

Images are scaled to 0…1; columns of tables are standardised by the training part. Nothing is executed: .npz is read without
pickles. Not here: which device holds what (partition.py).
"""

import csv
import gzip
import hashlib
import io
import json
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np

from kvtools.chance import rng_for
from kvtools.errors import Corrupt, Missing

_MAX_CLASSES = 65_536
_HELD_OUT = 5  # one in so many
_IMAGES = (".jpg", ".jpeg", ".png")
# what the readers of other formats raise for damage
_DAMAGE = (
    ValueError, KeyError, EOFError, TypeError, AttributeError, RecursionError, csv.Error, zlib.error, gzip.BadGzipFile,
    tarfile.TarError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Samples as one array: x float32 (N, ...), y int64 (N,), and who wrote them where the file tells."""

    x: np.ndarray
    y: np.ndarray
    users: np.ndarray | None = None  # strings (N,)


@dataclass(frozen=True)
class Labelled:
    """Training and test samples of the same classes; `digest` tells whether two runs speak of the same ones."""

    train: Part
    test: Part
    n_classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (D,), or (channels, rows, columns)."""
        return self.train.x.shape[1:]

    @property
    def digest(self) -> str:
        state = hashlib.blake2b(digest_size=16)
        for part in (self.train, self.test):
            for array in (part.x, part.y):
                state.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return state.hexdigest()


def read_labelled(src: str) -> Labelled:
    """All samples of a file or folder. Raises Missing where there are none, Corrupt for damage, naming the file."""
    try:
        names = sorted(entry.path for entry in os.scandir(src) if entry.is_file()) if os.path.isdir(src) else [src]
        train, test = (_join(src, list(_parts(name for name in names if _is_test(name) is part))) for part in (False, True))
    except OSError as error:
        raise Missing(f"{error.filename or src}: {(error.strerror or str(error)).lower()}.") from None
    whole = train or test
    if whole is None:
        known = "idx images and labels, .tar of images, .csv, .tra, .npz or LEAF .json"
        raise Missing(f"{src}: no labelled data found, {known} expected.")
    if train is None or test is None:
        train, test = _hold_out(whole)
    if train.x.shape[1:] != test.x.shape[1:]:
        raise Corrupt(f"{src}: test samples of shape {test.x.shape[1:]} found, {train.x.shape[1:]} expected as in training.")
    n_classes = int(train.y.max()) + 1
    if int(test.y.max()) >= n_classes:
        raise Corrupt(f"{src}: label {int(test.y.max())} in the test part, below {n_classes} expected as in training.")
    if whole.x.ndim == 2:
        mean, spread = train.x.mean(axis=0, dtype=np.float64), train.x.std(axis=0, dtype=np.float64)
        spread[spread == 0] = 1
        train, test = (Part(((part.x - mean) / spread).astype(np.float32), part.y, part.users) for part in (train, test))
    return Labelled(train, test, n_classes)


def _is_test(path: str) -> bool:
    name = os.path.basename(path).lower()
    return "test" in name or "t10k" in name or name.endswith(".tes")


def _parts(paths: Iterable[str]) -> Iterable[Part]:
    paths = list(paths)
    for path in paths:
        plain = path.removesuffix(".gz")
        read: Callable[[BinaryIO], Part] | None = None
        if plain.endswith(("-images-idx3-ubyte", "-images.idx3-ubyte")):
            labels = path.replace("images", "labels").replace("idx3", "idx1")
            if labels not in paths and os.path.dirname(path) and not os.path.exists(labels):
                raise Missing(f"{labels}: no such file; the labels of {os.path.basename(path)} expected.")
            read = lambda file, labels=labels: _read_idx(file, labels)
        elif plain.endswith((".csv", ".tra", ".tes", ".data")):
            read = _read_table
        elif plain.endswith(".tar"):
            read = _read_tar
        elif plain.endswith(".npz"):
            read = _read_npz
        elif plain.endswith(".json"):
            read = _read_leaf
        if read is None:
            continue
        try:
            with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
                yield _checked(read(cast(BinaryIO, file)))
        except _DAMAGE as fault:
            raise Corrupt(f"{path}: {str(fault).rstrip('.') or type(fault).__name__}.") from None


def _checked(part: Part) -> Part:
    if len(part.x) != len(part.y):
        raise ValueError(f"{len(part.x)} samples and {len(part.y)} labels found, as many of both expected")
    if not len(part.x):
        raise ValueError("no samples in it")
    if not np.isfinite(part.x).all():
        raise ValueError(
            f"sample {int(np.flatnonzero(~np.isfinite(part.x).reshape(len(part.x), -1).all(axis=1))[0])}: NaN or infinite"
        )
    is_bad = ~((part.y >= 0) & (part.y < _MAX_CLASSES) & (part.y == np.floor(part.y)))
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        raise ValueError(f"sample {row}: label {part.y[row]:g} found, a whole number from 0 to {_MAX_CLASSES - 1} expected")
    return Part(part.x.astype(np.float32, copy=False), part.y.astype(np.int64), part.users)


def _join(src: str, parts: list[Part]) -> Part | None:
    if not parts:
        return None
    shapes = {part.x.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise Corrupt(f"{src}: samples of shapes {sorted(shapes)} found, one shape expected. Name one file of them.")
    users = [np.array([""] * len(part.y)) if part.users is None else part.users for part in parts]
    has_users = any(part.users is not None for part in parts)
    return Part(
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
        np.concatenate(users) if has_users else None,
    )


def _hold_out(part: Part) -> tuple[Part, Part]:
    order = rng_for(0, "held out").permutation(len(part.y))
    n_test = max(1, len(order) // _HELD_OUT)
    if n_test == len(order):
        raise Corrupt("1 sample found, at least two expected, one of them to test with.")
    rows = (np.sort(order[n_test:]), np.sort(order[:n_test]))
    train, test = (Part(part.x[some], part.y[some], None if part.users is None else part.users[some]) for some in rows)
    return train, test


def _idx(file: BinaryIO, n_axes: int) -> np.ndarray:
    head = file.read(4 + 4 * n_axes)
    if len(head) != 4 + 4 * n_axes or head[:4] != bytes([0, 0, 8, n_axes]):
        raise ValueError(f"{head[:4].hex(' ') or 'nothing'} found, 00 00 08 {n_axes:02x} expected (idx of bytes)")
    shape = np.frombuffer(head, ">i4", offset=4).astype(np.int64)
    n_bytes = math.prod(shape.tolist())
    data = file.read(n_bytes + 1) if 0 <= n_bytes < 1 << 40 else b""
    if len(data) != n_bytes:
        raise ValueError(f"{len(data)} bytes of samples found, {n_bytes} expected")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_idx(file: BinaryIO, labels: str) -> Part:
    with gzip.open(labels) if labels.endswith(".gz") else open(labels, "rb") as other:
        y = _idx(cast(BinaryIO, other), 1)
    x = _idx(file, 3)
    return Part(x[:, None].astype(np.float32) / 255, y)


def _read_table(file: BinaryIO) -> Part:
    """Numbers between commas, semicolons, tabs or blanks; the label is in the column `label`, `class` or `target`, or last;
    who wrote a sample in `user`."""
    lines = io.TextIOWrapper(file, "utf-8", errors="strict").read().splitlines()
    first = next((line for line in lines if line.strip()), "")
    mark = next((mark for mark in ",;\t" if mark in first), None)
    rows = [line.split() if mark is None else next(csv.reader([line], delimiter=mark)) for line in lines]
    is_title = any(word.strip() and not _is_number(word) for word in first.split(mark))
    title = [word.strip().lower() for word in first.split(mark)] if is_title else []
    width = len(first.split(mark))
    label = next((title.index(name) for name in ("label", "class", "target") if name in title), width - 1)
    user = title.index("user") if "user" in title else None
    x, y, users = [], [], []
    for number, row in enumerate(rows, start=1):
        if not any(word.strip() for word in row) or (is_title and number == lines.index(first) + 1):
            continue
        if len(row) != width:
            raise ValueError(f"line {number}: {len(row)} cells found, {width} expected")
        try:
            x.append([float(word) for place, word in enumerate(row) if place not in (label, user)])
            y.append(float(row[label]))
        except ValueError:
            raise ValueError(f"line {number}: numbers expected") from None
        users.append("" if user is None else row[user])
    return Part(np.array(x, np.float32), np.array(y), None if user is None else np.array(users))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _read_tar(file: BinaryIO) -> Part:
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
                except OSError as error:
                    raise ValueError(f"{member.name}: {error}") from None
                classes.append(os.path.basename(os.path.dirname(member.name)))
    if len({image.shape for image in x}) > 1:
        raise ValueError("images of several sizes found, one expected")
    names = sorted(set(classes))
    return Part(np.array(x, np.float32) / 255, np.array([names.index(name) for name in classes], float))


def _read_npz(file: BinaryIO) -> Part:
    with np.load(file, allow_pickle=False) as arrays:
        if not {"x", "y"} <= set(arrays.files):
            raise ValueError(f"arrays {', '.join(arrays.files) or 'none'} found, x and y expected")
        x, y = arrays["x"], arrays["y"]
        users = arrays["user"].astype(str) if "user" in arrays.files else None
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiub" or x.ndim not in (2, 4) or y.ndim != 1:
        raise ValueError(
            f"x {x.dtype} {x.shape}, y {y.dtype} {y.shape} found, numbers (N, D) or (N, C, H, W) and (N,) expected"
        )
    return Part(x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32), y, users)


def _read_leaf(file: BinaryIO) -> Part:
    """{"users": [...], "user_data": {user: {"x": [[...]], "y": [...]}}}, as LEAF writes it (arXiv 1812.01097)."""
    words = json.load(file)
    x, y, users = [], [], []
    for user in words["users"]:
        mine = words["user_data"][user]
        if len(mine["x"]) != len(mine["y"]):
            raise ValueError(f"user {user}: {len(mine['x'])} samples and {len(mine['y'])} labels found, as many expected")
        x += mine["x"]
        y += mine["y"]
        users += [str(user)] * len(mine["y"])
    return Part(np.array(x, np.float32), np.array(y, float), np.array(users))
