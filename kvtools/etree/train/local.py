"""Local training of many devices at once, each from the model of its group, streamed in chunks.

Legend: J jobs (a device that trains from a model), G models to start from, B jobs of a chunk, b samples of a batch, n samples
of the largest job of a chunk, M models, N samples, P parameters. Leaves have no state of their own in a synchronous tree: a
job begins with a copy of a model and ends with a row of weights that is summed and dropped, so memory is O((G + chunk) P)
whatever the number of devices.

The invariant: the result of a job depends on the model it starts from, its samples, the seed, and `when`; not on its chunk,
thread or rank. The order of samples comes from a hash of (seed, when, epoch, device, position), which needs no state. A chunk's
weights fit in a core's cache, and one thread trains it.

Source: plain SGD as in FedAvg (McMahan et al. 2017). Not here: momentum, since it would be state.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from torch import Tensor

from kvtools.etree.train.models import Model
from kvtools.etree.tree.ranks import Ranks

# weights of a chunk on CPU; on an AMD EPYC four models of 0.6 MiB train a quarter faster than one, see bench/etree.py
_CACHE_BYTES = 4 << 20
_LARGEST_CHUNK = 256  # jobs of a chunk on CPU
_GPU_BYTES = 1 << 30  # weights of a chunk on a GPU
_TEST_SAMPLES, _TEST_MODELS = 1024, 16  # in one product of an evaluation
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Chunk:
    """Finished jobs: their indices in the list of jobs, int (B,), and their weights, float32 (B, P) on the trainer's device."""

    jobs: np.ndarray
    rows: Tensor


