"""Values of options: those written in a form of their own, and the rules between them. Light, and without typer.

Not here: the options themselves (options.py), durations (train/durations.py).
"""

import os
import re
from collections.abc import Mapping

from kvtools.errors import Usage


def parse_range(text: str, option: str) -> tuple[int, int]:
    """`LOW:HIGH` as two counts, 1 <= LOW <= HIGH. Raises Usage."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise Usage(f"{option} {text} is not a range. Give LOW:HIGH with 1 <= LOW <= HIGH, as 128:768.")
    return int(match[1]), int(match[2])


def parse_size(text: str, option: str) -> int:
    """`64MiB`, `2GiB`, `500kB` or a bare count, in bytes. Raises Usage."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT]?)(i?)B?", text)
    if not match or (match[3] and not match[2]):
        raise Usage(f"{option} {text} is not a size. Give one as 64MiB or 2GiB.")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** ("KMGT".find(match[2].upper()) + 1 if match[2] else 0))


def refuse_if(*rules: tuple[object, str]) -> None:
    """Raise Usage with the sentence of the first rule whose condition holds.

    A command lists its option rules here, once: (what is wrong, the whole sentence that says so and what to do).
    """
    for is_wrong, sentence in rules:
        if is_wrong:
            raise Usage(sentence)


def refuse_one_target(targets: Mapping[str, str]) -> None:
    """Raise Usage where two outputs, {what it is: path or `-`}, would be written to one place. Devices and pipes given by path
    take both."""
    taken: dict[str, str] = {}
    for what, dst in targets.items():
        place = dst if dst == "-" else os.path.realpath(dst)
        if place in taken and dst == "-":
            raise Usage(
                f"both the {taken[place]} and the {what} are -, and stdout takes one of them. Give a file for the other."
            )
        if place in taken and (os.path.isfile(place) or os.path.isdir(place) or not os.path.exists(place)):
            raise Usage(f"{dst}: this is both the {taken[place]} and the {what}. Name another file for the {what}.")
        taken[place] = what
