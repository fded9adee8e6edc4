"""The sandbox as the rest of the program uses it: pictures and code in, what was saved and printed out, or why there is
nothing.

A Sandbox keeps one process with its libraries loaded; a run costs a fork, not an interpreter. Not thread-safe: one Sandbox a
thread. What it does not protect from: faults of the kernel, and, where the kernel has no seccomp, those of Python and Pillow
(isolation.py).
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np

from kvtools.keye.sandbox.messages import MAX_TEXT_BYTES, Message, receive, send

_STARTS_WITHIN_S = 30.0
_ANSWERS_WITHIN_S = 5.0  # after the limit of the code itself, which the worker watches

Failure = Literal["refused", "not_python", "library", "error", "time", "memory", "output", "ended"]


@dataclass(frozen=True)
class Limits:
    """What a session may use. Seconds are of one run, processor seconds of the session."""

    timeout_s: float = 10.0
    cpu_s: float = 30.0
    memory_bytes: int = 512 << 20
    text_bytes: int = 64 << 10
    picture_bytes: int = 64 << 20  # of all pictures that a run saves, three bytes a pixel


@dataclass(frozen=True)
class Output:
    """What a run gave. failure and reason: what kind of failure it was and why, None where it did not fail. pictures: path ->
    uint8 (rows, columns, 3), in the order in which they were saved."""

    reason: str | None = None
    text: str = ""
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    failure: Failure | None = None

    @property
    def parts(self) -> list[str | np.ndarray]:
        """Text and pictures, uint8 (rows, columns, 3), as a model sees them. A failed run is its text and the reason.

        A printed line that ends in the path of a saved picture is the picture; where no line does, the picture saved last
        comes after the text.
        """
        parts: list[str | np.ndarray] = []
        lines = self.text.rstrip().splitlines() + ([f"Error: {self.reason}"] if self.reason is not None else [])
        for line in lines:
            if (named := self._named_by(line)) is not None:
                parts.append(named)
            elif parts and isinstance(parts[-1], str):
                parts[-1] += f"\n{line}"
            else:
                parts.append(line)
        if self.pictures and not any(isinstance(part, np.ndarray) for part in parts):
            parts.append(list(self.pictures.values())[-1])
        return parts

    def _named_by(self, line: str) -> np.ndarray | None:
        """The saved picture whose path, or the file's name in it, is the last word of a line."""
        for name in sorted(self.pictures, key=len, reverse=True):
            if line.rstrip(" .'\"`)]").endswith((name, name.removeprefix("/"), name.rpartition("/")[2])):
                return self.pictures[name]
        return None


class Sandbox:
    """One worker process; use it in a `with`."""

    _PROGRAM = ("-m", "kvtools.keye.sandbox.worker")

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, pictures: Mapping[str, bytes], *, session: str = "", **variables: Any) -> None:
        """Begin a session: its runs see these pictures, by path, as the bytes of their files, and these variables (JSON).

        session: its name; an older session of that name ends. Each open one takes a process.
        """
        header = {"op": "open", "session": session, "names": list(pictures), "variables": variables, **vars(self.limits)}
        self._ask(header, list(pictures.values()))

    def end(self, session: str = "") -> None:
        """End a session, if it is open."""
        if self._process is not None:
            self._ask({"op": "end", "session": session}, [])

    def run(self, code: str, *, session: str = "") -> Output:
        """Run code in an open session; variables stay from run to run. Never raises for what the code does."""
        message = self._ask({"op": "run", "session": session, "code": code}, [])
        try:
            return _output(*message)
        except (ValueError, KeyError, TypeError, AttributeError):
            self.close()
            return Output("the answer of the process is no message", failure="ended")

    def close(self) -> None:
        """End the worker and the process of a session."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, header: dict[str, Any], blobs: list[bytes]) -> Message:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        within_s = self.limits.timeout_s + _ANSWERS_WITHIN_S
        try:
            send(process.stdin.fileno(), header, blobs)
            message = receive(process.stdout.fileno(), time.monotonic() + within_s, 2 * MAX_TEXT_BYTES)
        except (OSError, ValueError, TimeoutError):
            message = None
        if message is None:
            self.close()
            return {"kind": "ended", "reason": "the worker of the sandbox ended"}, []
        return message

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            # nothing of this process's environment reaches the code; one thread, since the child may start none; one order
            # of sets
            environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-P", *self._PROGRAM],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment, start_new_session=True,
            )  # fmt: skip
            assert self._process.stdout is not None
            if receive(self._process.stdout.fileno(), time.monotonic() + _STARTS_WITHIN_S) is None:
                self.close()
                raise RuntimeError("the sandbox does not start")
        return self._process


def _output(header: dict[str, Any], blobs: list[bytes]) -> Output:
    """A reply as an Output. It comes from a process that ran code: raises ValueError, KeyError or TypeError for another
    shape."""
    failure, reason, text = header.get("kind"), header.get("reason"), header.get("text", "")
    if failure not in (None, *get_args(Failure)) or (failure is None) != (reason is None) or not isinstance(text, str):
        raise ValueError("a reply of another shape")
    pictures: dict[str, np.ndarray] = {}
    for row, blob in zip(header.get("pictures", []), blobs, strict=True):
        name, (width, height) = row["name"], row["size"]
        if type(name) is not str or type(width) is not int or type(height) is not int or min(width, height) < 1:
            raise ValueError("a picture of another shape")
        pictures[name] = np.frombuffer(blob, np.uint8).reshape(height, width, 3)
    return Output(None if reason is None else str(reason), text, pictures, failure)
