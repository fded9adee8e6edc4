"""How ranks notice that one of them has died: a connection of each to rank 0, which the kernel closes when a process ends.

MPI does not tell: a rank that waits for a message from a dead one waits until the job's time limit, unless the launcher ends
them all, which srun does only with --kill-on-bad-exit. A rank that ends as it should says so first. Nothing is sent while all
live, so that a rank may compute for hours; the system's own keep-alive packets find a machine that is gone.

Not here: what a rank does about it (`World`, which ends where it would have waited).
"""

import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_CONNECT_S = 2.0  # an address where nobody answers
_JOIN_S = 30.0  # how long rank 0 waits for the connections of all
_GRACE_S = 15.0  # from the news to the end of a rank that computes and does not communicate
_LAUNCHER_S = 5.0  # between two looks at whether the launcher lives
_KEEP_ALIVE = {
    "TCP_KEEPIDLE": 8,
    "TCP_KEEPINTVL": 4,
    "TCP_KEEPCNT": 3,
}  # s, s, packets: 20 s in all
KILLED = 137  # the exit code for a rank that ended without a word, as SIGKILL leaves it
LAUNCHER_GONE = 143  # as SIGTERM leaves it
_WORD_BYTES = 16


class Liveness:
    """The connections of this rank. `news` is None while all live, then (rank, exit code) of the first that died.

    rank -1 stands for the launcher. exchange: gives rank 0's JSON value on every rank. at_end: called with the news,
    in a thread, where the process did not end by itself in time; it must not return.
    """

    def __init__(self, rank: int, size: int, exchange: Callable[[Any], Any], at_end: Callable[[int, int], None]) -> None:
        self.news: tuple[int, int] | None = None
        self._rank, self._size, self._at_end = rank, size, at_end
        self._parent = os.getppid()
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        listener = socket.create_server(("", 0), backlog=size) if rank == 0 else None
        port = listener.getsockname()[1] if listener else 0
        token, answer = (secrets.token_hex(_WORD_BYTES // 2) for _ in range(2))
        meeting = exchange({"hosts": addresses(), "port": port, "token": token, "answer": answer})
        if listener is None:
            self._join(meeting)
        threading.Thread(target=self._watch, args=(listener, token, answer), daemon=True, name="liveness").start()
        os.register_at_fork(after_in_child=self._drop)

    @property
    def is_connected(self) -> bool:
        """Whether what this rank says reaches all others."""
        with self._lock:
            return len(self._peers) == (self._size - 1 if self._rank == 0 else 1)

    def end(self, code: int = 0) -> None:
        """Say that this rank ends, with this exit code; 0: as it should. Others end at once where it is another."""
        word = f"{self._rank} {code}".encode().ljust(_WORD_BYTES)
        with self._lock:
            for peer in self._peers.values():
                with suppress(OSError):
                    peer.sendall(word)

    def _join(self, meeting: dict[str, Any]) -> None:
        """Connect to rank 0. Where its machine cannot be reached by TCP, this rank is not watched."""
        for host in meeting["hosts"]:
            with suppress(OSError):
                peer = socket.create_connection((host, meeting["port"]), timeout=_CONNECT_S)
                peer.sendall(meeting["token"].encode() + f"{self._rank}".encode().ljust(_WORD_BYTES))
                # another job may listen there on this machine: only rank 0 of this one answers so
                if _receive(peer, _WORD_BYTES) == meeting["answer"].encode():
                    self._add(0, peer)
                    return

    def _add(self, rank: int, peer: socket.socket) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        with self._lock:
            self._peers[rank] = peer
        self._selector.register(peer, selectors.EVENT_READ, rank)

    def _watch(self, listener: socket.socket | None, token: str, answer: str) -> None:
        if listener is not None:
            self._selector.register(listener, selectors.EVENT_READ, -1)
        until = time.monotonic() + _JOIN_S
        while self.news is None:
            for key, _ in self._selector.select(timeout=_LAUNCHER_S):
                if key.data >= 0:
                    self._hear(key.data, key.fileobj)  # type: ignore[arg-type]
                elif listener is not None:
                    self._welcome(listener, token, answer)
            if listener is not None and (len(self._peers) == self._size - 1 or time.monotonic() > until):
                self._selector.unregister(listener)
                listener.close()
                listener = None
            if os.getppid() != self._parent and self.news is None:
                self.news = (-1, LAUNCHER_GONE)
        self._tell()
        time.sleep(_GRACE_S)
        self._at_end(*self.news)

    def _welcome(self, listener: socket.socket, token: str, answer: str) -> None:
        peer, _ = listener.accept()
        peer.settimeout(_CONNECT_S)
        with suppress(OSError, ValueError):
            word = _receive(peer, len(token) + _WORD_BYTES).decode("ascii", "replace")
            if secrets.compare_digest(word[: len(token)].encode(), token.encode()) and (rank := int(word[len(token) :])) > 0:
                peer.sendall(answer.encode())
                self._add(rank, peer)
                return
        peer.close()

    def _hear(self, rank: int, peer: socket.socket) -> None:
        """Take in what a peer says, or its silent end."""
        try:
            word = _receive(peer, _WORD_BYTES).split()
        except OSError:
            word = [str(rank).encode(), str(KILLED).encode()]
        dead, code = int(word[0]), int(word[1])
        if code:
            self.news = (dead, code)
        else:
            self._selector.unregister(peer)
            with self._lock:
                self._peers.pop(rank, None)

    def _tell(self) -> None:
        """Rank 0 passes the news on to all; the others only know rank 0."""
        assert self.news is not None, "there is news"
        word = "{} {}".format(*self.news).encode().ljust(_WORD_BYTES)
        with self._lock:
            for peer in self._peers.values():
                with suppress(OSError):
                    peer.sendall(word)

    def _drop(self) -> None:
        """In a fork: its copies must not keep open what should close with this rank."""
        self._selector = selectors.DefaultSelector()
        for peer in self._peers.values():
            peer.close()
        self._peers = {}


def _receive(peer: socket.socket, n_bytes: int) -> bytes:
    """Exactly n_bytes. Raises OSError where the connection ends before."""
    data = b""
    while len(data) < n_bytes:
        if not (piece := peer.recv(n_bytes - len(data))):
            raise ConnectionResetError("the connection was closed")
        data += piece
    return data


def addresses() -> list[str]:
    """The addresses by which this machine may be reached, from other machines and from itself, likely ones first."""
    found = []
    with suppress(OSError):
        found += [str(row[4][0]) for row in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET, socket.SOCK_STREAM)]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # a documentation address (RFC 5737): no packet leaves, the route names our own address
        found.append(probe.getsockname()[0])
    return list(dict.fromkeys([*found, "127.0.0.1"]))
