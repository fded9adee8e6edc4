"""Local training of many devices at once, each from the model of its group, streamed in chunks.

Legend: J jobs (a device that trains from a model), G models to start from, B jobs of a chunk, b samples of a batch, P
parameters. Leaves have no state of their own in a synchronous tree: a job begins with a copy of a model and ends with a row
of weights that is summed and forgotten, so memory is O((G + chunk) P) whatever the number of devices.

The invariant: what a job gives depends on the model it starts from, its samples, the seed, and `when`; not on its chunk, thread
or rank. The order of samples comes from a hash of (seed, when, device, place), which needs no state. Chunks are cut so that
their weights stay in a core's cache; each is the work of one thread.

Source: plain SGD as in FedAvg (McMahan et al. 2017). Not here: momentum, since it would be state.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from torch import Tensor

from kvtools.etree.train.models import Model

_CACHE_BYTES = (
    4 << 20
)  # of weights in a chunk on CPU; on an AMD EPYC four models of 0.6 MiB do a quarter more than one, see bench/etree.py
_MOST = 256  # jobs in a chunk on CPU
_GPU_BYTES = 1 << 30
_TESTED, _TOLD = 2048, 16  # samples and models in one product of an evaluation
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Chunk:
    """Jobs done: their places in the list that was asked for, and their weights, float32 (B, P) on the trainer's device."""

    jobs: np.ndarray
    rows: Tensor


