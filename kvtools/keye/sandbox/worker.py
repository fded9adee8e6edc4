"""The process that runs code: it loads the libraries once, and makes a child of itself for each session.

Started by session.py as `python -m kvtools.keye.sandbox.worker`. A child computes in memory alone (child.py): its pictures
are handed to it, what it saves is handed back, and before it runs anything the kernel takes the rest of the machine from it
(isolation.py).
"""

import codecs
import importlib
import os
import select
import signal
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageFont

from kvtools.keye.sandbox import isolation, modules
from kvtools.keye.sandbox.child import MAX_PIXELS, Session
from kvtools.keye.sandbox.messages import MAX_TEXT_BYTES, Message, receive, send

_GONE = "the process of the code ended"


def main() -> None:
    """Serve sessions until stdin ends."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    isolation.refuse_tracing()
    _load()
    facades = modules.facades()
    send(replies, {"ready": True})
    children: dict[str, _Child] = {}
    try:
        while (message := receive(requests)) is not None:
            header, blobs = message
            name = header["session"]
            if header["op"] != "run" and name in children:
                children.pop(name).end()
            if header["op"] == "open":
                fds = [requests, replies, *(fd for child in children.values() for fd in child.pipes)]
                children[name] = _Child(header, blobs, facades, close=fds, null=null)
            if header["op"] != "run":
                send(replies, {})
            elif name not in children:
                send(replies, {"kind": "ended", "reason": "the session has ended"})
            else:
                reply = children[name].run(header)
                if not children[name].is_alive:
                    del children[name]
                send(replies, *reply)
    finally:
        for child in children.values():
            child.end()


def _load() -> None:
    """Load what a child could not: plugins, fonts and parts of libraries are files."""
    Image.init()
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses above twice this
    importlib.import_module("_strptime")  # of datetime.strptime
    for encoding in ("ascii", "latin-1", "utf-16", "utf-8-sig"):
        codecs.lookup(encoding)
    ImageFont.load_default()
    Image.new("RGB", (8, 8)).resize((4, 4)).convert("L").point(lambda value: value)


class _Child:
    """A session's process, and the pipes to it."""

    def __init__(
        self, header: dict[str, Any], blobs: list[bytes], facades: dict[str, modules.Facade], close: Sequence[int], null: int
    ) -> None:
        to_child, self._to = os.pipe()
        self._from, from_child = os.pipe()
        self._timeout_s = header["timeout_s"]
        self.is_alive = True
        self._pid = os.fork()
        if self._pid == 0:
            try:
                for fd in (*close, self._to, self._from):
                    os.close(fd)
                os.dup2(null, 2)  # warnings of libraries are not for the terminal
                Session(header, blobs, facades, from_child).serve(to_child)
            finally:
                os._exit(0)
        os.close(to_child)
        os.close(from_child)

    @property
    def pipes(self) -> tuple[int, int]:
        """The worker's ends, which no other child may have."""
        return self._to, self._from

    def run(self, header: dict[str, Any]) -> Message:
        """What the child answers, or why it does not."""
        deadline = time.monotonic() + self._timeout_s
        try:
            send(self._to, header)
            message = receive(self._from, deadline, MAX_TEXT_BYTES)
        except TimeoutError:
            failure = {"kind": "time", "reason": f"stopped after {self._timeout_s:g} s"}
        except (ValueError, OSError):
            failure = {"kind": "ended", "reason": "the answer of the process is no message"}
        else:
            if message is not None:
                return message
            failure = self._death()
        self.end()
        return failure, []

    def end(self) -> None:
        """Kill the child, whatever it does."""
        if self.is_alive:
            self._wait()

    def _wait(self) -> int:
        os.kill(self._pid, signal.SIGKILL)  # which changes nothing where it has died
        _, status = os.waitpid(self._pid, 0)
        os.close(self._to)
        os.close(self._from)
        self.is_alive = False
        return status

    def _death(self) -> dict[str, Any]:
        """Why a child that closed its pipe has died."""
        watch = os.pidfd_open(self._pid) if hasattr(os, "pidfd_open") else -1
        if watch >= 0:  # its pipe closes a moment before it is dead
            select.select([watch], [], [], 1.0)
            os.close(watch)
        status = self._wait()
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if number == signal.SIGXCPU:
            return {"kind": "time", "reason": "stopped by its processor time"}
        return {"kind": "ended", "reason": f"{_GONE} by {signal.Signals(number).name}" if number else _GONE}


if __name__ == "__main__":
    main()
