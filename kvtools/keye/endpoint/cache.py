"""Answers kept in a file of JSON Lines, so that no question is asked twice: by this run, by the next, or by another beside it.

A line is appended with one write under a lock, when the answer arrives: a killed run loses only what was in flight. Lines of
other writers are read before each look-up. A line that was cut by a crash is passed over.
"""

import fcntl
import json
import os
import threading
from contextlib import suppress
from typing import Any

Entry = dict[str, Any]


class AnswerCache:
    """Answers by key; path None: in memory alone. Safe to use from many threads, and the file from many processes.

    Raises OSError where the file cannot be opened, ValueError where it holds something else.
    """

    def __init__(self, path: str | None = None) -> None:
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._offset = 0
        if path is not None:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._read_on()
            if self._offset and not self._entries:
                raise ValueError("this is not a cache of answers: it has no line with a key and a text")

    def get(self, key: str) -> Entry | None:
        """The answer to a question; None where it has none."""
        with self._lock:
            if key not in self._entries:
                self._read_on()
            return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        """Keep an answer, in the file too."""
        with self._lock:
            self._entries[key] = entry
            if self._fd is None:
                return
            line = json.dumps({"key": key, **entry}, ensure_ascii=False).encode() + b"\n"
            with suppress(OSError):  # some network file systems have no lock, where one short write is whole in any case
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                size = os.fstat(self._fd).st_size
                # a writer that was killed within its line left no end of line
                is_cut = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"
                data = memoryview(b"\n" * is_cut + line)
                while data:
                    data = data[os.write(self._fd, data) :]
            finally:
                with suppress(OSError):
                    fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _read_on(self) -> None:
        """Take in what was appended since; an unfinished last line waits for the next time."""
        if self._fd is None or (size := os.fstat(self._fd).st_size) <= self._offset:
            return
        data = b""
        while len(data) < size - self._offset and (piece := os.pread(self._fd, size - self._offset, self._offset + len(data))):
            data += piece
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry["text"], str):
                    self._entries[entry.pop("key")] = entry
