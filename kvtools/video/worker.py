"""A worker process: one clip a JSON line on stdin, answered by JSON lines and pieces of the record on stdout.

An answer is any number of {"bytes": n}, each followed by n bytes, then {"done": true} or {"fault": …, "cause": …};
{"restart": true} revokes the pieces so far, and {"alive": true} says that packets are being read.

Started by pool.py as `python -m kvtools.video.worker`. It ends when stdin does. An alarm ends it if a decoder hangs for longer
than the parent waits, in case the parent has died and cannot kill it.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

from kvtools.errors import os_reason
from kvtools.video.clip import Attempt, Mixed, tokenize
from kvtools.video.container import Damaged, FramesMissing
from kvtools.video.recipe import VideoRecipe
from kvtools.video.resize import Resizer
from kvtools.video.sample import Unfit
from kvtools.video.tar import read_member

_ALIVE_S = 0.5  # how often the parent is told that packets are being read


class NoFile(ValueError):
    """An input that is no file."""


_CAUSES: dict[type[ValueError], str] = {NoFile: "no-file", Mixed: "mixed", Unfit: "unfit"}


def main() -> None:
    """Answer jobs until stdin ends."""
    # decoders may print to stdout; the answers go to a descriptor of their own
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    resizer = Resizer()
    for line in sys.stdin.buffer:
        job = json.loads(line)
        _write(answers, _answer(answers, job, resizer))
        signal.setitimer(signal.ITIMER_REAL, 0)


class _Alive:
    """Called for every packet that is read: tells the parent now and then, and puts the alarm off."""

    def __init__(self, answers: BinaryIO, timeout_s: float) -> None:
        self._answers = answers
        self._timeout_s = timeout_s
        self._every_s = min(_ALIVE_S, timeout_s / 4)
        self._told = 0.0
        self()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._told >= self._every_s:
            self._told = now
            # the default action of SIGALRM ends the process even while a decoder holds the interpreter lock
            signal.setitimer(signal.ITIMER_REAL, self._timeout_s + 5)
            _write(self._answers, {"alive": True})


def _answer(answers: BinaryIO, job: dict[str, Any], resizer: Resizer) -> dict[str, Any]:
    """Send the pieces of the record as they are made; returns the final answer."""
    recipe = VideoRecipe.from_json(job["recipe"])
    attempt = Attempt(n_threads=job["n_threads"], tick=_Alive(answers, job["timeout_s"]), resize=resizer)
    while True:
        try:
            _send(answers, job, recipe, attempt)
        except FramesMissing as fault:
            if attempt.by_decoding:
                return _fault(fault, "damaged")
            attempt = replace(attempt, by_decoding=True)
        except Damaged as fault:
            if attempt.salvage or not recipe.salvage or recipe.decoder == "decord":
                return _fault(fault, "damaged")
            attempt = replace(attempt, salvage=True)
        except ValueError as fault:
            return _fault(fault, next((cause for kind, cause in _CAUSES.items() if isinstance(fault, kind)), "damaged"))
        except OSError as error:
            return {"fault": os_reason(error), "cause": "unreadable"}
        except MemoryError:
            return {"fault": "it does not fit into memory", "cause": "unfit"}
        else:
            return {"done": True}
        _write(answers, {"restart": True})


def _fault(fault: ValueError, cause: str) -> dict[str, Any]:
    return {"fault": " ".join(str(fault).split()), "cause": cause}


def _send(answers: BinaryIO, job: dict[str, Any], recipe: VideoRecipe, attempt: Attempt) -> None:
    with _file(job) as path:
        for piece in tokenize(path, job["key"], recipe, attempt, job["fields"]):
            _write(answers, {"bytes": len(piece)})
            while piece:  # a write to a pipe may take a part
                piece = piece[answers.write(piece) :]  # noqa: PLW2901
            attempt.tick()


@contextmanager
def _file(job: dict[str, Any]) -> Iterator[str]:
    """The path of the clip; a member of a tar is copied to a temporary file first. Raises NoFile for pipes and URLs."""
    path = job["path"]
    if path == "-":
        raise NoFile("this is stdin, and a video is read from a file")
    if not os.path.lexists(path) and "://" in path:
        raise NoFile("this is a URL, and only files are read")
    if path.startswith("/dev/fd/") or not (os.path.isdir(path) or os.path.isfile(path) or not os.path.exists(path)):
        raise NoFile("this is a pipe or a device, and a video is read from a file")
    if job["member"] is None:
        yield path
        return
    with tempfile.NamedTemporaryFile() as copy:
        for data in read_member(path, *job["member"]):
            copy.write(data)
        copy.flush()
        yield copy.name


def _write(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
