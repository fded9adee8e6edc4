"""A model as a directory, in the layout of the Hugging Face hub: config.json, safetensors in one file or several, small files.

Reading maps the tensors and holds every word of the headers and of the index against the files themselves before anything is
made of it. Writing is whole or absent: a directory beside the target, every file on disk, then a rename. Where `--force`
replaces one, the old is out of the way for as long as a rename takes, and is put back where that fails.

Not here: pickles (`.bin`, `.pt`), which run code when read, and what the config and the names mean (keye/huggingface.py).
Layout after the documentation of huggingface_hub, "Serialization".
"""

import json
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kvtools.artifact import blob
from kvtools.artifact.files import sync
from kvtools.errors import CannotCreate, Corrupt, Missing

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
_MAX_SMALL_BYTES = 128 << 20  # of a JSON or text file
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SMALL = (".json", ".txt", ".jinja")  # that travel with the weights


@dataclass(frozen=True)
class Directory:
    """What a directory holds: tensors by name, mapped; its configuration; small files by name; names of what is left."""

    tensors: dict[str, np.ndarray]
    config: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)


def read_directory(path: str) -> Directory:
    """A model's directory. Raises Missing where there is none or no config.json, Corrupt for what does not hold together."""
    folder = Path(path)
    if not folder.is_dir():
        raise Missing(f"{path}: no directory.")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    if "config.json" not in names:
        raise Missing(f"{path}: no config.json; the directory of a model as on the Hugging Face hub expected.")
    config = json.loads(_small(folder / "config.json", is_object=True))
    shards = _shards(folder, names)
    tensors: dict[str, np.ndarray] = {}
    for name, wanted in shards.items():
        found = _mapped(folder / name)
        if wanted is not None and set(found) != wanted:
            lost, more = sorted(wanted - set(found)), sorted(set(found) - wanted)
            what = f"{lost[0]}: missing, though {INDEX} names it" if lost else f"{more[0]}: found, though {INDEX} knows nothing"
            raise Corrupt(f"{folder / name}: {what}.")
        tensors |= found
    kept = [name for name in names if name.endswith(_SMALL) and name not in ("config.json", INDEX)]
    rest = [name for name in names if name not in (*kept, *shards, "config.json", INDEX) and not name.startswith(".")]
    return Directory(tensors, config, {name: _small(folder / name) for name in kept}, rest)


@contextmanager
def new_directory(dst: str, *, force: bool = False) -> Iterator[Path]:
    """An empty directory to fill, which becomes DST when the body ends and is gone where that raises. Raises CannotCreate."""
    target = Path(dst.rstrip("/") or "/")
    refuse_existing_directory(dst, force=force)
    building = target.parent / f".{target.name}.tmp-{os.getpid()}"
    retired = target.parent / f".{target.name}.old-{os.getpid()}"
    try:
        building.mkdir()
    except OSError as error:
        raise CannotCreate(f"{dst}: {(error.strerror or str(error)).lower()}.") from None
    try:
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
    """Raise CannotCreate where something is at DST, unless it is empty or a model that may be overwritten."""
    target = Path(dst)
    if not target.parent.is_dir():
        raise CannotCreate(f"{dst}: no such file or directory.")
    if not target.exists():
        return
    if not target.is_dir():
        raise CannotCreate(f"{dst}: a file found, a directory's name expected.")
    entries = list(target.iterdir())
    if entries and not force:
        raise CannotCreate(f"{dst}: exists already. Give --force to overwrite it.")
    # a slip of the hand must not cost somebody's home: what goes is a folder of files with a model's config among them
    if entries and (not (target / "config.json").is_file() or any(entry.is_dir() for entry in entries)):
        raise CannotCreate(f"{dst}: no model's directory; it is not overwritten. Name another output.")


def fill_directory(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    config: Mapping[str, Any],
    files: Mapping[str, bytes],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model's files: tensors by name, in shards of at most shard_bytes (a larger tensor is a shard of its own)."""
    shards: list[list[str]] = [[]]
    n_bytes = 0
    for name in sorted(tensors):
        if shards[-1] and n_bytes + tensors[name].nbytes > shard_bytes:
            shards.append([])
            n_bytes = 0
        shards[-1].append(name)
        n_bytes += tensors[name].nbytes
    names = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, members in zip(names, shards, strict=True):
        _write_shard(folder / name, {member: tensors[member] for member in members})
    words: dict[str, bytes] = {"config.json": _pretty(config), **files}
    if len(shards) > 1:
        where = {member: name for name, members in zip(names, shards, strict=True) for member in members}
        total = sum(array.nbytes for array in tensors.values())
        words[INDEX] = _pretty({"metadata": {"total_size": total}, "weight_map": where})
    for name, data in words.items():
        (folder / name).write_bytes(data)


def _shards(folder: Path, names: list[str]) -> dict[str, set[str] | None]:
    """The safetensors files, and what the index says is in each; None where there is no index."""
    if INDEX in names:
        index = json.loads(_small(folder / INDEX, is_object=True))
        where = index.get("weight_map")
        if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
            raise Corrupt(f"{folder / INDEX}: no weight_map of names to files found.")
        shards: dict[str, set[str] | None] = {}
        for shard in sorted(set(where.values())):
            if shard not in names:  # which also refuses a path
                raise Corrupt(f"{folder / INDEX}: {shard} named, which is not there. Fetch it again.")
            shards[shard] = {name for name, place in where.items() if place == shard}
        return shards
    found = [name for name in names if name.endswith(".safetensors")]
    if SINGLE in found or len(found) == 1:
        return {SINGLE if SINGLE in found else found[0]: None}
    if found:
        raise Corrupt(f"{folder}: {len(found)} safetensors files found without {INDEX}, which says what is in them.")
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise Corrupt(
            f"{folder / pickles[0]}: a pickle found, which runs code when read; safetensors expected. Save it as such."
        )
    raise Corrupt(f"{folder}: no safetensors file found.")


def _mapped(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            memory: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise Corrupt(f"{path}: an empty file found.") from None
    except OSError as error:
        raise Missing(f"{path}: {(error.strerror or str(error)).lower()}.") from None
    try:
        return blob.decode(memory)[0]
    except ValueError as fault:
        raise Corrupt(f"{path}: {fault}. Cut short or damaged: fetch it again.") from None


def _small(path: Path, *, is_object: bool = False) -> bytes:
    """A small file's bytes; with is_object also held to be a JSON object."""
    if path.stat().st_size > _MAX_SMALL_BYTES:
        raise Corrupt(f"{path}: {path.stat().st_size:,} bytes found, at most {_MAX_SMALL_BYTES:,} expected.")
    data = path.read_bytes()
    if is_object:
        try:
            value = json.loads(data)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise Corrupt(f"{path}: not JSON ({error}).") from None
        if not isinstance(value, dict):
            raise Corrupt(f"{path}: a JSON object expected.")
    return data


def _write_shard(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    # readers of the hub's layout want to be told whose tensors these are, and take nothing without it
    head, order = blob.header({name: (a.dtype, a.shape) for name, a in tensors.items()}, {}, metadata={"format": "pt"})
    with open(path, "wb") as file:
        file.write(head)
        file.writelines(blob.bytes_of(np.ascontiguousarray(tensors[name])) for name in order)


def _pretty(words: Mapping[str, Any]) -> bytes:
    return (json.dumps(words, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
