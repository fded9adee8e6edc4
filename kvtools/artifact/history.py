"""How an artifact came to be: a list of steps, each naming the steps before it, that travels inside the artifact.

A step is {id, command, version, argv, inputs, parents}: `inputs` are digests of the bags that were read (a stream has none, its
own last step identifies it), `parents` the ids of the last steps of the inputs. No time, host, user or absolute path, and no
option that does not change the result, so that the same work gives the same bytes.
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
from kvtools.names import printable

Step = dict[str, Any]

_SHOWN = 80  # characters of an option's value in a message

# options that do not change the result: name → whether a value follows
_SILENT = {
    "-o": True, "--output": True, "--jobs": True, "--timeout": True, "--state": True, "--log": True, "--report": True,
    "--list": True, "--list0": True, "--root": True, "--rejects": True,
    "--memory": True, "--device": True, "--shard-model": False, "--shard-optimizer": False, "--peak": True, "--chunk": True,
    "--json": False,
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
    """The histories of all inputs, each step once, and after them the step of this command.

    before: the history of each input. inputs: digests of the bags among them. stamp: add time, host, user and full arguments.
    """
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
            "directory": printable(os.getcwd()),
            "argv": [printable(argument) for argument in sys.argv[1:]],
        }
    step["id"] = hashlib.blake2b(canonical(step), digest_size=6).hexdigest()
    return [*steps, step]


def portable(argv: Sequence[str]) -> list[str]:
    """The arguments without those that do not change the result; of an absolute path, its last part.

    Bytes of names that are not UTF-8 are written out, since histories are text.
    """
    kept: list[str] = []
    skip = False
    for argument in argv:
        name = argument.split("=", 1)[0]
        if skip:
            skip = False
        elif name in _SILENT:
            skip = _SILENT[name] and "=" not in argument
        elif argument.startswith("-o") and not argument.startswith("--"):
            pass  # -oDST in one argument
        elif argument.startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
            kept.append("-")  # a pipe of the shell, whose number is chance
        else:
            kept.append(os.path.basename(argument.rstrip("/")) if argument.startswith("/") else argument)
    return [printable(argument) for argument in kept]


def describe(steps: Sequence[Step]) -> list[str]:
    """The command line of each step, oldest first."""
    return [" ".join(["kvtools", step["command"], *step["argv"]]) for step in steps]


def refuse_other_options(where: str, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise Usage where the options of a stopped run differ from those of this one, naming the first that does."""
    for name in sorted({*kept, *given}):
        if kept.get(name) != given.get(name):
            values = (json.dumps(config.get(name), ensure_ascii=False) for config in (kept, given))
            was, now = (value if len(value) <= _SHOWN else "another value" for value in values)
            raise Usage(
                f"{where}: the stopped run had {name} {was}, and this run has {now}. "
                "Give the same options to resume it, or --force to start over."
            )
