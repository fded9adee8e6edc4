"""The files that hold labelled samples, a reader each: MNIST idx, tables, .npz, LEAF JSON, and images in folders or a .tar.

Legend: N samples, D features. Images are scaled to 0…1. Nothing is executed: .npz is read without pickles. A reader raises
ValueError, or Corrupt with the line, for contents that are not of its format. Not here: which files belong together, and the
test part (labelled.py).
"""

import gzip
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, cast

import numpy as np

from kvtools.artifact.arrays import load_array, plain_arrays
from kvtools.artifact.delimited import Rows, is_number, read_rows
from kvtools.artifact.tar_entries import tar_entries
from kvtools.errors import Corrupt, Missing
from kvtools.etree.data.partition import load_json

IMAGES = (".jpg", ".jpeg", ".png")
_CHANNELS = (1, 3, 4)
_MOST_PICTURE_BYTES = 256 << 20  # whatever a header says
MAX_CLASSES = 65_536
_MISSING = {"", "na", "n/a", "#n/a", "<na>", "nan", "null", "?"}  # labels that programs write where there is none
_INDEX = {"", "unnamed: 0"}  # titles of the first column of a table of pandas, and of one that was read and written again
NO_LABEL = f"is no label. Labels are names, or whole numbers from 0 to {MAX_CLASSES - 1}."
_KERAS = (("x_train", "y_train"), ("x_test", "y_test"))


@dataclass(frozen=True)
class Samples:
    """Samples as arrays, and what the file says about them."""

    x: np.ndarray  # float32 (N, D) or (N, channels, rows, columns)
    y: np.ndarray  # int64 (N,), the label or the position of its name in `classes`
    users: np.ndarray | None = None  # strings (N,), who wrote the sample
    classes: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None  # (D,), the titles of a table
    table: str | None = None  # the path of the table
    has_index: bool = False  # whether the table begins with a column without a title, which is left out

    def take(self, rows: np.ndarray) -> "Samples":
        """The samples of these numbers, int (m,)."""
        return replace(self, x=self.x[rows], y=self.y[rows], users=None if self.users is None else self.users[rows])


Reader = Callable[[BinaryIO], Iterator[tuple[bool, Samples]]]  # of each part in the file: whether it is the test part


def reader(path: str, paths: list[str], *, is_test: bool) -> Reader | None:
    """The reader of a file by its name; None where the name says nothing. Raises Missing for idx images without labels."""
    name = path.removesuffix(".gz")
    if name.endswith(".npz"):
        return partial(_read_npz, path=path, is_test=is_test)
    read: Callable[[BinaryIO], Samples] | None
    if name.endswith(("-images-idx3-ubyte", "-images.idx3-ubyte")):
        labels = path.replace("images", "labels").replace("idx3", "idx1")
        if labels not in paths and os.path.dirname(path) and not os.path.exists(labels):
            raise Missing(f"{labels}: no such file. Put the labels of {os.path.basename(path)} there.")
        read = partial(_read_idx, labels=labels)
    elif name.endswith((".csv", ".tra", ".tes", ".data")):
        read = partial(_read_table, path=path)
    else:
        read = {".tar": _read_tar, ".json": _read_leaf}.get(os.path.splitext(name)[1])
    return None if read is None else lambda file: iter([(is_test, read(file))])


def read_images(paths: Iterable[tuple[str, BinaryIO]]) -> Samples:
    """Images, each with its path, whose folder is named after the class. Raises ValueError, with the path, for what is none."""
    from PIL import Image

    x, folders = [], []
    for path, file in paths:
        try:
            with Image.open(file) as image:
                x.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise ValueError(f"{path} is not a picture that can be read") from None
        folders.append(os.path.basename(os.path.dirname(path)))
        if x[-1].shape != x[0].shape:
            sizes = " and ".join(f"{image.shape[2]}x{image.shape[1]}" for image in (x[0], x[-1]))
            raise ValueError(f"the images have several sizes, and must have one: {path} makes them {sizes}")
    return named(np.array(x, np.float32) / 255, folders)


def named(x: np.ndarray, names: list[str], users: np.ndarray | None = None) -> Samples:
    """Samples x (N, …) with the names of their classes (N,), which are numbered in the order of the names."""
    classes = in_order(set(names))
    number = {name: i for i, name in enumerate(classes)}
    return Samples(x, np.array([number[name] for name in names], float), users, classes)


def in_order(names: set[str]) -> tuple[str, ...]:
    """Names of classes in order: by value where all are numbers."""
    is_numeric = all(map(is_number, names))
    return tuple(sorted(names, key=lambda name: (float(name), name) if is_numeric else (0.0, name)))


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


def _table(file: BinaryIO, path: str) -> Rows:
    """The rows of a table, whose first is a header where most of its fields are no numbers: a label may be a word."""
    rows = read_rows(file, path)
    n_words = sum(not is_number(field) for field in rows.header if field.strip())
    if not rows.header or 2 * n_words > len(rows.header) or rows.index("label", "class", "target") is not None:
        return rows
    return Rows(rows.name, [], [rows.header_line, *rows.lines], [rows.header, *rows.fields])