@dataclass
class Trainer:
    """The samples of all devices, and how each trains. x: float32 (N, ...), y: int64 (N,), index and offsets as in a roster."""

    model: Model
    x: np.ndarray
    y: np.ndarray
    index: np.ndarray
    offsets: np.ndarray
    batch: int
    rate: float
    seed: int
    n_threads: int = 1
    chunk: int | None = None
    place: str = "cpu"
    _x: Tensor = field(init=False)
    _y: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # one thread a chunk: chunks are what is done in parallel, and what comes out does not depend on how many
        torch.set_num_threads(1 if self.place == "cpu" else torch.get_num_threads())
        self._x = torch.from_numpy(np.ascontiguousarray(self.x)).to(self.place)
        self._y = torch.from_numpy(self.y).to(self.place)
        n_bytes = _CACHE_BYTES if self.place == "cpu" else _GPU_BYTES
        fitting = max(1, n_bytes // (4 * self.model.n_parameters))
        self.chunk = self.chunk or (min(_MOST, fitting) if self.place == "cpu" else fitting)

    def train(self, start_GP: Tensor, jobs: np.ndarray, group_J: np.ndarray, n_epochs: int, when: int) -> Iterator[Chunk]:
        """Each job's weights after n_epochs passes over its samples, chunk after chunk. jobs: device numbers (J,); group_J:
        which row of start_GP each begins with. `when` tells this round from others. Chunks hold jobs of like size."""
        assert self.chunk is not None
        sizes = self.offsets[jobs + 1] - self.offsets[jobs]
        # by group first, so that a chunk's sums go to few places; within it by size, so that little is padded
        order = np.lexsort((jobs, -sizes, group_J))
        parts = [order[begin : begin + self.chunk] for begin in range(0, len(order), self.chunk)]
        if self.n_threads == 1 or self.place != "cpu":
            for part in parts:
                yield Chunk(part, self._train(start_GP, jobs[part], group_J[part], n_epochs, when))
            return
        with ThreadPoolExecutor(self.n_threads) as pool:
            waiting: list[tuple[np.ndarray, Future[Tensor]]] = []
            for part in parts:
                waiting.append((part, pool.submit(self._train, start_GP, jobs[part], group_J[part], n_epochs, when)))
                if len(waiting) > 2 * self.n_threads:
                    done, future = waiting.pop(0)
                    yield Chunk(done, future.result())
            for done, future in waiting:
                yield Chunk(done, future.result())

    def _train(self, start_GP: Tensor, jobs_B: np.ndarray, group_B: np.ndarray, n_epochs: int, when: int) -> Tensor:
        with torch.no_grad():  # not inference_mode: models may turn gradients on for a step
            rows_BP = start_GP[torch.from_numpy(group_B).to(start_GP.device)]
            sizes_B = self.offsets[jobs_B + 1] - self.offsets[jobs_B]
            step = self.model.descent(rows_BP, self.rate)
            for epoch in range(n_epochs):
                order_Bn = shuffled(self.seed, when, epoch, jobs_B, sizes_B)
                place_n = np.arange(order_Bn.shape[1])
                is_there = place_n < sizes_B[:, None]
                # how many of a device's samples the batch of each place holds
                count_Bn = np.clip(sizes_B[:, None] - place_n // self.batch * self.batch, 1, self.batch)
                weight_Bn = torch.from_numpy((is_there / count_Bn).astype(np.float32)).to(self.place)
                samples = self.index[self.offsets[jobs_B][:, None] + np.where(is_there, order_Bn, 0)]
                samples_Bn = torch.from_numpy(samples).to(self.place)
                # what depends on no batch is made once an epoch: of small models a batch takes less than ten calls of numpy
                for some, weight in zip(
                    torch.split(samples_Bn, self.batch, 1), torch.split(weight_Bn, self.batch, 1), strict=True
                ):
                    flat = some.reshape(-1)
                    x, y = self._x.index_select(0, flat), self._y.index_select(0, flat)
                    step(x.view(*some.shape, *x.shape[1:]), y.view(some.shape), weight)
            return rows_BP

    def evaluate(self, rows_MP: Tensor, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and mean cross-entropy, float64 (M,), of each model on the same samples."""
        right, loss = np.zeros(len(rows_MP)), np.zeros(len(rows_MP))
        with torch.inference_mode():
            for begin, place in product(range(0, len(y), _TESTED), range(0, len(rows_MP), _TOLD)):
                some = slice(place, place + _TOLD)
                part = y[begin : begin + _TESTED]
                logits = self.model.logits(rows_MP[some], x[begin : begin + _TESTED])
                right[some] += (logits.argmax(dim=2) == part).sum(dim=1).cpu().numpy()
                told = torch.log_softmax(logits, dim=2).gather(2, part.expand(len(logits), -1)[:, :, None])
                loss[some] -= told.sum(dim=(1, 2), dtype=torch.float64).cpu().numpy()
        return right / len(y), loss / len(y)

    def accuracies(self, start_P: np.ndarray, n_epochs: int, devices: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """float64: what each device reaches alone on these test samples after n_epochs from the same start (KMA's acc_j)."""
        test_x, test_y = torch.from_numpy(x).to(self.place), torch.from_numpy(y).to(self.place)
        found = np.empty(len(devices))
        start = torch.from_numpy(start_P[None]).to(self.place)
        for chunk in self.train(start, devices, np.zeros(len(devices), np.int64), n_epochs, when=-1):
            found[chunk.jobs] = self.evaluate(chunk.rows, test_x, test_y)[0]
        return found


def cores(n_sharing: int) -> int:
    """How many threads one of so many processes on this machine should use."""
    return max(1, len(os.sched_getaffinity(0)) // n_sharing)


def shuffled(seed: int, when: int, epoch: int, jobs_B: np.ndarray, sizes_B: np.ndarray) -> np.ndarray:
    """int64 (B, n): the order in which each job sees its samples, by place; its first sizes_B entries are a permutation.

    Sorted by a hash of (seed, when, epoch, device, place), splitmix64's finaliser (Steele et al. 2014) applied to each in turn:
    any job's order can be had without any other's.
    """
    width = int(sizes_B.max(initial=0))
    key = _mix(_mix(_mix(np.uint64(seed) ^ np.uint64(_GOLDEN), when & 0xFFFFFFFFFFFFFFFF), epoch), jobs_B)[:, None]
    keys_Bn = _mix(key, np.arange(width)) >> np.uint64(1)
    keys_Bn[np.arange(width) >= sizes_B[:, None]] = np.uint64(0xFFFFFFFFFFFFFFFF)
    return np.argsort(keys_Bn, axis=1, kind="stable")


def _mix(state: "np.uint64 | np.ndarray", word: "int | np.ndarray") -> np.ndarray:
    with np.errstate(over="ignore"):
        z = np.asarray(state ^ (np.asarray(word).astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(_GOLDEN)))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))
