"""Order-agnostic digests: equal for the same records in any order, any sharding, stored or compressed.

`kvs1_` + 32 hex digits: the sum modulo 2^128 of a 16-byte blake2b of each record (or of each tensor of a bag), so that a
record lost, doubled or changed shows. Detects accidents; it is no signature, since sums can be forged.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvtools.artifact.blob import NAMES, bytes_of, canonical

_MODULUS = 1 << 128


class Digest:
    """A running digest; `add` records in any order, or add the digests of parts with `+`."""

    def __init__(self, total: int = 0) -> None:
        self._total = total

    def add(self, tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> None:
        """Add one record. A bag is added tensor by tensor, each with empty fields."""
        shapes = {name: [NAMES[a.dtype], list(a.shape)] for name, a in tensors.items()}
        state = hashlib.blake2b(canonical([shapes, dict(fields)]), digest_size=16)
        for name in sorted(tensors):
            state.update(bytes_of(np.ascontiguousarray(tensors[name])))
        self._total = (self._total + int.from_bytes(state.digest(), "little")) % _MODULUS

    @staticmethod
    def of_bag(tensors: Mapping[str, np.ndarray]) -> "Digest":
        """The digest of a bag's tensors."""
        digest = Digest()
        for name, array in tensors.items():
            digest.add({name: array}, {})
        return digest

    def __add__(self, other: "Digest") -> "Digest":
        return Digest((self._total + other._total) % _MODULUS)

    def __str__(self) -> str:
        return f"kvs1_{self._total:032x}"
