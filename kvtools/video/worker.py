"""A worker process: one clip at a time, told by a JSON line on stdin, answered by a JSON line and the record's bytes.

Started by pool.py as `python -m kvtools.video.worker`. It ends when stdin does; an alarm ends it if a decoder hangs for
longer than the parent would wait, should the parent be gone and nobody left to kill it.
"""

import json
import os
import signal
import sys
from typing import Any

from kvtools.video import patch, sample
from kvtools.video.clip import Recipe, tokenize


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain JSON; `recipe_from_json` undoes it."""
    return {"want": vars(recipe.want), "budget": vars(recipe.budget), "pick": recipe.pick, "decoder": recipe.decoder}


def recipe_from_json(words: dict[str, Any]) -> Recipe:
    """The recipe that `recipe_to_json` wrote."""
    return Recipe(sample.Want(**words["want"]), patch.Budget(**words["budget"]), words["pick"], words["decoder"])


def main() -> None:
    """Answer jobs until stdin ends."""
    # decoders print to stdout as they please; the answers go to a descriptor of their own
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        job = json.loads(line)
        # the default action of SIGALRM ends the process even while a decoder holds the interpreter lock
        signal.setitimer(signal.ITIMER_REAL, job["timeout_s"] + 5)
        record = b""
        try:
            record = tokenize(job["path"], job["key"], recipe_from_json(job["recipe"]), n_threads=job["n_threads"])
            answer = {"bytes": len(record)}
        except ValueError as fault:
            answer = {"fault": " ".join(str(fault).split())}
        except OSError as error:
            answer = {"fault": (error.strerror or str(error)).lower(), "code": 66}
        except MemoryError:
            answer = {"fault": "not enough memory to decode it"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(record)
        answers.flush()


if __name__ == "__main__":
    main()
