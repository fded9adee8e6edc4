"""How an artifact came to be: a list of steps, each naming the steps before it, that travels inside the artifact.

A step is {id, command, version, argv, inputs, parents}: `inputs` are digests of the artifacts at rest that were read
(streams have none: their own last step stands for them), `parents` the ids of the last steps of the inputs. No time,
host, user or absolute path, and no option that does not change the result, so that the same work gives the same bytes.
"""

import getpass
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvtools import __version__
from kvtools.artifact.blob import canonical
from kvtools.errors import Usage

Step = dict[str, Any]

_SHOWN = 80  # characters of an option's value in a message

# options that say where and how, not what: name → whether a value follows
_SILENT = {
    "-o": True, "--output": True, "--jobs": True, "--timeout": True, "--state": True, "--log": True, "--report": True,
    "--list": True, "--memory": True, "--device": True, "--peak": True, "--chunk": True, "--json": False,
    "--force": False, "-q": False, "--quiet": False, "-v": False, "--verbose": False, "--stamp": False, "--strict": False,
}  # fmt: skip


def extend(
    command: str,
    argv: Sequence[str],
    *,
    before: Iterable[Sequence[Step]] = (),
    inputs: Iterable[str] = (),
    stamp: bool = False,
) -> list[Step]:
    """The histories of all inputs, each step once, and after them the step that `command` takes now."""
    steps: list[Step] = []
    parents: list[str] = []
    for earlier in before:
        steps += [step for step in earlier if step not in steps]
        if earlier:
            parents.append(earlier[-1]["id"])
    step: Step = {
        "command": command,
        "version": __version__,
        "argv": portable(argv),
        "inputs": list(inputs),
        "parents": parents,
    }
    if stamp:
        step["stamp"] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": socket.gethostname(),
            "user": getpass.getuser(),
            "directory": os.getcwd(),
            "argv": sys.argv[1:],
        }
    step["id"] = hashlib.blake2b(canonical(step), digest_size=6).hexdigest()
    return [*steps, step]


def portable(argv: Sequence[str]) -> list[str]:
    """Arguments without what differs between machines: output options dropped, absolute paths cut to their last part."""
    kept: list[str] = []
    skip = False
    for word in argv:
        name = word.split("=", 1)[0]
        if skip:
            skip = False
        elif name in _SILENT:
            skip = _SILENT[name] and "=" not in word
        elif word.startswith("-o") and not word.startswith("--"):
            pass  # -oDST in one word
        else:
            kept.append(os.path.basename(word.rstrip("/")) if word.startswith("/") else word)
    return kept


def describe(steps: Sequence[Step]) -> list[str]:
    """One line a step, oldest first, as one would type it."""
    return [" ".join(["kvtools", step["command"], *step["argv"]]) for step in steps]


def refuse_other_options(where: str, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise Usage where a stopped run was made of something else than this one, naming the first difference."""
    for name in sorted({*kept, *given}):
        if kept.get(name) != given.get(name):
            values = (json.dumps(config.get(name), ensure_ascii=False) for config in (kept, given))
            was, now = (value if len(value) <= _SHOWN else "another value" for value in values)
            raise Usage(
                f"{where}: the stopped run had {name} {was}, and this run has {now}. "
                "Give the same options to resume it, or --force to start over."
            )
