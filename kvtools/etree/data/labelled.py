"""Labelled samples for the devices: the files of a folder put together, their classes numbered, a test part held out.

Legend: N samples, D features, C classes. A folder is read with all that is below it. Files whose names contain `test` or `t10k`
or end in `.tes`, and those below a folder `test`, are the test part. Where there are none, every fifth sample of a fixed random
order is held out, the same in every run. Columns of tables are matched by their titles, and standardised by the training part.

Not here: the formats (sample_files.py), and which device holds what (partition.py).
"""

import gzip
import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import numpy as np

from kvtools.chance import rng_for
from kvtools.errors import Corrupt, Missing, unreadable
from kvtools.etree.data.sample_files import IMAGES, NO_LABEL, Samples, first_bad, in_order, read_images, reader

_HELD_OUT = 5  # one sample in so many
_TEST_FOLDERS = {"test", "testing", "tests"}
# what the readers of the formats raise for damaged files
_DAMAGE = (
    ValueError, KeyError, EOFError, TypeError, AttributeError, RecursionError, zlib.error, gzip.BadGzipFile, tarfile.TarError,
    zipfile.BadZipFile,
)  # fmt: skip


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


def read_labelled(src: str, log: Callable[[str], None] = lambda _: None) -> LabelledData:
    """All samples of a file or folder. Raises Missing where there are none, Corrupt for damage, naming the file.

    log: takes a message about what was left out.
    """
    try:
        os.stat(src)  # a name without a known ending is not opened below
        parts = list(_read_all(src, _files_of(src)))
    except OSError as error:
        raise unreadable(str(error.filename or src), error) from None
    if not parts:
        known = "idx images and labels, images in folders or a .tar, .csv, .npz or LEAF .json"
        raise Missing(f"{src}: there are no labelled data. Give {known}.")
    if any(part.has_index for _, part in parts):
        log("the first column of a table has no title: it is an index, and left out")
    parts = _with_classes_of_all(_with_columns_of_first(src, parts))
    train, test = (_join(src, [part for is_of_test, part in parts if is_of_test is is_test]) for is_test in (False, True))
    whole = train or test
    assert whole is not None, "there are parts"
    if train is None or test is None:
        train, test = _hold_out(src, whole)
    if train.x.shape[1:] != test.x.shape[1:]:
        raise Corrupt(
            f"{src}: test samples have the shape {test.x.shape[1:]}, and training samples {train.x.shape[1:]}. "
            "Give files whose samples have one shape."
        )
    unknown = np.setdiff1d(test.y, train.y)
    if len(unknown):
        label = unknown[0] if whole.classes is None else whole.classes[unknown[0]]
        raise Corrupt(
            f"{src}: the label {label} is only in the test part. Add training samples of that label, or take it out of the "
            "test part."
        )
    if train.x.ndim == 2:
        mean, deviation = train.x.mean(axis=0, dtype=np.float64), train.x.std(axis=0, dtype=np.float64)
        deviation[deviation == 0] = 1
        train, test = (replace(part, x=((part.x - mean) / deviation).astype(np.float32)) for part in (train, test))
    return LabelledData(train, test, int(train.y.max()) + 1)


def _files_of(src: str) -> list[str]:
    """The files below a folder, hidden ones left out, in order; or the one file."""
    if not os.path.isdir(src):
        return [src]

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for folder, below, names in os.walk(src, onerror=refuse):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _is_test(src: str, path: str) -> bool:
    name = os.path.basename(path).lower()
    folders = os.path.dirname(os.path.relpath(path, src)).lower().split(os.sep)
    return "test" in name or "t10k" in name or name.endswith(".tes") or not _TEST_FOLDERS.isdisjoint(folders)


def _read_all(src: str, paths: list[str]) -> Iterator[tuple[bool, Samples]]:
    """The samples of each file of a known format, and of all images; whether they are of the test part."""
    for is_test in (False, True):
        images = [path for path in paths if path.lower().endswith(IMAGES) and _of_test_folder(src, path) is is_test]
        if images:
            with _named_faults(src):
                yield is_test, _checked(read_images(_opened(images)))
    for path in paths:
        if path.lower().endswith(IMAGES) or (read := reader(path, paths, is_test=_is_test(src, path))) is None:
            continue
        with _named_faults(path), gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            yield from ((is_test, _checked(part)) for is_test, part in read(cast(BinaryIO, file)))


