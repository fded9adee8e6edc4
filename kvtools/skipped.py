"""Rows of an input that were skipped or repaired, counted by reason, so that none loses the others and none hides.

Not here: what to do about it, which is the command's: it reports them, and exits with 65 where rows were skipped.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from kvtools.errors import Corrupt

_N_NAMED = 3
_TOLD_SHARE = 0.01
# how reasons end that say what was done
_DONE = re.compile(r",? (left out|sorted|joined to it|merged with it|appended|taken as .*|read as .*)$")


def counted(n: int, noun: str) -> str:
    """A number with its noun, in the plural where there are more or none."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


@dataclass
class SkippedRows:
    """Reasons in the order they were met: reason → how many rows, and the first few by name. What is not in `skipped` was
    repaired without loss. n_rows: in all, where it is known."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    n_rows: int = 0

    @property
    def n_lost(self) -> int:
        """How many rows were skipped, for whatever reason."""
        return sum(self.counts[reason] for reason in self.skipped)

    def skip(self, reason: str, name: str) -> None:
        """Count one more skipped row."""
        self.add(reason, 1, [name])

    def add(self, reason: str, count: int, names: Iterable[object] = (), *, is_skipped: bool = True) -> None:
        """Count `count` more rows that were skipped, or else repaired; does nothing where count is 0."""
        if not count:
            return
        self.counts[reason] = self.counts.get(reason, 0) + count
        named = self.names.setdefault(reason, [])
        named += [str(name) for name in islice(names, _N_NAMED - len(named))]
        if is_skipped:
            self.skipped.add(reason)

    def report(self, name: str, log: Callable[[str], None], *, strict: bool, verbose: bool = True) -> int:
        """Log a line per reason, for repaired rows only if `verbose`; returns 65 where rows were skipped, else 0.

        Raises Corrupt for the first reason of either sort if `strict`.
        """
        for reason in self.counts:
            if strict:
                raise Corrupt(f"{name}: {self.line(reason)}. Repair the input, or run without --strict.")
            if reason in self.skipped or verbose:
                log(f"{name}: {self.line(reason)}.")
        return Corrupt.code if self.skipped else 0

    def lines(self, *, skipped: bool | None = None) -> list[str]:
        """A line per reason: all, or those of skipped rows, or those of repaired ones."""
        return [self.line(reason) for reason in self.counts if skipped in (None, reason in self.skipped)]

    def to_json(self) -> dict[str, Any]:
        """{reason: {"count", "first", "lost"}}."""
        return {
            reason: {"count": count, "first": self.names[reason], "lost": reason in self.skipped}
            for reason, count in self.counts.items()
        }

    def line(self, reason: str) -> str:
        """One reason as a sentence without its full stop: `rows without user were left out, 1 in all (row 2), 4 % of 25`."""
        named = self.names[reason]
        more = ", …" if self.counts[reason] > len(named) else ""
        done = _DONE.search(reason)
        sentence = f"{reason[: done.start()]} were {done[1]}" if done else f"there are {reason}"
        examples = f" ({', '.join(named)}{more})" if named else ""
        return f"{sentence}, {self.counts[reason]} in all{examples}{self._share(reason)}"

    def _share(self, reason: str) -> str:
        """How much of all rows that is, where more than 1 % of them and not all are skipped: `, 12 % of 800`."""
        is_much = self.n_rows * _TOLD_SHARE < self.n_lost < self.n_rows
        return f", {100 * self.counts[reason] / self.n_rows:.2g} % of {self.n_rows:,}" if is_much else ""
