"""Names of many rows, held as their bytes: a list of Python strings would cost more than the vectors it names."""

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np


class Keys:
    """Keys in order. `append` more, then ask for the `column`, or for one that came twice."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        self._prints = array("Q")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        return self._bytes[self._ends[row] : self._ends[row + 1]].decode("utf-8")

    def append(self, keys: Sequence[str]) -> None:
        for key in keys:
            word = key.encode("utf-8")
            self._bytes += word
            self._ends.append(len(self._bytes))
            self._prints.append(int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little"))

    def twice(self) -> str | None:
        """A key that stands in two places, or None."""
        prints = np.frombuffer(self._prints, np.uint64)
        order = np.argsort(prints, kind="stable")
        for place in np.flatnonzero(prints[order][1:] == prints[order][:-1]):
            first, second = self[order[place]], self[order[place + 1]]
            if first == second:
                return first
        return None

    def column(self, name: str) -> dict[str, np.ndarray]:
        """The string column: {name.bytes: uint8 (B,), name.offsets: int64 (n+1,)}."""
        return {f"{name}.bytes": np.frombuffer(self._bytes, np.uint8), f"{name}.offsets": np.frombuffer(self._ends, np.int64)}
