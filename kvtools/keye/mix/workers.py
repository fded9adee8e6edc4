"""Documents examined by several processes and ranks, their results in the order of the documents.

A worker is a fork of this process, which has its libraries loaded already; batches and results travel through pipes as JSON and
bytes. Every rank reads all sources and examines every size-th batch; rank 0 gets the results. At most two batches a worker are
under way, so that memory stays flat.
"""

import json
import multiprocessing
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, Self

from kvtools.errors import Fault
from kvtools.keye.mix.examine import Examiner, Rejected
from kvtools.keye.mix.pool import Sample
from kvtools.world import World

BATCH = 64  # documents that one worker gets at once
_BYTES = ("said", "signature", "encoded")  # fields of a sample that travel as bytes
_AHEAD = 2  # batches of a worker under way

Document = tuple[str, str, str, Any]  # mode, source, where; and JSON as bytes, a value, or the ValueError in its place
Result = Sample | Rejected


class Workers:
    """n_jobs processes that examine batches, or none where n_jobs is 1; use it in a `with`.

    make: makes the examiner, in the process that uses it.
    """

    def __init__(self, make: Callable[[], Examiner], n_jobs: int) -> None:
        self._links: list[Connection] = []
        self._processes = []
        self._examiner = make() if n_jobs == 1 else None
        context = multiprocessing.get_context("fork")
        for _ in range(n_jobs if n_jobs > 1 else 0):
            mine, its = context.Pipe()
            process = context.Process(target=_serve, args=(its, [*self._links, mine], make), daemon=True)
            process.start()
            its.close()
            self._links.append(mine)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._examiner is not None:
            self._examiner.close()
        for link in self._links:
            link.close()
        for process in self._processes:
            process.join(timeout=5)
            process.kill()

    def run(self, batches: Iterator[Sequence[Document]]) -> Iterator[list[Result]]:
        """The results of each batch, in order."""
        if self._examiner is not None:
            yield from (_examined(self._examiner, batch) for batch in batches)
            return
        waiting: deque[Connection] = deque()
        for number, batch in enumerate(batches):
            if len(waiting) == _AHEAD * len(self._links):
                yield unpacked(_received(waiting.popleft()))
            link = self._links[number % len(self._links)]
            with suppress(BrokenPipeError, ConnectionResetError):  # `_received` says so
                link.send_bytes(_packed_documents(batch))
            waiting.append(link)
        while waiting:
            yield unpacked(_received(waiting.popleft()))


def examined(documents: Iterator[Document], workers: Workers, world: World) -> Iterator[Result]:
    """The result of every document, in order, on rank 0; nothing on other ranks, which do their part. A collective."""
    mine = workers.run(batch for number, batch in enumerate(_batches(documents)) if number % world.size == world.rank)
    if not world.is_root:
        for results in mine:
            world.send(packed(results))
        world.send(b"")
        return
    others = list(range(1, world.size))  # that have more batches; each ends with an empty message
    for results in mine:
        yield from results
        for rank in tuple(others):
            if message := world.receive(rank):
                yield from unpacked(message)
            else:
                others.remove(rank)
    for rank in others:
        assert not world.receive(rank), "rank 0 has at least as many batches as any other"


def packed(results: Sequence[Result]) -> bytes:
    """Results as bytes: a line of JSON, then the bytes of the samples."""
    rows, blobs = [], []
    for result in results:
        fields = vars(result).copy()
        if isinstance(result, Sample):
            parts = [fields.pop(name) for name in _BYTES]
            blobs += parts
            rows.append([*map(len, parts), fields])
        else:
            rows.append([fields])
    return b"\n".join([json.dumps(rows, default=str).encode(), b"".join(blobs)])


def unpacked(data: bytes | bytearray) -> list[Result]:
    """What `packed` packed."""
    head, _, rest = bytes(data).partition(b"\n")
    results: list[Result] = []
    at = 0
    for *lengths, fields in json.loads(head):
        if not lengths:
            results.append(Rejected(**fields))
            continue
        ends = [at + sum(lengths[: n + 1]) for n in range(len(lengths))]
        parts: dict[str, Any] = {name: rest[begin:end] for name, begin, end in zip(_BYTES, [at, *ends], ends, strict=False)}
        fields["repairs"] = tuple(fields["repairs"])
        fields["sizes"] = {int(frames): tuple(size) for frames, size in fields["sizes"].items()}
        results.append(Sample(**fields, **parts))
        at = ends[-1]
    return results


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    while batch := list(islice(documents, BATCH)):
        yield batch


def _examined(examiner: Examiner, batch: Sequence[Document]) -> list[Result]:
    return [examiner.examine(document, mode, source, where) for mode, source, where, document in batch]


def _packed_documents(batch: Sequence[Document]) -> bytes:
    rows, blobs = [], []
    for mode, source, where, document in batch:
        is_fault = isinstance(document, ValueError)
        text = (
            document
            if isinstance(document, bytes)
            else (str(document) if is_fault else json.dumps(document, default=str)).encode()
        )
        rows.append([mode, source, where, is_fault, len(text)])
        blobs.append(text)
    return b"\n".join([json.dumps(rows).encode(), b"".join(blobs)])


def _unpacked_documents(data: bytes) -> Iterator[Document]:
    head, _, rest = data.partition(b"\n")
    at = 0
    for mode, source, where, is_fault, length in json.loads(head):
        text = rest[at : at + length]
        yield mode, source, where, ValueError(text.decode()) if is_fault else text
        at += length


def _received(link: Connection) -> bytes:
    try:
        return link.recv_bytes()
    except (EOFError, ConnectionResetError):
        raise Fault("a worker process died, perhaps for lack of memory. Give fewer --jobs.") from None


def _serve(link: Connection, others: Sequence[Connection], make: Callable[[], Examiner]) -> None:
    """Examine what comes until the other end closes. others: ends of other workers' pipes, which the fork has copied."""
    for other in others:
        other.close()
    waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:  # beside the work, so that the other end never waits for this one to read
        with suppress(EOFError, ConnectionResetError):
            while True:
                waiting.put(link.recv_bytes())
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    with make() as examiner, suppress(BrokenPipeError, ConnectionResetError):
        while (data := waiting.get()) is not None:
            link.send_bytes(packed(_examined(examiner, list(_unpacked_documents(data)))))
