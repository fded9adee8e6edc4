"""Lengths of a training run in words: `500` steps, `3ep` epochs, `2%` of the run or `1e9tok` tokens."""

import re
from dataclasses import dataclass

from kvtools.errors import Usage

_FORM = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)(ep|%|tok|)")


def parse_duration(text: str, option: str) -> tuple[float, str]:
    """The number and its unit, one of "" (steps), "ep", "%" and "tok". Raises Usage."""
    match = _FORM.fullmatch(text)
    if not match:
        raise Usage(f"{option} {text} is not a duration. Give one as 500 (steps), 3ep, 2% or 1e9tok.")
    return float(match[1]), match[2]


@dataclass(frozen=True)
class EpochLength:
    """Steps and tokens of one epoch: what turns durations into steps."""

    n_steps: int
    n_tokens: int

    def steps(self, text: str, option: str, *, of: int = 0) -> float:
        """Steps of a duration; `of`: the steps that are 100 %. Raises Usage."""
        value, unit = parse_duration(text, option)
        return {
            "": value, "ep": value * self.n_steps, "tok": value / self.n_tokens * self.n_steps, "%": value / 100 * of
        }[unit]  # fmt: skip

    def total(self, text: str, option: str = "--steps") -> int:
        """Steps of a whole run, at least 1. Raises Usage for a percentage, and for 0."""
        match = _FORM.fullmatch(text)
        if not match or match[2] == "%" or not float(match[1]):
            raise Usage(f"{option} {text} is not the length of a run. Give steps, epochs or tokens, as 500, 3ep or 1e9tok.")
        return max(1, round(self.steps(text, option)))
