"""Tensors in parts, in files that each rank writes for itself: torch.distributed.checkpoint in safetensors files.

Each file says, for each of its tensors, where in the whole one it begins: any number of ranks reads its own parts of what any
other number wrote. No file is a pickle; between ranks torch sends its plans as pickles, over the connections that carry
gradients. And whole tensors, each gathered on the rank that writes it alone, for files that others read. Not here: whose state
the files are (artifact/state.py), and their layout (artifact/directory.py).
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from kvtools.artifact.casts import to_numpy
from kvtools.artifact.directory import new_directory
from kvtools.artifact.state import RunState, content
from kvtools.errors import Fault
from kvtools.names import naming
from kvtools.train.process_group import close_process_group
from kvtools.world import World

_FILE_BYTES = 64 << 20  # of a rank's part: torch makes up a file in memory


def save_in_parts(state: RunState, tensors: Mapping[str, Tensor], progress: Mapping[str, Any], world: World) -> None:
    """Write the state of a run, tensors of any shapes by name, of which each rank writes what it holds; a collective."""
    folder = Path(world.broadcast(str(state.new_parts()) if world.is_root else ""))
    files = write_parts(folder, tensors, world)
    if world.is_root:
        state.save({}, parts=folder, files=files, progress=progress)


def write_parts(folder: Path, tensors: Mapping[str, Tensor], world: World) -> dict[str, list[int]]:
    """Write into an empty folder what each rank holds of tensors of any shapes, by name; a collective. Returns the content of
    the files of all ranks, by name. Raises OSError where the system does not store them."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    sizes = _united({name: (x.to_local() if hasattr(x, "to_local") else x).nbytes for name, x in tensors.items()}, world)
    writer = HuggingFaceStorageWriter(str(folder), _file_numbers(sizes), save_distributed=True)
    try:
        with warnings.catch_warnings(action="ignore"):
            save(dict(tensors), storage_writer=writer)
    except CheckpointException as failure:
        shutil.rmtree(folder, ignore_errors=True)
        speaker, (error, _) = min(failure.failures.items())
        if world.rank == speaker:
            with naming(str(folder)):
                raise error from None
        world.any(True)  # never returns: the rank that failed ends all
    files = _united({file.name: content(file) for file in folder.glob(f"shard-{world.rank + 1:05}-*")}, world)
    if world.any(files.keys() != {file.name for file in folder.glob("*")}):
        told = f"{folder}: the ranks do not see one another's files. Give --state a folder that all machines share."
        raise Fault(told if world.is_root else "")
    return files


def names_in_parts(folder: Path) -> set[str]:
    """The names of the tensors in a folder that `write_parts` filled."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return set(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)


def read_parts(folder: Path, places: Mapping[str, Tensor]) -> None:
    """Fill tensors, by name, whole or in parts of any number of ranks, from a folder that `write_parts` filled."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings(action="ignore"):  # torch warns where a rank reads without asking the others, as is meant
        load(dict(places), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


class ModelWriters:
    """The ranks of a world as writers of a model that they have in parts (artifact.directory.Writers): each tensor is gathered
    on the rank that writes it alone, one after the other. tensors: of the model, by name."""

    def __init__(self, tensors: Mapping[str, Tensor], world: World) -> None:
        self._tensors, self._world, self.rank, self.size = tensors, world, world.rank, world.size

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def like(self) -> dict[str, np.ndarray]:
        """Arrays of the tensors' dtypes and shapes, by name, which take no memory."""
        return {
            name: np.broadcast_to(to_numpy(torch.zeros((), dtype=x.dtype)), tuple(x.shape)) for name, x in self._tensors.items()
        }

    def whole(self, name: str, to: int) -> np.ndarray | None:
        """As Writers.whole of artifact/directory.py: any shape."""
        x = gathered(self._tensors[name], to)
        return None if x is None else to_numpy(x)

    @contextmanager
    def directory(self, dst: str, *, force: bool) -> Iterator[Path]:
        """As artifact.directory.new_directory, one for all ranks; a collective. Once all have filled it, they part."""
        with new_directory(dst, force=force) if self._world.is_root else nullcontext(Path()) as folder:
            yield Path(self._world.broadcast(os.path.abspath(folder)))
            self._world.any(False)  # the others have written, too
        close_process_group()


def gathered(x: Tensor, to: int) -> Tensor | None:
    """A tensor of a model in parts, whole, of the same shape, on the rank `to`, None elsewhere; a collective. A tensor that is
    no part, all ranks have."""
    from torch.distributed.tensor import DTensor

    if not isinstance(x, DTensor):
        return x
    own, size = x.to_local(), dist.get_world_size()
    n_rows = -(-len(x) // size)  # of each rank but the last ones
    padded = own.new_zeros(n_rows, *x.shape[1:])
    padded[: len(own)] = own
    if dist.get_rank() != to:
        dist.gather(padded, dst=to)
        return None
    all_rows = padded.new_empty(size * n_rows, *x.shape[1:])
    dist.gather(padded, list(all_rows.chunk(size)), dst=to)
    return all_rows[: len(x)]


def _united(own: Mapping[str, Any], world: World) -> dict[str, Any]:
    """The entries of all ranks, plain JSON, on every rank; a collective."""
    lines = world.gather_array(np.frombuffer(f"{json.dumps(own)}\n".encode(), np.uint8)).tobytes().splitlines()
    return {name: value for line in lines for name, value in json.loads(line).items()}


def _file_numbers(sizes: Mapping[str, int]) -> dict[str, int]:
    """For each tensor, of so many bytes, the number, from 1, of the file that a rank's part of it goes to."""
    numbers, number, n_bytes = {}, 1, 0
    for name, size in sizes.items():
        if n_bytes > _FILE_BYTES:
            number, n_bytes = number + 1, 0
        numbers[name] = number
        n_bytes += size
    return numbers
