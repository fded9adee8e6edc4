"""Progress of long work, on stderr: a bar on a terminal; elsewhere lines at 1, 2, 4, 8 … and at least once a minute."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def progress(items: Iterable[_T], *, total: int | None, unit: str, label: str, quiet: bool = False) -> Iterator[_T]:
    """The items, with progress printed as they pass. total: None where it is not known; label: what is being done; unit: what
    is counted."""
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, unit=unit, desc=label, leave=False)
    else:
        yield from _lines(items, total, unit, label)


def _lines(items: Iterable[_T], total: int | None, unit: str, label: str) -> Iterator[_T]:
    start = last = time.monotonic()
    for n, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        # short work stays silent: the first line comes when there has been something to wait for
        if now - start > 10 and (n & (n - 1) == 0 or now - last >= 60):
            done = n if total is None else f"{n} of {total}"
            left = "" if total is None or n >= total else f", {(now - start) / n * (total - n):.0f} s left"
            print(f"{label}: {done} {unit}, {now - start:.0f} s{left}", file=sys.stderr, flush=True)
            last = now


class Ticker:
    """Progress of work that reports each step by a call."""

    def __init__(self, *, total: int, unit: str, label: str, quiet: bool = False) -> None:
        self._steps = progress(range(total), total=total, unit=unit, label=label, quiet=quiet)

    def __call__(self, *_: object) -> None:
        """Count one more step; any arguments are ignored."""
        next(self._steps, None)
