"""A column of strings as two tensors, as in Arrow: `x.bytes`, their UTF-8 one after the other, and `x.offsets` into it."""

from array import array
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np


def pack(name: str, strings: Iterable[str]) -> dict[str, np.ndarray]:
    """{name.bytes: uint8 (B,), name.offsets: int64 (n+1,)}. Holds one string at a time beside them."""
    data, ends = bytearray(), array("q", [0])
    for string in strings:
        data += string.encode("utf-8")
        ends.append(len(data))
    return {f"{name}.bytes": np.frombuffer(data, np.uint8), f"{name}.offsets": np.frombuffer(ends, np.int64)}


class Packed:
    """Many strings, of which some are taken again and again."""

    def __init__(self, strings: Iterable[str]) -> None:
        column = pack("x", strings)
        self._bytes, self._ends = column["x.bytes"], column["x.offsets"]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def take(self, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What `pack` gives for the strings of these rows, int64 (n,)."""
        begins = self._ends[rows]
        lengths = self._ends[rows + 1] - begins
        ends = np.concatenate([[0], np.cumsum(lengths)])
        where = np.repeat(begins - ends[:-1], lengths) + np.arange(ends[-1])
        return {f"{name}.bytes": self._bytes[where], f"{name}.offsets": ends}


def unpack(name: str, tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The strings of a column. Raises ValueError where it is absent or not UTF-8; `kinds.check` checks its offsets."""
    if f"{name}.bytes" not in tensors or f"{name}.offsets" not in tensors:
        raise ValueError(f"there is no column of strings named {name}")
    data, ends = tensors[f"{name}.bytes"].tobytes(), tensors[f"{name}.offsets"].tolist()
    return [data[begin:end].decode("utf-8") for begin, end in pairwise(ends)]


def first_repeated(strings: np.ndarray) -> str | None:
    """The first, in alphabetical order, of the strings (n,) that occur twice; None where all differ."""
    ordered = np.sort(strings)
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    return str(ordered[again[0]]) if len(again) else None
