"""What was found wrong in an input, counted and named, so that one bad row never loses the others and never hides.

A finding either cost rows (`lost`) or was put right without loss (`mended`). Not here: what to do about it, which is the
command's: it tells, and exits with 65 where rows were lost.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from kvtools.errors import Corrupt

_N_NAMED = 3


@dataclass
class Findings:
    """Findings in the order they were made: what → how many, and the first few by name."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def lose(self, what: str, name: str) -> None:
        """Count one more of `what`, by its name, as lost."""
        self.add(what, 1, [name])

    def add(self, what: str, count: int, names: Iterable[object] = (), *, is_lost: bool = True) -> None:
        """Count `count` more of `what`; does nothing where count is 0."""
        if not count:
            return
        self.counts[what] = self.counts.get(what, 0) + count
        named = self.names.setdefault(what, [])
        named += [str(name) for name in islice(names, _N_NAMED - len(named))]
        if is_lost:
            self.lost.add(what)

    def settle(self, name: str, tell: Callable[[str], None], *, strict: bool, is_told: bool = True) -> int:
        """Tell what was lost, and what was mended where `is_told`; returns 65 where anything was lost, else 0. With `strict`
        the first finding of either sort is a Corrupt fault."""
        for what in self.counts:
            if strict:
                raise Corrupt(f"{name}: {self.line(what)}; --strict expects none.")
            if what in self.lost or is_told:
                tell(f"{name}: {self.line(what)}.")
        return Corrupt.code if self.lost else 0

    @property
    def n_lost(self) -> int:
        """How many rows or items were lost in all."""
        return sum(self.counts[what] for what in self.lost)

    def lines(self, *, lost: bool | None = None) -> list[str]:
        """A line a finding: all, or those that cost rows, or those that were mended."""
        return [self.line(what) for what in self.counts if lost in (None, what in self.lost)]

    def to_json(self) -> dict[str, Any]:
        """{what: {"count", "first", "lost"}}."""
        return {
            what: {"count": count, "first": self.names[what], "lost": what in self.lost} for what, count in self.counts.items()
        }

    def line(self, what: str) -> str:
        """One finding in words: what, how many, and the first few."""
        named = self.names[what]
        more = ", …" if self.counts[what] > len(named) else ""
        return f"{what}: {self.counts[what]}{' (' + ', '.join(named) + more + ')' if named else ''}"
