"""Clips decoded by isolated worker processes, results in the order of the clips.

A decoder may hang, crash or leak memory: each worker is a process that must show progress within a time limit, and is replaced
when it dies. Two results a worker are held, or as many as who takes them says, in spools, so that memory grows neither with the
number of clips nor with their length.
"""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from select import select
from typing import Any, Self

import numpy as np

from kvtools.artifact import blob
from kvtools.artifact.files import Spool, widen_pipe
from kvtools.artifact.stream import Raw, compress
from kvtools.errors import Corrupt, Missing
from kvtools.video.inputs import Clip
from kvtools.video.recipe import VideoRecipe

_CLIPS_A_WORKER = 256  # then a new process: decoders leak memory (dmlc/decord#197, #208)
_CHUNK_BYTES = 1 << 20
_LONGEST_S = 1e7  # four months: the system takes no time limit of any length
_POLL_S = 0.05  # how often a stop is looked for while a result is awaited


@dataclass(frozen=True)
class Outcome:
    """The result of a clip: its encoded record, or a fault; neither where the run was stopped before it."""

    key: str
    record: Spool | None = None  # or, where it is compressed, a stream's frame of it
    fault: str | None = None
    # of the fault: damaged; unreadable, for the system; unfit, for the recipe; mixed, of several shapes; model, for the
    # encoder; late, without progress; no-file, of a pipe or a URL
    cause: str = "damaged"
    compressed: "Compressed | None" = None

    def decoded(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The tensors and JSON fields of the record, which is closed."""
        assert self.record is not None, "the caller looks first"
        assert self.compressed is None, "records are decoded before they are compressed"
        with self.record as record:
            return blob.decode(bytearray(b"".join(record)))

    def head(self) -> tuple[dict[str, list[int]], dict[str, Any]]:
        """The shapes of the record's tensors and its JSON fields; it stays open."""
        assert self.record is not None, "the caller looks first"
        return blob.head_of(self.record) if self.compressed is None else (self.compressed.shapes, self.compressed.fields)

    def compress(self, level: int) -> "Outcome":
        """The same with a frame in place of the record, which is closed. level: of zstd, above 0."""
        if self.record is None:
            return self
        frame = Spool()
        with self.record as record:
            compressed = Compressed(*self.head(), compress(self.key, record, level, frame))
        return replace(self, record=frame, compressed=compressed)

    @property
    def code(self) -> int:
        """The exit code that the fault asks for."""
        return Missing.code if self.cause in ("unreadable", "no-file") else Corrupt.code

    @property
    def is_done(self) -> bool:
        """Whether the clip was tried."""
        return self.record is not None or self.fault is not None


@dataclass(frozen=True)
class Compressed:
    """What is told of a record that is compressed."""

    shapes: dict[str, list[int]]  # of its tensors
    fields: dict[str, Any]  # of JSON
    raw: Raw


class Pool:
    """`n_jobs` workers, each with `n_threads` decoder threads; one without progress for `timeout_s` is given up.

    A context manager.
    """

    def __init__(self, recipe: VideoRecipe, *, n_jobs: int, n_threads: int, timeout_s: float) -> None:
        self._recipe = recipe.to_json()
        self._n_jobs = n_jobs
        self._n_threads = n_threads
        self._timeout_s = min(timeout_s, _LONGEST_S)
        self._threads = ThreadPoolExecutor(n_jobs)
        self._local = threading.local()
        self._workers: list[_WorkerProcess] = []

    def run(self, clips: Iterable[Clip], *, stop: Callable[[], bool] = lambda: False, n_ahead: int = 2) -> Iterator[Outcome]:
        """The outcome of each clip, in order. Once `stop` is true, the rest is not done. n_ahead: results that a worker may be
        ahead of who takes them; they are held."""
        waiting: deque[tuple[str, Future[Outcome] | None]] = deque()
        for clip in clips:
            waiting.append((clip.key, None if stop() else self._threads.submit(self._tokenize, clip)))
            if len(waiting) >= n_ahead * self._n_jobs:
                yield self._await(*waiting.popleft(), stop)
        while waiting:
            yield self._await(*waiting.popleft(), stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()

    def _await(self, key: str, future: "Future[Outcome] | None", stop: Callable[[], bool]) -> Outcome:
        while future is not None and not stop():
            try:
                return future.result(timeout=_POLL_S)
            except TimeoutError:
                continue
        if future is not None:
            future.cancel()
        return Outcome(key)

    def _tokenize(self, clip: Clip) -> Outcome:
        worker: _WorkerProcess | None = getattr(self._local, "worker", None)
        if worker is None or not worker.is_fit:
            if worker is not None:
                worker.kill()
            worker = self._local.worker = _WorkerProcess()
            self._workers.append(worker)
        job = {
            "path": clip.path,
            "key": clip.key,
            "recipe": self._recipe | clip.span(),
            "fields": clip.fields,
            "member": clip.member,
            "n_threads": self._n_threads,
            "timeout_s": self._timeout_s,
        }
        record = Spool()
        try:
            answer = worker.ask(job, self._timeout_s, record)
        except _Failure as failure:
            worker.kill()
            answer = {"fault": str(failure), "cause": failure.cause}
        if "fault" in answer:
            record.close()
            return Outcome(clip.key, None, answer["fault"], answer["cause"])
        return Outcome(clip.key, record)


class _Failure(Exception):
    """A worker died, or must be killed."""

    def __init__(self, fault: str, cause: str = "damaged") -> None:
        super().__init__(fault)
        self.cause = cause


class _WorkerProcess:
    """One process, and the pipe to it."""

    def __init__(self) -> None:
        # numeric libraries must not start threads of their own: the workers use all cores already
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        for name in [n for n in environment if n.startswith(("PMI_", "PMIX_", "MPI_"))]:
            del environment[name]  # the worker is no rank
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kvtools.video.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # a Ctrl-C at the terminal is handled by the parent
            bufsize=0,
        )
        widen_pipe(self._process.stdout.fileno())  # type: ignore[union-attr]
        self._n_clips = 0
        self._timeout_s = _LONGEST_S
        self._ahead = b""  # bytes received and not yet read

    @property
    def is_fit(self) -> bool:
        """Whether the worker is alive and not yet due for replacement."""
        return self._process.poll() is None and self._n_clips < _CLIPS_A_WORKER

    def ask(self, job: Mapping[str, object], timeout_s: float, record: Spool) -> dict[str, Any]:
        """The final answer of the worker for a clip, after its record is appended. Raises _Failure for a crash or a timeout."""
        self._n_clips += 1
        self._timeout_s = timeout_s
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")  # type: ignore[union-attr]
        except BrokenPipeError:
            raise _Failure(self._death()) from None
        while True:
            answer: dict[str, Any] = json.loads(self._read_line())
            if answer.get("restart"):
                record.clear()
            elif answer.get("alive"):
                continue
            elif "bytes" not in answer:
                return answer
            else:
                left = answer["bytes"]
                while left:
                    left -= len(data := self._read(left))
                    record.append(data)

    def kill(self) -> None:
        """End the process and close its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read_line(self) -> bytes:
        while b"\n" not in self._ahead:
            self._ahead += self._receive()
        line, _, self._ahead = self._ahead.partition(b"\n")
        return line

    def _read(self, n_bytes: int) -> bytes:
        """Up to n_bytes of what the worker sent."""
        data = self._ahead or self._receive()
        self._ahead = data[n_bytes:]
        return data[:n_bytes]

    def _receive(self) -> bytes:
        pipe = self._process.stdout
        assert pipe is not None
        if not select([pipe], [], [], self._timeout_s)[0]:
            raise _Failure(f"its decoder gave nothing for {self._timeout_s:g} s", "late")
        data: bytes = pipe.read(_CHUNK_BYTES)
        if not data:
            raise _Failure(self._death())
        return data

    def _death(self) -> str:
        code = self._process.wait()
        return f"the decoder crashed (signal {-code})" if code < 0 else f"the decoder ended with code {code}"
