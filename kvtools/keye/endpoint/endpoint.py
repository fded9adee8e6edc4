"""A pool of servers that answer questions: so many at once, the rest waiting, until each has an answer or a named failure.

    with Endpoint(["http://localhost:8000/v1"], cache="answers.jsonl") as endpoint:
        for reply in endpoint.ask_all(requests):
            ...

Threads ask while the caller works. More threads than calls prepare what comes next, so that encoding pictures and storing
answers leave no gap; a question that waits to be asked again holds none of them. Which server gets a question depends on
the seed and the question alone.

A call that fails is made again after a pause, at another server if there is one. A question is given up after `retries`
failures, or at once where the fault is the question's, or where no server has answered for so long that all seem to be down.
Only answers are kept in the cache, never such a failure, so that the next run asks for the rest.
"""

import heapq
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from kvtools.chance import seed_for
from kvtools.keye.endpoint.cache import AnswerCache
from kvtools.keye.endpoint.request import Reply, Request
from kvtools.keye.endpoint.wire import Answer, Failed, Server

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0
_POLL_S = 0.5
_MOST_WAITS = 20  # that servers may tell one question to wait
_N_DOWN = 6  # failures in a row, of all servers together, from which on they can be down
_DOWN_S, _NEVER_UP_S = 120.0, 10.0  # for so long without an answer; the latter where there never was one


@dataclass
class _Batch:
    """The requests of one `ask_all`."""

    replies: queue.SimpleQueue[Reply | BaseException | None] = field(default_factory=queue.SimpleQueue)
    n_open: int = 0
    is_read: bool = False  # whether all requests are known
    is_abandoned: bool = False


@dataclass
class _Question:
    """A request on its way."""

    batch: _Batch
    index: int
    request: Request
    key: str = ""
    wire: list[dict[str, Any]] | None = None
    n_failed: int = 0
    n_waits: int = 0
    n_calls: int = 0
    answers: list[str] = field(default_factory=list)  # those that were not accepted
    seconds: float = 0.0
    server: Server | None = None  # that had it last

    @property
    def n_tries(self) -> int:
        """How many tries are behind it, for the temperature of the next one; being told to wait is none."""
        return self.n_failed + len(self.answers)


