"""All the ranks that work on this command together: one without MPI, several under mpiexec or srun.

`World.open()` finds them from the launcher's environment; a serial run never imports mpi4py. The invariant to keep:
whatever one rank may know alone (a signal, a fault, a deadline) is agreed with `any` before a branch that communicates.
Rank 0 owns stdin, stdout and messages; the others see an empty stdin, and their stdout is stderr. Where a rank dies, the others
end too, at the next message that they would wait for (liveness.py).

Not here: launching processes (mpiexec's and srun's work) and GPUs.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

from kvtools.environment import count_in
from kvtools.errors import Fault, Usage
from kvtools.launcher import is_stdin_limited, launched, n_ranks_here, refuse_silent_copies
from kvtools.liveness import KILLED, LAUNCHER_GONE, Liveness

_T = TypeVar("_T")
# MPICH's blocking calls spin on a core that a decoder could use; we poll instead, ever more seldom, until the other ranks have
# come: of collectives, which ranks come to at nearly one time, without a pause for a millisecond, since waking up takes as long
# as many a sum; 64 polls, some 20 µs, stand between two looks at the clock. MPICH moves some ten kilobytes a poll: a message
# itself is polled without a pause
_POLLS, _POLL_S, _SPIN_S = 64, 0.002, 0.001
_NUMBER_BYTES, _LENGTH_BYTES = 64, 8
_BLOCK_BYTES = 1 << 20
_SLICE_BYTES = 1 << 21  # of a sum over ranks, in one message
_SUMMED_BYTES = 1 << 26  # of a sum over many ranks, at once
_SMALL_BYTES = 1 << 12  # what all send to all: a second message would take longer
_FORWARD_S = 0.5
_NEWS_S = 2.0  # from a broken connection to the news of who died

_stop_signals: list[int] = []


class World:
    """Rank and size, and the few messages between ranks. `World()` is the world of one; a command uses `World.open()`."""

    def __init__(self, comm: Any = None) -> None:
        self._comm = comm
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()
        # ranks that share this machine's cores; every launcher known here says so in its environment
        self.local_size: int = 1 if comm is None else n_ranks_here(self.size)
        self._liveness: Liveness | None = None
        if comm is not None:
            self._liveness = Liveness(self.rank, self.size, self.broadcast, self._end_now)

    @staticmethod
    def open(*, is_part: bool = False) -> "World":
        """The world this process was launched into. Must be called once, before stdin or stdout are touched.

        is_part: --shard is given, so that tasks of srun that cannot see each other are meant. Raises Usage for others."""
        n_launched = launched()[1]
        if n_launched == 1:
            if not is_part:
                refuse_silent_copies()
            return World()
        from mpi4py import MPI

        if MPI.COMM_WORLD.Get_size() != n_launched:
            raise Usage(
                f"the launcher started {n_launched} ranks, and the MPI library of mpi4py sees {MPI.COMM_WORLD.Get_size()}. "
                "Use the launcher that belongs to that library, or srun --mpi=pmi2 with MPICH."
            )
        world = World(MPI.COMM_WORLD)
        if world.rank > 0:
            _drain_stdin()
            sys.stdout.flush()
            os.dup2(2, 1)
        return world

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, which owns stdin, stdout and messages."""
        return self.rank == 0

    def any(self, flag: object) -> bool:
        """Whether the flag is set on any rank; the same answer on all. A collective: every rank must call it."""
        return bool(self.sum(int(bool(flag))) > 0)

    def sum(self, value: float) -> Any:
        """The sum over ranks, added in rank order so that every rank gets the same bits."""
        first, *others = self._gather(value)
        return sum(others, start=first)

    def sum_array(self, array: Any) -> Any:
        """The element-wise sum of every rank's numpy array (one shape and dtype), added in rank order: the same bits on all.

        Each rank adds up one slice and sends it to all: twice the array's bytes a rank, whatever the number of ranks. Memory:
        size * 6 MiB beside the result, and 192 MiB at most.
        """
        if self._comm is None:
            return array
        import numpy as np

        total = np.empty_like(array, order="C")
        flat, out = np.ascontiguousarray(array).reshape(-1), total.reshape(-1)
        if flat.nbytes <= _SMALL_BYTES:
            everyone = np.empty((self.size, len(flat)), flat.dtype)
            self._exchange(self._comm.Iallgather, flat, everyone)
            out[:] = _sum_in_order(everyone)
            return total
        self._finish(self._comm.Ibarrier())
        slice_bytes = min(_SLICE_BYTES, _SUMMED_BYTES // self.size)
        step = self.size * min(-(-len(flat) // self.size), max(1, slice_bytes // flat.itemsize))
        for begin in range(0, len(flat), step):
            n = min(step, len(flat) - begin)
            mine = np.zeros((self.size, -(-n // self.size)), flat.dtype)  # row r: the slice that rank r adds up
            mine.reshape(-1)[:n] = flat[begin : begin + n]
            slices, sums = np.empty_like(mine), np.empty_like(mine)
            self._exchange(self._comm.Ialltoall, mine, slices, is_met=True)
            self._exchange(self._comm.Iallgather, _sum_in_order(slices), sums, is_met=True)
            out[begin : begin + n] = sums.reshape(-1)[:n]
        return total

    def gather_array(self, array: Any) -> Any:
        """Every rank's numpy array, one after the other along the first axis, in rank order; lengths may differ."""
        if self._comm is None:
            return array
        import numpy as np

        lengths = self._gather(len(array))
        mine = np.zeros((max(lengths), *array.shape[1:]), array.dtype)
        mine[: len(array)] = array
        everyone = np.empty((self.size, *mine.shape), array.dtype)
        if everyone.nbytes:
            self._exchange(self._comm.Iallgather, mine, everyone, is_met=True)
        return np.concatenate([rows[:n] for rows, n in zip(everyone, lengths, strict=True)])

    def max(self, value: int) -> int:
        """The largest value on any rank."""
        return int(max(self._gather(value)))

    def shard(self, items: Sequence[_T]) -> Sequence[_T]:
        """This rank's part: every size-th item, so that neighbours, often alike in cost, go to different ranks."""
        return items[self.rank :: self.size]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, plain JSON, on every rank."""
        if self._comm is None:
            return value
        text = bytearray(json.dumps(value).encode()) if self.is_root else bytearray()
        text = text.ljust(self.max(len(text)))
        self._finish(self._comm.Ibcast([text, self._byte()], root=0), is_met=True)
        return json.loads(text)

    def send(self, message: bytes | memoryview, to: int = 0) -> None:
        """Send bytes to a rank, by default rank 0; returns when it has received them."""
        length = memoryview(message).nbytes.to_bytes(_LENGTH_BYTES, "little")
        self._finish(self._comm.Isend([length, self._byte()], dest=to), spin_s=0.0)
        self._finish(self._comm.Irecv([bytearray(1), self._byte()], source=to), spin_s=0.0)
        self._finish(self._comm.Isend([message, self._byte()], dest=to), is_met=True)

    def receive(self, source: int) -> bytearray:
        """The next bytes that rank `source` sent to this one."""
        length = bytearray(_LENGTH_BYTES)
        self._finish(self._comm.Irecv([length, self._byte()], source=source), spin_s=0.0)
        message = bytearray(int.from_bytes(length, "little"))
        self._finish(self._comm.Isend([b"\0", self._byte()], dest=source), is_met=True)  # it waits for this rank no longer
        self._finish(self._comm.Irecv([message, self._byte()], source=source), is_met=True)
        return message

    def abort(self, code: int) -> None:
        """End all ranks now with this exit code; does nothing in a world of one."""
        if self._comm is not None:
            sys.stderr.flush()
            if self._liveness is not None:
                self._liveness.end(code)
            # the launcher forwards stderr when it gets to it, and drops what it has not read when it sees the abort
            time.sleep(_FORWARD_S)
            if self._liveness is not None and self._liveness.is_connected and not is_stdin_limited():
                os._exit(code)  # the others do so, too; srun would kill all after an abort, and exit with 137
            self._comm.Abort(code)

    def close(self) -> None:
        """Wait until all ranks are done, then leave. A collective, called once, at the end of a run."""
        if self._comm is not None:
            self._finish(self._comm.Ibarrier())
        if self._liveness is not None:
            self._liveness.end()

    @contextmanager
    def explaining_failures(self) -> Iterator[None]:
        """Within it, a RuntimeError, as of a broken connection, becomes the Fault of a rank that has died, if one has."""
        try:
            yield
        except RuntimeError:
            until = time.monotonic() + _NEWS_S
            while self._liveness is not None and self._liveness.news is None and time.monotonic() < until:
                time.sleep(_POLL_S)
            self._end_if_others_died()
            raise

    def _exchange(self, start: Callable[..., Any], mine: Any, others: Any, *, is_met: bool = False) -> None:
        """A collective from one numpy array into another, as bytes; is_met: see _finish."""
        self._finish(start(*([array.view("u1"), self._byte()] for array in (mine, others))), is_met=is_met)

    def _finish(self, request: Any, *, is_met: bool = False, spin_s: float = _SPIN_S) -> None:
        """is_met: the other ranks have come for this message, so that its bytes move on at each poll, and none is put off.
        spin_s: for so long there is no pause, whoever has come."""
        begun = time.monotonic()
        while not any(request.Test() for _ in range(_POLLS)):
            self._end_if_others_died()
            waited_s = time.monotonic() - begun
            if is_met or waited_s < spin_s:
                os.sched_yield()
            else:
                time.sleep(min(waited_s / 4, _POLL_S))

    def _end_if_others_died(self) -> None:
        """Raise Fault, with its exit code, where another rank has died."""
        if self._liveness is not None and self._liveness.news is not None:
            fault = Fault(self._obituary(*self._liveness.news))
            fault.code = self._liveness.news[1]
            raise fault

    def _obituary(self, dead: int, code: int) -> str:
        """What to print of a rank that died; empty where another rank prints it, or the dead one has."""
        if code not in (KILLED, LAUNCHER_GONE) or self.rank != (1 if dead == 0 else 0):
            return ""
        if dead < 0:
            return "the launcher of the ranks is gone, so that they end too. Start them again."
        return f"rank {dead} ended without a word, so that the others end too. The log of its machine may say why."

    def _end_now(self, dead: int, code: int) -> None:
        """End this process at once: it computes, and does not come to a message in time."""
        if text := self._obituary(dead, code):
            print(f"[r{self.rank}/{self.size}] kvtools: {text}", file=sys.stderr, flush=True)
        os._exit(code)

    def _byte(self) -> Any:
        from mpi4py import MPI

        return MPI.BYTE

    def _gather(self, number: float) -> list[Any]:
        """The number of every rank, in rank order."""
        if self._comm is None:
            return [number]
        import numpy as np

        # as text: ints stay ints of any size, floats keep their bits, and nothing is pickled
        mine = np.frombuffer(json.dumps(number).encode().ljust(_NUMBER_BYTES), np.uint8).copy()
        everyone = np.empty((self.size, _NUMBER_BYTES), np.uint8)
        self._exchange(self._comm.Iallgather, mine, everyone)
        return [json.loads(row.tobytes()) for row in everyone]


@dataclass
class Stop:
    """Whether this rank was asked to stop: by SIGTERM, by SIGUSR2, or by the end of its Slurm job less than `margin_s` away."""

    margin_s: float = 60.0

    def __post_init__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, _record_signal)
        end = count_in("SLURM_JOB_END_TIME")  # epoch seconds; set by Slurm since about 20.11
        self._deadline = float("inf") if end is None else float(end)

    def __bool__(self) -> bool:
        return bool(_stop_signals) or time.time() > self._deadline - self.margin_s


def shard(items: Sequence[_T], spec: str | None) -> Sequence[_T]:
    """Part i of n (`i/n`, i from 0) of a list, in order: the parts one after the other give the whole list. Raises Usage."""
    if spec is None:
        return items
    i, slash, n = spec.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise Usage(f"--shard {spec} is not a part of n. Give I/N with 0 <= I < N, as 0/16.")
    begin, end = (len(items) * (int(i) + step) // int(n) for step in (0, 1))
    return items[begin:end]


def _drain_stdin() -> None:
    """Read what the launcher hands this rank as stdin into nothing: it must not wait, nor rank 0. 0 becomes /dev/null."""
    handed = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    def drain() -> None:
        with suppress(OSError):
            while os.read(handed, _BLOCK_BYTES):
                pass

    threading.Thread(target=drain, daemon=True, name="stdin").start()


def _sum_in_order(rows: Any) -> Any:
    """The sum of the rows of a numpy array, the first before the others: `sum(axis=0)` adds single columns in another order."""
    total = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total


def _record_signal(number: int, _frame: FrameType | None) -> None:
    _stop_signals.append(number)
