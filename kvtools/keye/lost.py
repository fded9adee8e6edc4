"""What was left out on the way, and why: counted and named, so that one bad thing never loses the others and never hides."""

from collections.abc import Callable
from dataclasses import dataclass, field

from kvtools.faults import Corrupt

_N_NAMED = 3


@dataclass
class Lost:
    """Reasons in the order in which they were met: how many each, and the first few by name."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        named = self.names.setdefault(reason, [])
        if len(named) < _N_NAMED:
            named.append(name)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """A line a reason: how many, and the first few."""
        return [
            f"{reason}: {n} ({', '.join(self.names[reason])}{', …' if n > len(self.names[reason]) else ''})"
            for reason, n in self.counts.items()
        ]

    def settle(self, say: Callable[[str], None], where: str, *, strict: bool) -> int:
        """Say what was left out; returns 65 where anything was, else 0. With `strict` the first reason is a Corrupt fault."""
        if strict and self.counts:
            raise Corrupt(f"{where}: {self.lines()[0]}; --strict expects none.")
        self.tell(say, where)
        return Corrupt.code if self.counts else 0

    def tell(self, say: Callable[[str], None], where: str) -> None:
        """Say each line, with where it was."""
        for line in self.lines():
            say(f"{where}: {line}.")
