"""A worker process: one clip a JSON line on stdin, answered by JSON lines and pieces of the record on stdout.

An answer is any number of {"bytes": n}, each followed by n bytes, then {"done": true} or {"fault": …, "cause": …};
{"restart": true} revokes the pieces so far.

Started by pool.py as `python -m kvtools.video.worker`. It ends when stdin does. An alarm ends it if a decoder hangs for longer
than the parent waits, in case the parent has died and cannot kill it.
"""

import json
import os
import signal
import sys
from typing import Any, BinaryIO

from kvtools.errors import os_reason
from kvtools.video.clip import tokenize
from kvtools.video.container import FramesMissing
from kvtools.video.recipe import VideoRecipe
from kvtools.video.sample import Unfit


def main() -> None:
    """Answer jobs until stdin ends."""
    # decoders may print to stdout; the answers go to a descriptor of their own
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        job = json.loads(line)
        # the default action of SIGALRM ends the process even while a decoder holds the interpreter lock
        signal.setitimer(signal.ITIMER_REAL, job["timeout_s"] + 5)
        _write(answers, _answer(answers, job))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(answers: BinaryIO, job: dict[str, Any]) -> dict[str, Any]:
    """Send the pieces of the record as they are made; returns the final answer."""
    try:
        try:
            _send(answers, job, by_decoding=False)
        except FramesMissing:
            _write(answers, {"restart": True})
            _send(answers, job, by_decoding=True)
    except Unfit as fault:
        return {"fault": str(fault), "cause": "unfit"}
    except ValueError as fault:
        return {"fault": " ".join(str(fault).split()), "cause": "damaged"}
    except OSError as error:
        return {"fault": os_reason(error), "cause": "unreadable"}
    except MemoryError:
        return {"fault": "it does not fit into memory", "cause": "unfit"}
    return {"done": True}


def _send(answers: BinaryIO, job: dict[str, Any], *, by_decoding: bool) -> None:
    recipe = VideoRecipe.from_json(job["recipe"])
    for piece in tokenize(job["path"], job["key"], recipe, n_threads=job["n_threads"], by_decoding=by_decoding):
        _write(answers, {"bytes": len(piece)})
        while piece:  # a write to a pipe may take a part
            piece = piece[answers.write(piece) :]  # noqa: PLW2901


def _write(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
