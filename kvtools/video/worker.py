"""A worker process: one clip at a time, told by a JSON line on stdin, answered by JSON lines with pieces of the record.

An answer is any number of {"bytes": n}, each followed by n bytes, then {"done": true} or {"fault": …}; {"restart": true}
takes back the pieces so far.

Started by pool.py as `python -m kvtools.video.worker`. It ends when stdin does; an alarm ends it if a decoder hangs for
longer than the parent would wait, should the parent be gone and nobody left to kill it.
"""

import json
import os
import signal
import sys
from typing import Any, BinaryIO

from kvtools.video.clip import tokenize
from kvtools.video.decode import FramesMissing
from kvtools.video.recipe import Recipe


def main() -> None:
    """Answer jobs until stdin ends."""
    # decoders print to stdout as they please; the answers go to a descriptor of their own
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        job = json.loads(line)
        # the default action of SIGALRM ends the process even while a decoder holds the interpreter lock
        signal.setitimer(signal.ITIMER_REAL, job["timeout_s"] + 5)
        _say(answers, _answer(answers, job))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(answers: BinaryIO, job: dict[str, Any]) -> dict[str, Any]:
    """Send the record's pieces as they are made; returns the last word on it."""
    try:
        try:
            _send(answers, job, by_decoding=False)
        except FramesMissing:
            _say(answers, {"restart": True})
            _send(answers, job, by_decoding=True)
    except ValueError as fault:
        return {"fault": " ".join(str(fault).split())}
    except OSError as error:
        return {"fault": (error.strerror or str(error)).lower(), "code": 66}
    except MemoryError:
        return {"fault": "not enough memory to decode it"}
    return {"done": True}


def _send(answers: BinaryIO, job: dict[str, Any], *, by_decoding: bool) -> None:
    recipe = Recipe.from_json(job["recipe"])
    for piece in tokenize(job["path"], job["key"], recipe, n_threads=job["n_threads"], by_decoding=by_decoding):
        _say(answers, {"bytes": len(piece)})
        while piece:  # a write to a pipe may take a part
            piece = piece[answers.write(piece) :]  # noqa: PLW2901


def _say(answers: BinaryIO, words: dict[str, Any]) -> None:
    answers.write(json.dumps(words).encode() + b"\n")


if __name__ == "__main__":
    main()
