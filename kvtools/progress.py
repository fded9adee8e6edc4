"""Progress of long work, on stderr: a bar on a terminal; elsewhere lines at 1, 2, 4, 8 … and at least once a minute."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def progress(things: Iterable[_T], *, total: int, unit: str, words: str, quiet: bool = False) -> Iterator[_T]:
    """The things, told as they go by. `words` says what is being done, `unit` what is counted."""
    if quiet:
        yield from things
    elif sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(things, total=total, unit=unit, desc=words, leave=False)
    else:
        yield from _lines(things, total, unit, words)


def _lines(things: Iterable[_T], total: int, unit: str, words: str) -> Iterator[_T]:
    begun = told = time.monotonic()
    for n, thing in enumerate(things, start=1):
        yield thing
        now = time.monotonic()
        # short work stays silent: the first line comes when there has been something to wait for
        if now - begun > 10 and (n & (n - 1) == 0 or now - told >= 60):
            print(f"{words}: {n} of {total} {unit}, {now - begun:.0f} s", file=sys.stderr, flush=True)
            told = now


class Ticker:
    """Progress of work that reports each step by calling us, whatever else it says."""

    def __init__(self, *, total: int, unit: str, words: str, quiet: bool = False) -> None:
        self._steps = progress(range(total), total=total, unit=unit, words=words, quiet=quiet)

    def __call__(self, *_: object) -> None:
        next(self._steps, None)
