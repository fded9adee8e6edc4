"""Vectors that are read many times: in memory or, past a limit, in an unlinked file in $TMPDIR.

They are stored block by block and never joined, so that the peak is the input and one block. The limit changes the speed, not
the result.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np

from kvtools.world import World

_BLOCK_BYTES = 32 << 20


class VectorStore:
    """Float32 vectors (n, D) and the row number of each among those of all ranks; iterate for (first row here, block).

    Blocks in memory are the data itself; those of a file are read anew each time.
    """

    def __init__(self, n_width: int, *, limit_bytes: int | None = None) -> None:
        """limit_bytes: what may be held in memory; None is all."""
        self.n_width = n_width
        self._n_block = max(1, _BLOCK_BYTES // (4 * n_width))
        self._limit_bytes = limit_bytes
        self._blocks: list[np.ndarray] = []
        self._n_last = 0  # vectors in the last of the blocks
        self._row_numbers: list[np.ndarray] = []
        self._file: int | None = None
        self._n_filed = 0
        self._subtracted: list[tuple[np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return sum(map(len, self._row_numbers))

    @property
    def row_numbers(self) -> np.ndarray:
        """The number of each vector among those of all ranks, int64 (n,), rising."""
        if len(self._row_numbers) != 1:
            self._row_numbers = [np.concatenate([np.empty(0, np.int64), *self._row_numbers])]
        return self._row_numbers[0]

    @property
    def is_on_disk(self) -> bool:
        """Whether the limit was passed."""
        return self._file is not None

    def append(self, first: int, vectors_ND: np.ndarray) -> None:
        """Add a copy of vectors, float32 (n, D), whose row numbers are first, first + 1, …; not after `subtract`."""
        assert not self._subtracted, "vectors are complete before codes are subtracted from them"
        self._row_numbers.append(np.arange(first, first + len(vectors_ND), dtype=np.int64))
        done = 0
        while done < len(vectors_ND):
            if not self._blocks or self._n_last == self._n_block:
                self._open_block()
            part_BD = vectors_ND[done : done + self._n_block - self._n_last]
            self._blocks[-1][self._n_last : self._n_last + len(part_BD)] = part_BD
            self._n_last += len(part_BD)
            done += len(part_BD)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        begin = 0
        for block_BD in self._read_file():
            yield begin, self._residual(begin, block_BD)
            begin += len(block_BD)
        for number, block_BD in enumerate(self._blocks, start=1):
            filled_BD = block_BD[: self._n_last] if number == len(self._blocks) else block_BD
            yield begin, filled_BD if self._file is None else self._residual(begin, filled_BD.copy())
            begin += len(filled_BD)

    def subtract(self, codes_N: np.ndarray, codebook_KD: np.ndarray) -> None:
        """Subtract from each vector its code's: from now on the vectors are the residuals. codes_N: int32 (N,)."""
        if self._file is not None:
            self._subtracted.append((codes_N, codebook_KD))
            return
        for begin, block_BD in self:
            np.subtract(block_BD, codebook_KD[codes_N[begin : begin + len(block_BD)]], out=block_BD)

    def pick(self, row_numbers_P: np.ndarray) -> np.ndarray:
        """float32 (P, D): the vectors of these numbers, zeros for those of other ranks, so that the sum over ranks is whole."""
        picked_PD = np.zeros((len(row_numbers_P), self.n_width), np.float32)
        here_N = self.row_numbers
        if len(here_N):
            row_P = np.searchsorted(here_N, row_numbers_P).clip(max=len(here_N) - 1)
            is_here_P = here_N[row_P] == row_numbers_P
            for begin, block_BD in self:
                inside_P = is_here_P & (row_P >= begin) & (row_P < begin + len(block_BD))
                picked_PD[inside_P] = block_BD[row_P[inside_P] - begin]
        return picked_PD

    def _residual(self, begin: int, block_BD: np.ndarray) -> np.ndarray:
        for codes_N, codebook_KD in self._subtracted:
            block_BD -= codebook_KD[codes_N[begin : begin + len(block_BD)]]
        return block_BD

    def _open_block(self) -> None:
        held = len(self._blocks) * self._n_block * self.n_width * 4
        if self._blocks and self._limit_bytes is not None and held >= self._limit_bytes:
            if self._file is None:
                with tempfile.TemporaryFile() as file:
                    self._file = os.dup(file.fileno())
            for block_BD in self._blocks:
                view = block_BD.data.cast("B")
                while len(view):
                    view = view[os.write(self._file, view) :]
            self._n_filed += len(self._blocks) * self._n_block
            self._blocks = self._blocks[-1:]  # its memory serves again
        else:
            self._blocks.append(np.empty((self._n_block, self.n_width), np.float32))
        self._n_last = 0

    def _read_file(self) -> Iterator[np.ndarray]:
        if self._file is None:
            return
        n_bytes = self._n_block * self.n_width * 4
        for begin in range(0, self._n_filed, self._n_block):
            block_BD = np.empty((self._n_block, self.n_width), np.float32)
            view = block_BD.data.cast("B")
            done = 0
            while done < n_bytes:
                n_read = os.preadv(self._file, [view[done:]], begin * self.n_width * 4 + done)
                if n_read == 0:
                    raise OSError(f"{tempfile.gettempdir()}: the temporary file of the vectors has lost its end")
                done += n_read
            yield block_BD

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def available_bytes() -> int:
    """The memory this process may use: the machine's, or its control group's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            total = min(total, int(file.read()))
    return total


def scatter(blocks: Iterable[np.ndarray], world: World, *, limit_bytes: int | None = None) -> VectorStore:
    """The part of rank 0's vectors that this rank works on: block i goes to rank i modulo the number of ranks.

    blocks: float32 (n, D) each, of one width; read on rank 0 alone. A collective; raises what reading raises.
    """
    store: VectorStore | None = None
    for first, block_BD in _sent(blocks, world) if world.is_root else _received(world):
        store = VectorStore(block_BD.shape[1], limit_bytes=limit_bytes) if store is None else store
        store.append(first, block_BD)
    assert store is not None, "every rank receives an empty block at least"
    return store


def _sent(blocks: Iterable[np.ndarray], world: World) -> Iterator[tuple[int, np.ndarray]]:
    """Rank 0's own blocks, (first row number, block), while the others are sent theirs; each ends with an empty block."""
    first = width = 0
    for number, block_BD in enumerate(blocks):
        width, rank = block_BD.shape[1], number % world.size
        if rank == 0:
            yield first, block_BD
        else:
            world.send(np.array([first, width], np.int64).tobytes(), rank)
            world.send(np.ascontiguousarray(block_BD).data.cast("B"), rank)
        first += len(block_BD)
    for rank in range(1, world.size):
        world.send(np.array([-1, width], np.int64).tobytes(), rank)
    yield first, np.empty((0, width), np.float32)


def _received(world: World) -> Iterator[tuple[int, np.ndarray]]:
    while True:
        first, width = np.frombuffer(world.receive(0), np.int64).tolist()
        if first < 0:
            yield 0, np.empty((0, width), np.float32)
            return
        yield first, np.frombuffer(world.receive(0), np.float32).reshape(-1, width)
