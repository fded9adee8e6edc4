"""How many samples of each mode a mixture has: exact counts from a ratio or from epochs."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm

# thousands of samples of the Keye-VL report, section 4.2.1, by mode; its 104 of video are 24 thinking and 80 non-thinking
REPORT_RATIO = {"think": 230, "no_think": 330, "auto": 20, "agentic": 100, "video": 104}
REPORT_VIDEO = (24, 80)


def parse_numbers(text: str) -> list[Fraction]:
    """Numbers above 0 with colons between them, as `2:0.5:1`. Raises ValueError for anything else."""
    try:
        numbers = [Fraction(part) for part in text.split(":")]
    except (ValueError, ZeroDivisionError):
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise ValueError(f"{text} is not a list of numbers above 0 with colons between them")
    return numbers


def whole(numbers: Sequence[Fraction]) -> tuple[int, ...]:
    """The numbers scaled to integers of the same ratio."""
    scale = lcm(*(number.denominator for number in numbers))
    return tuple(int(number * scale) for number in numbers)


def counts(weights: Sequence[int], n: int) -> list[int]:
    """N shared out by weight, by the method of the largest remainder; ties go to the earlier weight. Sums to n exactly.

    Source: Hamilton's method of apportionment.
    """
    total = sum(weights)
    shares = [weight * n // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(weights[i] * n % total), i))
    for i in by_remainder[: n - sum(shares)]:
        shares[i] += 1
    return shares


def largest_n(weights: Sequence[int], available: Sequence[int]) -> int:
    """The largest n whose counts are available, 0 where there is none but 0."""
    total = sum(weights)
    # a count is less than one above its quota, so no larger n can fit, and one below its quota, so a smaller one does soon
    bound = min((have + 1) * total // weight for weight, have in zip(weights, available, strict=True))
    for n in range(bound, 0, -1):
        if all(count <= have for count, have in zip(counts(weights, n), available, strict=True)):
            return n
    return 0


def by_epochs(epochs: Sequence[Fraction], available: Mapping[str, int]) -> dict[str, int]:
    """How many records of each mode make so many passes over it, halves rounded up."""
    return {mode: int(each * n + Fraction(1, 2)) for each, (mode, n) in zip(epochs, available.items(), strict=True)}


def split_video(n: int, available: tuple[int, int], weights: tuple[int, int] = REPORT_VIDEO) -> tuple[int, int]:
    """How many of n records about videos are thinking and not: by weight where both suffice, else all of the scarcer."""
    thinking, plain = counts(weights, n)
    if thinking > available[0]:
        thinking = available[0]
    elif plain > available[1]:
        thinking = min(available[0], n - available[1])
    return thinking, n - thinking
