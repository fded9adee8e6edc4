"""The state of a stopped run, kept so that the same command resumes it: one file, whole or absent, without pickle.

What several ranks hold in parts is in a folder beside that file, which names the folder and the content of its files: it is
written last, so that a run killed before has the state before. The invariant: a state is resumed only by a run that is made of
the same. Not here: what a run keeps, and when.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zlib_ng.zlib_ng import crc32

from kvtools import __version__
from kvtools.artifact.bag import Bag, fields_of, write_bag
from kvtools.artifact.blob import Tensors
from kvtools.artifact.files import Sink, open_claimed, remove_abandoned, sync
from kvtools.artifact.history import refuse_other_options
from kvtools.artifact.open import open_artifact
from kvtools.errors import CannotCreate, Corrupt, Usage, unwritable

_BLOCK_BYTES = 1 << 23
_PARTS = ("parts-a", "parts-b")  # folders, of which one is the state's while the other is written


def state_folder(dst: str) -> str | None:
    """The folder for the state of a run that writes dst: `.NAME.state` beside it; None for a pipe or a device."""
    dst = dst.rstrip("/") or "-"
    if dst == "-" or (os.path.exists(dst) and not (os.path.isfile(dst) or os.path.isdir(dst))):
        return None
    return os.path.join(os.path.dirname(dst), f".{os.path.basename(dst)}.state")


@contextmanager
def lock_folder(folder: str | None, *, is_root: bool) -> Iterator[None]:
    """Within it, rank 0 has the folder for itself, by its file `lock`: two runs would spoil each other's state. folder None:
    nothing is kept.

    Raises CannotCreate where another run is at work in the folder, or it cannot be made.
    """
    if folder is None or not is_root:
        yield
        return
    lock = os.path.join(folder, "lock")
    try:
        os.makedirs(folder, exist_ok=True)
        fd = open_claimed(lock)
    except OSError as error:
        raise unwritable(folder, error) from None
    if fd is None:
        raise CannotCreate(f"{folder}: another run is at work there. Wait for it, or name another output.")
    try:
        yield
    finally:
        with suppress(OSError):  # the folder was removed meanwhile
            os.unlink(lock)
        os.close(fd)
        with suppress(OSError):  # something is kept in it
            os.rmdir(folder)


class SaveTimer:
    """Says every minute that it is time to save: what is killed without warning loses no more than that."""

    def __init__(self, *, is_running: bool, every_s: float = 60.0) -> None:
        self._every_s = every_s if is_running else math.inf
        self._next = time.monotonic() + self._every_s

    def is_due(self) -> bool:
        """Whether it is time; the next time is then set."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._every_s
        return True


class RunState:
    """What a stopped run left behind: the file `train.state` in a folder of its own. folder None: nothing is kept.

    config: what the run is made of; a file with another config, or of another version of kvtools, belongs to another run and is
    refused by name.
    """

    def __init__(self, folder: str | None, kind: str, config: Mapping[str, Any]) -> None:
        self.path = None if folder is None else os.path.join(folder, "train.state")
        self._kind = kind
        self._config: dict[str, Any] = json.loads(json.dumps({**config, "version": __version__}))

    @property
    def is_kept(self) -> bool:
        """Whether there is a state to resume from."""
        return self.path is not None and os.path.exists(self.path)

    def save(
        self, tensors: Tensors, *, parts: Path | None = None, files: Mapping[str, Any] | None = None, **fields: Any
    ) -> None:
        """Write the state; an earlier one is replaced once this one is whole. Does nothing without a folder.

        parts: a folder of `new_parts` that belongs to it. files: `content` of what is in there, by name, on disk by now.
        """
        if self.path is None:
            return
        folder = Path(self.path).parent
        folder.mkdir(parents=True, exist_ok=True)
        if parts is not None:
            sync(parts)
            fields["parts"] = {"folder": parts.name, "files": files}
        write_bag(Sink(self.path, force=True), self._kind, tensors, config=self._config, history=[], **fields)
        for name in _PARTS:
            if parts is None or name != parts.name:
                shutil.rmtree(folder / name, ignore_errors=True)

    def new_parts(self) -> Path:
        """An empty folder for what ranks write, each a part, which becomes the state's by `save`. Raises CannotCreate."""
        assert self.path is not None, "there is a folder"
        kept = fields_of(self.path).get("parts", {}).get("folder")
        folder = Path(self.path).parent / _PARTS[kept == _PARTS[0]]
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        except OSError as error:
            raise unwritable(str(folder), error) from None
        return folder

    def parts_of(self, bag: Bag) -> Path | None:
        """The folder of what ranks wrote of a state, each a part; None where it is whole in its file."""
        parts = bag.fields.get("parts")
        return None if self.path is None or parts is None else Path(self.path).parent / str(parts["folder"])

    def load(self, *, start_over: bool = False) -> Bag | None:
        """The state of the stopped run; None where there is none.

        Raises Usage where the run had other options, naming the first that differs; Corrupt where the file is damaged or of
        another kind, naming --force. start_over: such a state is removed in place of that. The state of the same run is resumed
        all the same: a job with --force in its script must come further, too, when it is queued again.
        """
        if self.path is None or not os.path.exists(self.path):
            return None
        try:
            return self._read(self.path)
        except (Usage, Corrupt):
            if not start_over:
                raise
            self.forget()
            return None

    def _read(self, path: str) -> Bag:
        try:
            bag = open_artifact(path)
        except Corrupt:
            raise _damaged(path) from None
        if not isinstance(bag, Bag) or bag.kind != self._kind:
            raise Corrupt(f"{path}: this is not the state of a stopped run of this command. Give --force to start over.")
        refuse_other_options(path, bag.fields.get("config", {}), self._config)
        _require_parts(path, bag.fields.get("parts"))
        return bag

    def forget(self) -> None:
        """Remove the state, and its folder where that is then empty: the run is done, or starts over."""
        if self.path is None:
            return
        folder = os.path.dirname(self.path)
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        for name in _PARTS:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        with suppress(OSError):  # there is no folder
            remove_abandoned(Path(self.path))
        with suppress(OSError):  # something else is kept in it
            os.rmdir(folder)


def content(path: Path) -> list[int]:
    """What a file holds, as a state that it belongs to notes it: its bytes, and their crc32."""
    n_bytes = crc = 0
    with open(path, "rb") as file:
        while data := file.read(_BLOCK_BYTES):
            n_bytes, crc = n_bytes + len(data), crc32(data, crc)
    return [n_bytes, crc]


def _require_parts(path: str, parts: Any) -> None:
    """Raise Corrupt unless what ranks wrote of the state in that file is there as it says."""
    if parts is None:
        return
    folder = Path(path).parent / str(parts["folder"])
    if parts["folder"] not in _PARTS or not folder.is_dir():
        raise _damaged(str(folder))
    if lost := set(parts["files"]) ^ {file.name for file in folder.iterdir()}:
        raise _damaged(str(folder / min(lost)))
    for name, noted in parts["files"].items():
        if content(folder / name) != noted:
            raise _damaged(str(folder / name))


def _damaged(path: str) -> Corrupt:
    return Corrupt(f"{path}: the file is damaged. The stopped run cannot be resumed. Give --force to start over.")