def _opened(paths: list[str]) -> Iterator[tuple[str, BinaryIO]]:
    """Each path and its file, which is closed when the next one is asked for."""
    for path in paths:
        with open(path, "rb") as file:
            yield path, file


def _of_test_folder(src: str, path: str) -> bool:
    """Whether an image is of the test part: pictures are named by cameras, and their names say nothing."""
    return _is_test(src, os.path.join(os.path.dirname(path), "picture"))


@contextmanager
def _named_faults(name: str) -> Iterator[None]:
    """Raise what the readers raise for damage as Corrupt, with the name."""
    try:
        yield
    except _DAMAGE as fault:
        raise Corrupt(f"{name}: {_damage_of(fault)}. Repair the file, or leave it out.") from None


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


def _checked(part: Samples) -> Samples:
    """The same samples, as float32 and int64. Raises ValueError for values and labels that cannot be used."""
    if len(part.x) != len(part.y):
        raise ValueError(f"there are {len(part.x)} samples and {len(part.y)} labels")
    if not len(part.x):
        raise ValueError("it holds no samples")
    if not (is_finite := np.isfinite(part.x)).all():
        row, *index = np.argwhere(~is_finite)[0].tolist()
        user = "" if part.users is None else f" of user {part.users[row]}"
        raise ValueError(f"sample {row}{user} has {part.x[row, *index]:g} as value {index}, and must be finite")
    if (row := first_bad(part.y)) is not None:
        raise ValueError(f"sample {row}: {part.y[row]:g} {NO_LABEL}")
    return replace(part, x=part.x.astype(np.float32, copy=False), y=part.y.astype(np.int64))


def _with_columns_of_first(src: str, parts: list[tuple[bool, Samples]]) -> list[tuple[bool, Samples]]:
    """The same samples, columns of tables in the order of the first table that has titles. Raises Corrupt for other titles."""
    first = next((part.columns for _, part in parts if part.columns), None)
    if first is None:
        return parts

    def ordered(part: Samples) -> Samples:
        if part.columns is None and part.table is not None:
            raise Corrupt(
                f"{part.table}: its first line holds no titles, by which its columns could be matched with those of other "
                "tables. Add the titles."
            )
        if part.columns is None or part.columns == first:
            return part
        alone = sorted(set(part.columns) ^ set(first))
        if alone or len(set(first)) < len(first):
            raise Corrupt(
                f"{src}: the column {alone[0] if alone else first[0]!r} is not in each table once. Correct the tables."
            )
        return replace(part, x=part.x[:, [part.columns.index(title) for title in first]], columns=first)

    return [(is_test, ordered(part)) for is_test, part in parts]


def _with_classes_of_all(parts: list[tuple[bool, Samples]]) -> list[tuple[bool, Samples]]:
    """The same samples, with one numbering of the classes of all parts where one of them names its classes."""
    if all(part.classes is None for _, part in parts):
        return parts
    names = [
        (part.classes or tuple(map(str, range(int(part.y.max()) + 1))), set(np.unique(part.y).tolist())) for _, part in parts
    ]
    classes = in_order({known[number] for known, numbers in names for number in numbers})
    number_of = {name: number for number, name in enumerate(classes)}
    numbered = []
    for (is_test, part), (known, _) in zip(parts, names, strict=True):
        table = np.array([number_of.get(name, -1) for name in known])
        numbered.append((is_test, replace(part, y=table[part.y], classes=classes)))
    return numbered


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
    x, y = np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
    return replace(parts[0], x=x, y=y, users=users)


def _hold_out(src: str, part: Samples) -> tuple[Samples, Samples]:
    """The samples to train with and those to test with."""
    order = rng_for(0, "held out").permutation(len(part.y))
    n_test = max(1, len(order) // _HELD_OUT)
    if n_test == len(order):
        raise Corrupt(f"{src}: there is only 1 sample. Give two or more, one of them to test with.")
    return part.take(np.sort(order[n_test:])), part.take(np.sort(order[:n_test]))
