"""A model as a directory, in the layout of the Hugging Face hub: config.json, safetensors in one file or several, small files.

Reading maps the tensors, and checks headers and index against the files. Writing is whole or absent: a directory beside the
target, every file on disk, then a rename. Where an old directory is replaced, it is away for as long as a rename takes, and is
put back where that fails.

Not here: pickles (`.bin`, `.pt`), which run code when read, and what config and names mean (keye/checkpoint/huggingface.py).
Layout after the documentation of huggingface_hub, "Serialization".
"""

import json
import mmap
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kvtools.artifact import blob
from kvtools.artifact.files import claimed_folder, remove_abandoned, sync
from kvtools.errors import READABLE, CannotCreate, Corrupt, Missing, unreadable, unwritable
from kvtools.names import naming

SINGLE = "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as peft names them
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
_METADATA = {"format": "pt"}  # readers of this layout refuse a file without the name of a framework
_MAX_SMALL_BYTES = 128 << 20  # of a JSON or text file
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SMALL = (".json", ".txt", ".jinja")  # that travel with the weights


@dataclass(frozen=True)
class Directory:
    """What a model's directory holds."""

    tensors: dict[str, np.ndarray]  # by name, mapped
    config: dict[str, Any]  # config.json
    files: dict[str, bytes] = field(default_factory=dict)  # other small files, by name
    passed_over: list[str] = field(default_factory=list)  # names of files that were not read


def read_directory(path: str) -> Directory:
    """A model's directory. Raises Missing where it or its config.json is absent, Corrupt for damage and for pickles."""
    folder = Path(path)
    if not folder.is_dir():
        raise Missing(f"{path}: there is no such directory. {READABLE}")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    if "config.json" not in names:
        raise Missing(f"{path}: it has no config.json. Give the directory of a model as on the Hugging Face hub.")
    config = json.loads(read_small(folder / "config.json", is_object=True))
    shards = _shards(folder, names)
    tensors: dict[str, np.ndarray] = {}
    for name, wanted in shards.items():
        shard = read_tensors(folder / name)
        if wanted is not None and shard.keys() != wanted:
            lost, more = sorted(wanted - shard.keys()), sorted(shard.keys() - wanted)
            what = f"{lost[0]} is missing, and {INDEX} names it" if lost else f"{INDEX} does not name {more[0]}"
            raise Corrupt(f"{folder / name}: {what}. Fetch both again.")
        tensors |= shard
    kept = [name for name in names if name.endswith(_SMALL) and name not in ("config.json", INDEX)]
    rest = [name for name in names if name not in (*kept, *shards, "config.json", INDEX) and not name.startswith(".")]
    return Directory(tensors, config, {name: read_small(folder / name) for name in kept}, rest)


