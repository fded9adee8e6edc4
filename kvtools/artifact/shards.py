"""Parts that --shard made, as histories tell them: which belong together, and which of a whole are missing or there twice.

Parts of one whole were made by one step but for the part: the same command, arguments and inputs. They are followed through
`kvtools cat`, which joins them. Not here: taking a part of the inputs (world.py).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from kvtools.artifact.blob import canonical
from kvtools.artifact.history import Step

_NAMED = 8  # parts in a message
_SHOWN = 80  # characters of a command line in a message
_SELECTING = ("--key", "-n", "--limit", "--prefix")  # options of cat by which a stream is no longer its parts


@dataclass
class _Whole:
    """n: parts that it has. found: how often each was found. is_sure: whether every part that was read is in a history."""

    command: str
    arguments: list[str]
    n: int
    found: Counter[int] = field(default_factory=Counter)
    is_sure: bool = True


def missing_parts(histories: Iterable[Sequence[Step]]) -> list[str]:
    """What is wrong with parts that --shard made, in words: those that are missing, and those that are there twice.

    histories: of all streams that are joined; one in which nothing was made with --shard is left out.
    """
    wholes: dict[bytes, _Whole] = {}
    for history in histories:
        for step, count, is_sure in _joined(history):
            spec, arguments = _split_shard(step["argv"])
            part, _, n = spec.partition("/")
            if part.isdecimal() and n.isdecimal():
                key = canonical(
                    {"n": int(n), **{name: step.get(name) for name in ("command", "inputs", "parents")}, "argv": arguments}
                )
                whole = wholes.setdefault(key, _Whole(str(step["command"]), arguments, int(n)))
                whole.found[int(part)] += count
                whole.is_sure &= is_sure
    commands = Counter(whole.command for whole in wholes.values())
    faults = []
    for whole in sorted(wholes.values(), key=lambda whole: (whole.command, whole.n)):
        name = whole.command if commands[whole.command] == 1 else " ".join([whole.command, *whole.arguments])[:_SHOWN]
        missing = [i for i in range(whole.n) if i not in whole.found] if whole.is_sure else []
        twice = sorted(i for i, count in whole.found.items() if count > 1)
        faults += [_line(which, whole.n, name, what) for which, what in ((missing, "missing"), (twice, "there twice")) if which]
    return faults


def _line(which: Sequence[int], n: int, name: str, what: str) -> str:
    named = ", ".join(f"{i}/{n}" for i in which[:_NAMED]) + f" and {len(which) - _NAMED} more" * (len(which) > _NAMED)
    return f"part {named} of {name} is {what}" if len(which) == 1 else f"parts {named} of {name} are {what}"


def _joined(history: Sequence[Step]) -> Iterator[tuple[Step, int, bool]]:
    """The last steps that are not `cat`, how often each was joined in, and whether all beside them are in the history, too."""
    counts = Counter([history[-1]["id"]] if history else [])
    unsure: set[str] = set()
    for step in reversed(history):  # a step stands after those before it
        count = counts[step["id"]]
        if count == 0:
            continue
        arguments = step["argv"]
        if step["command"] != "cat":
            yield step, count, step["id"] not in unsure
        elif not any(word.startswith(_SELECTING) for word in arguments):
            for parent in step.get("parents", ()):
                counts[parent] += count
            if step["id"] in unsure or "--partial" in arguments or _reads_stdin(arguments):
                unsure.update(step.get("parents", ()))


def _reads_stdin(arguments: Sequence[str]) -> bool:
    """Whether cat read stdin, of which its history has the first part only where that is a joined stream."""
    named = [word for before, word in pairwise(["", *arguments]) if before != "--compress" and not word.startswith("--")]
    return not named or "-" in named


def _split_shard(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The value of --shard, "" where it is not given, and the other arguments."""
    spec, others = "", []
    remaining = iter(arguments)
    for word in remaining:
        name, is_joined, value = word.partition("=")
        if name == "--shard":
            spec = value if is_joined else next(remaining, "")
        else:
            others.append(word)
    return spec, others
