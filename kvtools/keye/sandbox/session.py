"""The sandbox as the rest of the program uses it: pictures and code in; out, what was saved and printed, or why it failed.

A Sandbox keeps one process with its libraries loaded; a run costs a fork, not an interpreter. Not thread-safe: one Sandbox a
thread. What it does not protect from: faults of the kernel, and, where the kernel has no seccomp, of Python itself.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

_STARTS_WITHIN_S = 30.0
_ANSWERS_WITHIN_S = 5.0  # after the limit of the code itself, which the worker watches


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
    """What a run gave. reason: why it failed, None where it did not. pictures: name -> uint8 (rows, columns, 3), in the order
    in which they were saved."""

    reason: str | None
    text: str = ""
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


class Sandbox:
    """One worker process; use it in a `with`."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, pictures: Mapping[str, bytes], **variables: Any) -> None:
        """Begin a session: later runs see these pictures, by path, as the bytes of their files, and these variables (JSON)."""
        limits = vars(self.limits)
        self._ask({"op": "open", "names": list(pictures), "variables": variables, **limits}, list(pictures.values()))

    def run(self, code: str) -> Output:
        """Run code in the session that is open; variables stay from run to run. Never raises for what the code does."""
        header, blobs = self._ask({"op": "run", "code": code}, [])
        pictures = {}
        for row, blob in zip(header.get("pictures", []), blobs, strict=False):
            width, height = row["size"]
            if len(blob) != 3 * width * height:
                return Output("a picture of another size than it says")
            pictures[row["name"]] = np.frombuffer(blob, np.uint8).reshape(height, width, 3)
        return Output(header.get("reason"), header.get("text", ""), pictures)

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, header: dict[str, Any], blobs: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        from kvtools.keye.sandbox.worker import receive, send

        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        within_s = self.limits.timeout_s + _ANSWERS_WITHIN_S
        try:
            send(process.stdin.fileno(), header, blobs)
            message = receive(process.stdout.fileno(), time.monotonic() + within_s)
        except (OSError, ValueError, KeyError, TypeError, TimeoutError):
            message = None
        if message is None:
            self.close()
            return {"ok": False, "reason": "the worker of the sandbox ended"}, []
        return message

    def _started(self) -> subprocess.Popen[bytes]:
        from kvtools.keye.sandbox.worker import receive

        if self._process is None or self._process.poll() is not None:
            # nothing of this process's environment reaches the code; one thread, since the child may start none
            environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "kvtools.keye.sandbox.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment, start_new_session=True,
            )  # fmt: skip
            assert self._process.stdout is not None
            receive(self._process.stdout.fileno(), time.monotonic() + _STARTS_WITHIN_S)
        return self._process
