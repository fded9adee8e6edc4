"""Documents examined by several processes and ranks, their results in the order of the documents.

A worker is a fork of this process, which has its libraries loaded already; batches and results travel through pipes as JSON and
bytes. Every rank reads all sources and examines every size-th batch; rank 0 gets the results. At most two batches a worker are
under way, so that memory stays flat.
"""

import multiprocessing
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Self

from kvtools.errors import Fault, Stopped
from kvtools.keye.mix.batches import (
    Batch,
    Document,
    Result,
    batches_of,
    digest_of,
    packed,
    packed_documents,
    unpacked,
    unpacked_documents,
)
from kvtools.keye.mix.examine import Examiner
from kvtools.keye.mix.journal import Journal
from kvtools.world import World

_AHEAD = 2  # batches of a worker under way


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

    def run(self, batches: Iterator[Batch]) -> Iterator[list[Result]]:
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
                link.send_bytes(packed_documents(batch))
            waiting.append(link)
        while waiting:
            yield unpacked(_received(waiting.popleft()))


def examined(documents: Iterator[Document], workers: Workers, world: World, journal: Journal, stop: object) -> Iterator[Result]:
    """The result of every document, in order, on rank 0; nothing on other ranks, which do their part. A collective.

    What a stopped run left in the journal is not examined again. Raises Stopped where a rank was asked to stop, once a batch a
    rank is done.
    """
    batches = journal.after_kept(batches_of(documents))
    n_kept = world.broadcast(len(journal))
    batches = islice(batches, 0 if world.is_root else n_kept, None)
    digests: deque[str] = deque()  # of this rank's batches that are being examined

    def mine() -> Iterator[Batch]:
        for batch in islice(batches, world.rank, None, world.size):
            digests.append(digest_of(batch))
            yield batch

    yield from journal.results()
    own = workers.run(mine())
    while True:
        results = next(own, None)
        data = b"" if results is None else digests.popleft().encode() + packed(results)
        if not world.is_root:
            world.send(data)
        for rank in range(world.size) if world.is_root else ():
            if message := world.receive(rank) if rank else data:
                yield from journal.add(message)
        if not world.any(data):
            return
        if world.any(stop):
            raise Stopped("stopped, and the documents examined so far are kept. Run again to continue.")


def _examined(examiner: Examiner, batch: Batch) -> list[Result]:
    return [examiner.examine(document, mode, source, where) for mode, source, where, document in batch]


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
            link.send_bytes(packed(_examined(examiner, [*unpacked_documents(data)])))