class Endpoint:
    """The pool; see above. model: its name at the servers; None: the first that they list. concurrency: calls at the same time,
    over all servers. cache: a file of answers. timeout_s: of a call. key_variable: the environment variable with the key.

    Raises ValueError for an address or a cache that is none, OSError for a cache that cannot be opened.
    """

    def __init__(
        self, urls: Sequence[str], model: str | None = None, *, concurrency: int = 8, cache: str | None = None, seed: int = 0,
        timeout_s: float = 300.0, retries: int = 10, key_variable: str = "OPENAI_API_KEY",
    ) -> None:  # fmt: skip
        self._servers = [Server(url, timeout_s=timeout_s, key_variable=key_variable) for url in urls]
        self.model, self.concurrency = model, concurrency
        self._cache, self._seed, self._retries = AnswerCache(cache), seed, retries
        self._calls = threading.Semaphore(concurrency)
        self._model_lock, self._wire_model = threading.Lock(), model
        self._changed = threading.Condition()  # guards all that follows
        self._ready: deque[_Question] = deque()
        self._waiting: list[tuple[float, int, _Question]] = []  # a heap: when to ask again
        self._asked: dict[str, list[_Question]] = {}  # questions in flight, and their equals
        self._order = itertools.count()
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self._n_failed_since = 0
        self._first_call_s: float | None = None
        self._last_answer_s: float | None = None
        self.n_calls, self.call_s = 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop. Calls in flight are not waited for; their answers are lost."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for server in self._servers:
            server.close()
        self._cache.close()

    def name_of_model(self) -> str:
        """The model that is asked, as the first server names it where no name was given; "default" where that names none."""
        return self._name_of_model(self._servers[0])

    def ask(self, request: Request) -> Reply:
        """The reply to one request."""
        return next(self.ask_all([request]))

    def ask_all(self, requests: Iterable[Request], stop: Callable[[], object] = lambda: False) -> Iterator[Reply]:
        """Replies in the order in which they arrive, `index` by the order of the requests, which are read as they are needed.

        The asking begins with this call, not with the first `next`. What `requests` raises is raised here. The replies end
        early, within half a second, where `stop` says so, also while servers hang.
        """
        batch = _Batch()
        self._start()
        threading.Thread(target=self._feed, args=(batch, requests), daemon=True).start()
        return self._replies(batch, stop)

    def _replies(self, batch: _Batch, stop: Callable[[], object]) -> Iterator[Reply]:
        try:
            while not stop():
                try:
                    reply = batch.replies.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if reply is None:
                    return
                if isinstance(reply, BaseException):
                    raise reply
                yield reply
        finally:
            batch.is_abandoned = True

    def _start(self) -> None:
        with self._changed:
            if not self._threads:
                n_threads = 2 * self.concurrency  # half of them prepare the next calls
                self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(n_threads)]
                for thread in self._threads:
                    thread.start()

    def _feed(self, batch: _Batch, requests: Iterable[Request]) -> None:
        """Read requests, a few more than are asked at the same time."""
        try:
            for index, request in enumerate(requests):
                with self._changed:
                    self._changed.wait_for(lambda: len(self._ready) < self.concurrency or self._is_closed or batch.is_abandoned)
                    if self._is_closed or batch.is_abandoned:
                        return
                    batch.n_open += 1
                    self._ready.append(_Question(batch, index, request))
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 it belongs to the caller's thread
            batch.replies.put(error)
        with self._changed:
            batch.is_read = True
            if batch.n_open == 0:
                batch.replies.put(None)

    def _work(self) -> None:
        while (question := self._next()) is not None:
            try:
                self._advance(question)
            except BaseException as error:  # noqa: BLE001 as above
                question.batch.replies.put(error)

    def _next(self) -> _Question | None:
        """The question to ask next; those that have waited first. None once closed."""
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                if self._waiting and self._waiting[0][0] <= now:
                    return heapq.heappop(self._waiting)[2]
                if self._ready:
                    self._changed.notify_all()  # the feeder
                    return self._ready.popleft()
                self._changed.wait(self._waiting[0][0] - now if self._waiting else None)
            return None

    def _advance(self, question: _Question) -> None:
        """Bring a question one call further."""
        if question.batch.is_abandoned:
            self._drop(question)
            return
        try:
            if not question.key and self._is_known(question):
                return
            if question.wire is None:
                question.wire = question.request.wire_messages()
        except ValueError as error:  # a picture that cannot be read
            self._finish(question, Reply(question.index, "", str(error), is_unreadable=True))
            return
        with self._calls:
            server = self._server_for(question)
            is_paused = server.not_before > time.monotonic()
            outcome = None if is_paused else self._call(question, server)
            if isinstance(outcome, Answer):  # kept before the next call begins: a killed run loses no more than open calls
                self._received(question, outcome)
        if outcome is None:
            self._wait(question, server.not_before)
        elif isinstance(outcome, Failed):
            self._failed(question, server, outcome)

    def _is_known(self, question: _Question) -> bool:
        """Whether nothing must be asked: the cache has the answer, or an equal question is in flight, whose answer will do."""
        key = question.request.key(self.model)
        entry = self._cache.get(key)
        if entry is not None:
            self._finish(question, Reply(question.index, **entry))
            return True
        with self._changed:
            question.key = key
            if key in self._asked:
                self._asked[key].append(question)
                return True
            self._asked[key] = []
        # it can have been answered between the two look-ups
        if (entry := self._cache.get(key)) is not None:
            self._finish(question, Reply(question.index, **entry))
            return True
        return False

    def _server_for(self, question: _Question) -> Server:
        """A server by the seed and the question: not the one of last time, and none that asked for a pause, if there is one."""
        now = time.monotonic()
        awake = [server for server in self._servers if server.not_before <= now]
        if not awake:
            return min(self._servers, key=lambda server: server.not_before)
        others = [server for server in awake if server is not question.server] or awake
        return others[self._drawn(question) % len(others)]

    def _call(self, question: _Question, server: Server) -> Answer | Failed:
        """Make a call, and note how long it took. The caller holds one of the calls that may be open at the same time."""
        assert question.wire is not None, "its messages are made before it is asked"
        question.server = server
        temperature = question.request.temperature(question.n_tries)
        sampling = {**question.request.sampling, **({} if temperature is None else {"temperature": temperature})}
        begin = time.monotonic()
        with self._changed:
            self._first_call_s = self._first_call_s or begin
            self.n_calls += 1
        try:
            return server.ask(question.wire, self._name_of_model(server), sampling)
        except Failed as failure:
            return failure
        finally:
            seconds = time.monotonic() - begin
            question.seconds += seconds
            question.n_calls += 1
            with self._changed:
                self.call_s += seconds

    def _name_of_model(self, server: Server) -> str:
        with self._model_lock:
            if self._wire_model is None:
                self._wire_model = server.first_model()
            return self._wire_model

    def _received(self, question: _Question, answer: Answer) -> None:
        with self._changed:
            self._n_failed_since, self._last_answer_s = 0, time.monotonic()
        request = question.request
        fault, temperature = None, request.temperature(question.n_tries)
        if request.accept is not None and not request.accept(answer.text):
            question.answers.append(answer.text)
            if len(question.answers) < request.tries:
                self._wait(question, time.monotonic())
                return
            fault = f"none of {request.tries} tries gave an answer of the form that is needed"
        entry = {**asdict(answer), "temperature": temperature, "fault": fault}
        self._cache.put(question.key, {name: value for name, value in entry.items() if value is not None})
        self._finish(question, Reply(question.index, **entry, seconds=question.seconds, n_calls=question.n_calls))

    def _failed(self, question: _Question, server: Server, failure: Failed) -> None:
        now = time.monotonic()
        if failure.wait_s is not None:
            server.not_before = max(server.not_before, now + failure.wait_s)
        if failure.is_busy:
            question.n_waits += 1
        else:
            question.n_failed += 1
            with self._changed:
                self._n_failed_since += 1
        if failure.is_final or question.n_failed > self._retries or question.n_waits > _MOST_WAITS or self._is_down(now):
            reply = Reply(question.index, "", str(failure), seconds=question.seconds, n_calls=question.n_calls)
            self._finish(question, reply)
            return
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (question.n_failed + question.n_waits - 1))
        self._wait(question, now + pause_s * (0.5 + self._drawn(question) % 1024 / 2048))

    def _is_down(self, now: float) -> bool:
        """Whether no server has answered for so long that a further pause is not worth it; one answer ends this."""
        with self._changed:
            if self._n_failed_since < _N_DOWN:
                return False
            if self._last_answer_s is None:
                return now - (self._first_call_s or now) > _NEVER_UP_S
            return now - self._last_answer_s > _DOWN_S

    def _wait(self, question: _Question, until: float) -> None:
        with self._changed:
            heapq.heappush(self._waiting, (until, next(self._order), question))
            self._changed.notify()

    def _drawn(self, question: _Question) -> int:
        return seed_for(self._seed, question.key, question.n_tries + question.n_waits)

    def _finish(self, question: _Question, reply: Reply) -> None:
        """Hand a reply to its batch, and to equal questions, which cost no call."""
        with self._changed:
            equals = self._asked.pop(question.key, [])
            for each in (question, *equals):
                each.batch.n_open -= 1
                each.batch.replies.put(reply if each is question else replace(reply, index=each.index, n_calls=0, seconds=0.0))
                if each.batch.is_read and each.batch.n_open == 0:
                    each.batch.replies.put(None)

    def _drop(self, question: _Question) -> None:
        """Forget a question that nobody waits for; an equal one of another batch takes its turn."""
        with self._changed:
            for each in self._asked.pop(question.key, []):
                each.key = ""
                heapq.heappush(self._waiting, (0.0, next(self._order), each))
            self._changed.notify_all()