@dataclass
class LocalTrainer:
    """The samples of all devices, and how each device trains on its own."""

    model: Model
    x: np.ndarray  # float32 (N, ...)
    y: np.ndarray  # int64 (N,)
    index: np.ndarray  # int64 (N,): samples, device after device
    offsets: np.ndarray  # int64 (devices + 1,): where each device's samples begin in `index`
    batch: int
    lr: float
    seed: int
    n_threads: int = 1
    chunk: int | None = None  # jobs at once; None: as many as the cache holds
    torch_device: str = "cpu"
    _x: Tensor = field(init=False)
    _y: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # one thread a chunk: chunks run in parallel, and the result does not depend on how many
        torch.set_num_threads(1 if self.torch_device == "cpu" else torch.get_num_threads())
        self._x = torch.from_numpy(np.ascontiguousarray(self.x)).to(self.torch_device)
        self._y = torch.from_numpy(self.y).to(self.torch_device)
        n_bytes = _CACHE_BYTES if self.torch_device == "cpu" else _GPU_BYTES
        fitting = max(1, n_bytes // (4 * self.model.n_parameters))
        self.chunk = self.chunk or (min(_LARGEST_CHUNK, fitting) if self.torch_device == "cpu" else fitting)

    def train(self, start_GP: Tensor, jobs: np.ndarray, group_J: np.ndarray, n_epochs: int, when: int) -> Iterator[Chunk]:
        """The weights of each job after n_epochs passes over its samples, chunk after chunk.

        start_GP: float32 (G, P). jobs: device numbers, int (J,). group_J: the row of start_GP that each begins with. when: the
        step, which the order of samples depends on. Chunks hold jobs of similar size.
        """
        assert self.chunk is not None
        sizes = self.offsets[jobs + 1] - self.offsets[jobs]
        # by group first, so that a chunk's sums belong to few groups; then by size, so that little is padded
        order = np.lexsort((jobs, -sizes, group_J))
        parts = [order[begin : begin + self.chunk] for begin in range(0, len(order), self.chunk)]
        if self.n_threads == 1 or self.torch_device != "cpu":
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
            step = self.model.sgd(rows_BP, self.lr)
            for epoch in range(n_epochs):
                order_Bn = shuffled(self.seed, when, epoch, jobs_B, sizes_B)
                position_n = np.arange(order_Bn.shape[1])
                is_sample = position_n < sizes_B[:, None]  # the rest is padding
                # how many of a device's samples the batch of each position holds
                count_Bn = np.clip(sizes_B[:, None] - position_n // self.batch * self.batch, 1, self.batch)
                weight_Bn = torch.from_numpy((is_sample / count_Bn).astype(np.float32)).to(self.torch_device)
                samples = self.index[self.offsets[jobs_B][:, None] + np.where(is_sample, order_Bn, 0)]
                samples_Bn = torch.from_numpy(samples).to(self.torch_device)
                # computed once an epoch, not once a batch: a batch of a small model takes less time than ten calls of numpy
                for samples_Bb, weight_Bb in zip(
                    torch.split(samples_Bn, self.batch, 1), torch.split(weight_Bn, self.batch, 1), strict=True
                ):
                    flat = samples_Bb.reshape(-1)
                    x, y = self._x.index_select(0, flat), self._y.index_select(0, flat)
                    step(x.view(*samples_Bb.shape, *x.shape[1:]), y.view(samples_Bb.shape), weight_Bb)
            return rows_BP

    def evaluate(self, rows_MP: Tensor, x: Tensor, y: Tensor, world: Ranks | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and mean cross-entropy of each model on the same samples, float64 (M,) each.

        rows_MP: float32 (M, P). x: float32 (N, ...). y: int64 (N,). All on the trainer's device, and the same on all ranks of
        world, which share the samples; then a collective. The bits do not depend on ranks.
        """
        blocks = list(product(range(0, len(y), _TEST_SAMPLES), range(0, len(rows_MP), _TEST_MODELS)))
        figures = np.zeros((-(-len(y) // _TEST_SAMPLES), 2, len(rows_MP)))  # right answers and losses of each block of samples
        with torch.inference_mode():
            for sample, row in blocks if world is None else blocks[world.rank :: world.size]:
                models, samples = slice(row, row + _TEST_MODELS), slice(sample, sample + _TEST_SAMPLES)
                logits, labels = self.model.logits(rows_MP[models], x[samples]), y[samples]
                n_right, loss = figures[sample // _TEST_SAMPLES, :, models]
                n_right[:] = (logits.argmax(dim=2) == labels).sum(dim=1).cpu().numpy()
                logprob = torch.log_softmax(logits, dim=2).gather(2, labels.expand(len(logits), -1)[:, :, None])
                loss[:] = -logprob.sum(dim=(1, 2), dtype=torch.float64).cpu().numpy()
        figures = figures if world is None else world.sum_array(figures)
        right_M, loss_M = figures.sum(axis=0) / len(y)
        return right_M, loss_M

    def local_accuracies(self, devices: np.ndarray, n_epochs: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Accuracy of each of these devices on these test samples after n_epochs alone, float64 (m,): KMA's acc_j.

        devices: int (m,). x: float32 (N, ...). y: int64 (N,). All devices start from the same model.
        """
        test_x, test_y = torch.from_numpy(x).to(self.torch_device), torch.from_numpy(y).to(self.torch_device)
        accuracy = np.empty(len(devices))
        start = torch.from_numpy(self.model.init(self.seed)[None]).to(self.torch_device)
        for chunk in self.train(start, devices, np.zeros(len(devices), np.int64), n_epochs, when=-1):
            accuracy[chunk.jobs] = self.evaluate(chunk.rows, test_x, test_y)[0]
        return accuracy


def shuffled(seed: int, when: int, epoch: int, jobs_B: np.ndarray, sizes_B: np.ndarray) -> np.ndarray:
    """The order in which each job passes over its samples, int64 (B, n): the first sizes_B entries are a permutation.

    jobs_B: device numbers. Sorted by a hash of (seed, when, epoch, device, position), splitmix64's finaliser (Steele et al.
    2014) applied to each in turn, so that any job's order can be computed without any other's.
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
