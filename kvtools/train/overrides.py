"""What a training run may be told in words: NAME=VALUE settings over defaults, and durations in steps, epochs or tokens.

Not here: which settings a model has, and what they do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvtools.errors import Usage
from kvtools.options import duration

# a test of a value, and its words
Allowed = Mapping[str, tuple[Callable[[Any], bool], str]]


def named(words: Sequence[str], option: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """NAME=VALUE words over defaults, each of its default's type. Raises Usage for another name or type."""
    told = dict(defaults)
    for word in words:
        name, _, value = word.partition("=")
        if name not in defaults:
            raise Usage(f"{option} {word}: one of {', '.join(defaults)} expected.")
        kind = type(defaults[name])
        try:
            told[name] = value.lower() in ("1", "true", "yes") if kind is bool else kind(value)
        except ValueError:
            raise Usage(f"{option} {word}: a value like {defaults[name]!r} expected.") from None
    return told


def refuse_nonsense(option: str, values: Mapping[str, Any], allowed: Allowed, durations: Sequence[str] = ()) -> None:
    """Raise Usage for a value that its name cannot have: 0 or more where nothing else is allowed, a duration for some."""
    for name, value in values.items():
        if name in durations:
            duration(value, f"{option} {name}")
            continue
        is_good, expected = allowed.get(name, (lambda n: 0 <= n < math.inf, "0 or more"))
        if not is_good(value):
            raise Usage(f"{option} {name}={value}: {expected} expected.")


@dataclass(frozen=True)
class Lengths:
    """How long things are in steps, where an epoch has n_steps steps and n_tokens tokens."""

    n_steps: int
    n_tokens: int

    def steps(self, words: str, option: str, *, of: int = 0) -> float:
        """Steps that a duration stands for; `of`: what 100 % is."""
        value, unit = duration(words, option)
        return {
            "": value, "ep": value * self.n_steps, "tok": value / self.n_tokens * self.n_steps, "%": value / 100 * of
        }[unit]  # fmt: skip

    def total(self, words: str, option: str = "--steps") -> int:
        """Steps of a whole run, at least 1. Raises Usage for a share, and for none."""
        value, unit = duration(words, option)
        if unit == "%" or not value:
            raise Usage(f"{option} {words}: some steps, epochs or tokens expected.")
        return max(1, round(self.steps(words, option)))