def _read_table(file: BinaryIO, path: str) -> Samples:
    """Numbers between commas, semicolons, tabs or blanks. The label is in the column `label`, `class` or `target`, or in the
    last, and may be a word; who wrote a sample is in `user`. A first column without a title is an index, and left out."""
    rows = _table(file, path)
    if not len(rows):
        raise ValueError("it holds no samples")
    rows.require_fields()
    width = len(rows.fields[0])
    label = rows.index("label", "class", "target")
    label = width - 1 if label is None else label
    user = rows.index("user")
    has_index = bool(rows.header) and rows.header[0].strip().lower() in _INDEX and label > 0
    columns = [column for column in range(int(has_index), width) if column not in (label, user)]
    users = None if user is None else np.array([fields[user] for fields in rows.fields])
    titles = tuple(rows.header[column].strip() for column in columns) if rows.header else None
    x = rows.finite(columns)
    words = [fields[label].strip() for fields in rows.fields]
    if (row := first_missing(words)) is not None:
        column = rows.header[label].strip() if rows.header else label + 1
        but = f", but {words[row]!r}" if words[row] else ""
        raise ValueError(f"line {rows.lines[row]} has no label in the column {column}{but}")
    if not all(map(is_number, words)):
        samples = named(x, words, users=users)
    else:
        samples = Samples(x, rows.numbers([label])[:, 0], users)
        if (row := first_bad(samples.y)) is not None:
            raise Corrupt(f"{rows.cell(row, label)}: {words[row]!r} {NO_LABEL} Correct the line, or leave it out.")
    return replace(samples, columns=titles, table=path, has_index=has_index)


def first_missing(words: Iterable[str]) -> int | None:
    """The first of these labels that says that there is none; None where all are labels."""
    return next((row for row, word in enumerate(words) if word.strip().lower() in _MISSING), None)


def first_bad(y_N: np.ndarray) -> int | None:
    """The first of these numbers (N,) that is no label, which are whole and from 0; None where all are labels."""
    is_bad_N = ~((y_N >= 0) & (y_N < MAX_CLASSES) & (y_N == np.floor(y_N)))
    return int(is_bad_N.argmax()) if is_bad_N.any() else None


def _read_tar(file: BinaryIO) -> Samples:
    """Images in folders, a folder a class."""
    pictures = [
        (entry.name, io.BytesIO(cast(BinaryIO, tar.extractfile(entry)).read(_MOST_PICTURE_BYTES)))
        for tar, entry in tar_entries(file)
        if entry.isfile() and entry.name.lower().endswith(IMAGES)
    ]
    return read_images(sorted(pictures, key=lambda picture: picture[0]))


def _read_npz(file: BinaryIO, path: str, *, is_test: bool) -> Iterator[tuple[bool, Samples]]:
    """Arrays x and y, and user if it is there; or x_train, y_train, x_test and y_test, as Keras names them."""
    if not zipfile.is_zipfile(file):
        raise ValueError("this is not an .npz file of plain arrays")
    file.seek(0)
    with plain_arrays(path), load_array(file, path) as arrays:
        names = set(arrays.files)
        if names >= {name for pair in _KERAS for name in pair}:
            for is_of_test, (x, y) in zip((False, True), _KERAS, strict=True):
                yield is_of_test, _of_arrays(arrays[x], arrays[y], None, (x, y))
            return
        if not {"x", "y"} <= names:
            raise ValueError(f"the arrays are {', '.join(arrays.files) or 'none'}, and x and y are needed")
        yield is_test, _of_arrays(arrays["x"], arrays["y"], arrays["user"] if "user" in names else None, ("x", "y"))


def _of_arrays(x: np.ndarray, y: np.ndarray, users: np.ndarray | None, names: tuple[str, str]) -> Samples:
    """Samples x (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C), and labels y (N,) or (N, 1), numbers or strings."""
    if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray) or isinstance(users, bytes):
        raise ValueError("this is not an .npz file of plain arrays")
    labels = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiubU" or x.ndim not in (2, 3, 4) or labels.ndim != 1:
        raise ValueError(
            f"{names[0]} is {x.dtype} {x.shape} and {names[1]} {y.dtype} {y.shape}; "
            "numbers (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C), and (N,), are needed"
        )
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    with np.errstate(over="ignore"):  # infinite ones are refused by their index
        x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)
    who = None if users is None else users.astype(str)
    if y.dtype.kind != "U":
        return Samples(x, labels, who)
    words = labels.tolist()
    if (row := first_missing(words)) is not None:
        raise ValueError(f"{names[1]}[{row}] is {words[row]!r}, which is no label")
    return named(x, words, users=who)


def _read_leaf(file: BinaryIO) -> Samples:
    """{"users": [...], "user_data": {user: {"x": [[...]], "y": [...]}}}, as LEAF writes it (arXiv 1812.01097)."""
    leaf = load_json(file)
    try:
        samples = [(str(user), leaf["user_data"][user]["x"], leaf["user_data"][user]["y"]) for user in leaf["users"]]
        n_samples = [(user, len(x), len(y)) for user, x, y in samples]
        with np.errstate(over="ignore"):  # as in _of_arrays
            images = np.array([row for _, x, _ in samples for row in x], np.float32)
        labels = np.array([label for _, _, y in samples for label in y], float)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise ValueError("this is not JSON as LEAF writes it, with users, and with x and y of each user in user_data") from None
    for user, n_x, n_y in n_samples:
        if n_x != n_y:
            raise ValueError(f"user {user} has {n_x} samples and {n_y} labels")
    return Samples(images, labels, np.array([user for user, _, n_y in n_samples for _ in range(n_y)]))