@contextmanager
def new_directory(dst: str, *, force: bool = False) -> Iterator[Path]:
    """An empty directory to fill, which becomes dst at the end of the body and is removed where the body raises.

    Raises CannotCreate where dst cannot be made or may not be overwritten.
    """
    target = Path(dst.rstrip("/") or "/")
    refuse_existing_directory(dst, force=force)
    building = target.parent / f".{target.name}.tmp-{os.getpid()}"
    retired = target.parent / f".{target.name}.old-{os.getpid()}"
    try:
        remove_abandoned(target)
        building.mkdir()
    except OSError as error:
        raise unwritable(dst, error) from None
    try:
        with claimed_folder(building):
            yield building
            for path in (*building.iterdir(), building):
                sync(path)
            if target.exists():
                target.rename(retired)
            try:
                building.rename(target)
            except OSError:
                if retired.exists():
                    retired.rename(target)
                raise
        sync(target.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if target.exists():
            shutil.rmtree(retired, ignore_errors=True)


def refuse_existing_directory(dst: str, *, force: bool) -> None:
    """Raise CannotCreate where dst is something else than an empty directory, or a model's where `force` is set."""
    target = Path(dst)
    if not target.parent.is_dir():
        raise CannotCreate(f"{dst}: its folder does not exist. Make the folder, or name another output.")
    if not target.exists():
        return
    if not target.is_dir():
        raise CannotCreate(f"{dst}: this is a file. Give the name of a directory.")
    entries = list(target.iterdir())
    if entries and not force:
        raise CannotCreate(f"{dst}: exists already. Give --force to overwrite it.")
    # a typing error must not remove somebody's home: only a folder of files with a model's config is replaced
    is_model = any((target / name).is_file() for name in ("config.json", ADAPTER_CONFIG))
    if entries and (not is_model or any(entry.is_dir() for entry in entries)):
        raise CannotCreate(f"{dst}: this is not a model's directory, and it is not overwritten. Name another output.")


class Writers(Protocol):
    """Ranks that fill a directory together, each with some of the files of tensors; rank 0 writes the small files, too."""

    rank: int
    size: int

    def __contains__(self, name: object) -> bool:
        """Whether the tensor of that name has to be gathered; the others are at hand on all ranks."""

    def whole(self, name: str, to: int) -> np.ndarray | None:
        """A tensor of any shape, gathered on the rank `to` alone, None elsewhere; a collective."""


def fill_directory(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    config: Mapping[str, Any],
    files: Mapping[str, bytes],
    shard_bytes: int = SHARD_BYTES,
    writers: Writers | None = None,
) -> None:
    """Write a model's files into a folder.

    tensors: by name, in shards of at most shard_bytes each; a larger tensor is a shard of its own. config: config.json. files:
    other small ones, by name. writers: ranks that write shards, about as many as there are ranks or more; of the tensors that
    they gather, `tensors` has only to tell dtypes and shapes. Then a collective.
    """
    rank, n_writers = (0, 1) if writers is None else (writers.rank, writers.size)
    total = sum(array.nbytes for array in tensors.values())
    shard_bytes = min(shard_bytes, -(-total // n_writers))
    shards: list[list[str]] = [[]]
    n_bytes = 0
    for name in sorted(tensors):
        if shards[-1] and n_bytes + tensors[name].nbytes > shard_bytes:
            shards.append([])
            n_bytes = 0
        shards[-1].append(name)
        n_bytes += tensors[name].nbytes
    names = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for number, (name, members) in enumerate(zip(names, shards, strict=True)):
        owner = number % n_writers
        specs = {member: (tensors[member].dtype, tensors[member].shape) for member in members}
        head, order = blob.header(specs, {}, metadata=_METADATA)
        gathered = (
            writers.whole(member, owner) if writers is not None and member in writers else tensors[member] for member in order
        )
        if owner == rank:
            _write(folder / name, head, gathered)
        else:
            deque(gathered, maxlen=0)  # this rank gives its part of each
    if rank:
        return
    small: dict[str, bytes] = {"config.json": _pretty(config), **files}
    if len(shards) > 1:
        where = {member: name for name, members in zip(names, shards, strict=True) for member in members}
        small[INDEX] = _pretty({"metadata": {"total_size": total}, "weight_map": where})
    for name, data in small.items():
        (folder / name).write_bytes(data)


def _shards(folder: Path, names: list[str]) -> dict[str, set[str] | None]:
    """The safetensors files, and the tensors that the index names in each; None where there is no index."""
    if INDEX in names:
        index = json.loads(read_small(folder / INDEX, is_object=True))
        where = index.get("weight_map")
        if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
            raise Corrupt(f"{folder / INDEX}: it has no weight_map of tensors to files. Fetch it again.")
        shards: dict[str, set[str] | None] = {}
        for shard in sorted(set(where.values())):
            if shard not in names:  # which also refuses a path
                raise Corrupt(f"{folder / INDEX}: it names {shard}, which is not there. Fetch that file.")
            shards[shard] = {name for name, file in where.items() if file == shard}
        return shards
    found = [name for name in names if name.endswith(".safetensors")]
    if SINGLE in found or len(found) == 1:
        return {SINGLE if SINGLE in found else found[0]: None}
    if found:
        raise Corrupt(f"{folder}: it has {len(found)} safetensors files and no {INDEX}. Fetch that file.")
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise Corrupt(f"{folder / pickles[0]}: this is a pickle, which runs code when read. Save it as safetensors.")
    raise Corrupt(f"{folder}: it has no safetensors file. Fetch the weights of the model.")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, mapped. Raises Missing and Corrupt."""
    try:
        with open(path, "rb") as file:
            memory: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise Corrupt(f"{path}: the file is empty. Fetch it again.") from None
    except OSError as error:
        raise unreadable(str(path), error) from None
    try:
        return blob.decode(memory)[0]
    except ValueError as fault:
        raise Corrupt(f"{path}: {fault}. Fetch it again.") from None


def read_small(path: Path, *, is_object: bool = False) -> bytes:
    """The bytes of a small file; is_object: which must be a JSON object."""
    if path.stat().st_size > _MAX_SMALL_BYTES:
        raise Corrupt(
            f"{path}: it is {path.stat().st_size:,} bytes, and at most {_MAX_SMALL_BYTES:,} are read. Fetch it again."
        )
    data = path.read_bytes()
    if is_object:
        try:
            value = json.loads(data)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise Corrupt(f"{path}: this is not JSON ({error}). Fetch it again.") from None
        if not isinstance(value, dict):
            raise Corrupt(f"{path}: this is not a JSON object. Fetch it again.")
    return data


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file."""
    head, order = blob.header({name: (a.dtype, a.shape) for name, a in tensors.items()}, {}, metadata=_METADATA)
    _write(path, head, (tensors[name] for name in order))


def _write(path: Path, head: bytes, arrays: Iterable[np.ndarray | None]) -> None:
    with naming(str(path)), open(path, "wb") as file:
        file.write(head)
        for array in arrays:
            assert array is not None, "it was gathered here"
            file.write(blob.bytes_of(np.ascontiguousarray(array)))
        file.flush()
        os.fsync(file.fileno())


def _pretty(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
