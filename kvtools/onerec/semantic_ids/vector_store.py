"""Vectors to be gone through many times: in memory, or, past a limit, in an unlinked file in $TMPDIR.

Filled block by block and never joined, so that the peak is the input and one block. What the limit is changes the speed,
not the result.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np

from kvtools.world import World

_BLOCK_BYTES = 32 << 20


class Rows:
    """Float32 vectors (n, D), each with its number in the whole; iterate for (first row, block), blocks in order.

    Blocks in memory are the data itself; those of a file are read anew each time.
    """

    def __init__(self, n_width: int, *, limit_bytes: int | None = None) -> None:
        self.n_width = n_width
        self._n_block = max(1, _BLOCK_BYTES // (4 * n_width))
        self._limit_bytes = limit_bytes
        self._blocks: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []
        self._file: int | None = None
        self._n_filed = 0
        self._n_last = 0  # rows in the last block
        self._taken: list[tuple[np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return self._n_filed + sum(map(len, self._blocks[:-1])) + (self._n_last if self._blocks else 0)

    @property
    def numbers(self) -> np.ndarray:
        """The number of each row in the whole, int64 (n,)."""
        if len(self._numbers) != 1:
            self._numbers = [np.concatenate([np.empty(0, np.int64), *self._numbers])]
        return self._numbers[0]

    @property
    def is_on_disk(self) -> bool:
        return self._file is not None

    def append(self, first: int, vectors_ND: np.ndarray) -> None:
        """Add rows whose numbers are first, first + 1, …; copied. Not after `take_away`."""
        assert not self._taken, "rows may be added until something is taken away from them"
        self._numbers.append(np.arange(first, first + len(vectors_ND), dtype=np.int64))
        done = 0
        while done < len(vectors_ND):
            if not self._blocks or self._n_last == self._n_block:
                self._open_block()
            some = vectors_ND[done : done + self._n_block - self._n_last]
            self._blocks[-1][self._n_last : self._n_last + len(some)] = some
            self._n_last += len(some)
            done += len(some)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        begin = 0
        for block_BD in self._filed():
            yield begin, self._left_of(begin, block_BD)
            begin += len(block_BD)
        for number, block_BD in enumerate(self._blocks, start=1):
            filled_BD = block_BD[: self._n_last] if number == len(self._blocks) else block_BD
            yield begin, filled_BD if self._file is None else self._left_of(begin, filled_BD.copy())
            begin += len(filled_BD)

    def take_away(self, codes_N: np.ndarray, codebook_KD: np.ndarray) -> None:
        """Subtract from each row the code it was given: from now on the rows are the residuals."""
        if self._file is not None:
            self._taken.append((codes_N, codebook_KD))
            return
        for begin, block_BD in self:
            np.subtract(block_BD, codebook_KD[codes_N[begin : begin + len(block_BD)]], out=block_BD)

    def pick(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of these numbers, in this order, zeros for those that are not here: sums over ranks are whole."""
        picked = np.zeros((len(numbers), self.n_width), np.float32)
        order = np.argsort(self.numbers, kind="stable")
        place = np.searchsorted(self.numbers, numbers, sorter=order).clip(max=max(len(order) - 1, 0))
        here = order[place] if len(order) else np.zeros(len(numbers), np.int64)
        is_here = self.numbers[here] == numbers if len(order) else np.zeros(len(numbers), bool)
        for begin, block_BD in self:
            inside = is_here & (here >= begin) & (here < begin + len(block_BD))
            picked[inside] = block_BD[here[inside] - begin]
        return picked

    def _left_of(self, begin: int, block_BD: np.ndarray) -> np.ndarray:
        for codes_N, codebook_KD in self._taken:
            block_BD -= codebook_KD[codes_N[begin : begin + len(block_BD)]]
        return block_BD

    def _open_block(self) -> None:
        held = len(self._blocks) * self._n_block * self.n_width * 4
        if self._blocks and self._limit_bytes is not None and held >= self._limit_bytes:
            if self._file is None:
                with tempfile.TemporaryFile() as file:
                    self._file = os.dup(file.fileno())
            for block_BD in self._blocks:
                _write_all(self._file, block_BD)
            self._n_filed += len(self._blocks) * self._n_block
            self._blocks = self._blocks[-1:]  # its memory serves again
        else:
            self._blocks.append(np.empty((self._n_block, self.n_width), np.float32))
        self._n_last = 0

    def _filed(self) -> Iterator[np.ndarray]:
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
                    raise OSError(f"{tempfile.gettempdir()}: rows put aside are no longer there")
                done += n_read
            yield block_BD

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def room_bytes() -> int:
    """What this process may use of memory: the machine's, or its control group's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            total = min(total, int(file.read()))
    return total


def _write_all(fd: int, block_BD: np.ndarray) -> None:
    view = block_BD.data.cast("B")
    while len(view):
        view = view[os.write(fd, view) :]


def deal(blocks: Iterable[np.ndarray], world: World, *, limit_bytes: int | None = None) -> Rows:
    """This rank's share of the vectors that rank 0 reads: block i goes to rank i modulo the number of ranks.

    blocks: float32 (n, D) each, of one width; looked at on rank 0 alone. A collective; raises what reading raises.
    """
    if not world.is_root:
        return _dealt(world, limit_bytes)
    rows: Rows | None = None
    first = width = 0
    for number, block_BD in enumerate(blocks):
        width = block_BD.shape[1]
        rows = Rows(width, limit_bytes=limit_bytes) if rows is None else rows
        to = number % world.size
        if to == 0:
            rows.append(first, block_BD)
        else:
            world.send(np.array([first, width], np.int64).tobytes(), to)
            world.send(np.ascontiguousarray(block_BD).data.cast("B"), to)
        first += len(block_BD)
    for to in range(1, world.size):
        world.send(np.array([-1, width], np.int64).tobytes(), to)
    return Rows(width, limit_bytes=limit_bytes) if rows is None else rows


def _dealt(world: World, limit_bytes: int | None) -> Rows:
    rows: Rows | None = None
    while True:
        first, width = np.frombuffer(world.receive(0), np.int64).tolist()
        rows = Rows(width, limit_bytes=limit_bytes) if rows is None else rows
        if first < 0:
            return rows
        rows.append(first, np.frombuffer(world.receive(0), np.float32).reshape(-1, width))
