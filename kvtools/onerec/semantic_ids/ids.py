"""The catalogue of a generator: every item's key and semantic ID, as `semid-build` made them."""

import hashlib
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from kvtools.artifact import Bag, open_artifact
from kvtools.artifact.history import Step
from kvtools.artifact.kinds import check
from kvtools.artifact.strings import pack, unpack
from kvtools.errors import Corrupt


@dataclass(frozen=True)
class Ids:
    """Items, their codes and the codebooks behind them. Legend: N items, S codes an ID, L levels, K codes, D width."""

    keys: np.ndarray  # strings (N,)
    codes_NS: np.ndarray  # int32 (N, S); S is L, or L + 1 where one more token tells items of one ID apart
    codebooks_LKD: np.ndarray  # float32

    @classmethod
    def open(cls, src: str) -> tuple[Self, list[Step]]:
        """From a file, and the history it brings."""
        artifact = open_artifact(src)
        return cls.of(artifact, src), artifact.history if isinstance(artifact, Bag) else []

    @classmethod
    def of(cls, artifact: Any, name: str) -> Self:
        """From a `semantic-id` bag. Raises Corrupt for another artifact, and for codes that no codebook has."""
        if not isinstance(artifact, Bag) or artifact.kind != "semantic-id":
            kind = artifact.kind if isinstance(artifact, Bag) else artifact.head.kind
            raise Corrupt(f"{name}: {kind or 'a foreign bag'} found, semantic-id expected. Make one with kvtools semid-build.")
        try:
            check(artifact.kind, "bag", artifact.tensors, artifact.fields)
        except ValueError as fault:
            raise Corrupt(f"{name}: {fault}.") from None
        return cls.from_tensors(artifact.tensors, name)

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray], name: str, prefix: str = "") -> Self:
        """From the tensors `codes`, `codebooks` and `keys`, in a bag of IDs or, under a prefix, in a model."""
        codes_NS = tensors[f"{prefix}codes"].astype(np.int32)
        codebooks_LKD = tensors[f"{prefix}codebooks"]
        keys = np.array(unpack(f"{prefix}keys", tensors), dtype=np.dtypes.StringDType())
        n_levels, n_codes, _ = codebooks_LKD.shape
        if len(keys) != len(codes_NS) or not len(keys):
            raise Corrupt(f"{name}: {len(keys)} keys for {len(codes_NS)} items found, one each expected.")
        if codes_NS.min() < 0 or codes_NS[:, :n_levels].max() >= n_codes:
            raise Corrupt(f"{name}: code {codes_NS[:, :n_levels].max()} found, codes of 0 to {n_codes - 1} expected.")
        if codes_NS.max() >= max(n_codes, len(keys)):  # further codes tell items of one ID apart
            raise Corrupt(f"{name}: code {codes_NS.max()} found, fewer than the {len(keys)} items expected.")
        if not np.isfinite(codebooks_LKD).all():
            raise Corrupt(f"{name}: a codebook that is not finite found.")
        if len(np.unique(keys)) < len(keys):
            raise Corrupt(f"{name}: {len(keys) - len(np.unique(keys))} keys found twice, one each expected.")
        return cls(keys, codes_NS, codebooks_LKD)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many codes each place of an ID can have."""
        n_levels, n_codes, _ = self.codebooks_LKD.shape
        further = self.codes_NS[:, n_levels:].max(axis=0).tolist()
        return tuple([n_codes] * n_levels + [n + 1 for n in further])

    @property
    def digest(self) -> str:
        """What tells these IDs from others: keys and codes, whatever the codebooks."""
        told = hashlib.blake2b(np.ascontiguousarray(self.codes_NS).tobytes(), digest_size=12)
        for key in self.keys.tolist():
            told.update(key.encode() + b"\0")
        return told.hexdigest()

    def vectors(self) -> np.ndarray:
        """float32 (N, D): every item as its codes tell it."""
        levels = range(len(self.codebooks_LKD))
        return np.asarray(sum(self.codebooks_LKD[level][self.codes_NS[:, level]] for level in levels), np.float32)

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        """The tensors that `from_tensors` reads."""
        columns = {f"{prefix}{name}": array for name, array in pack("keys", self.keys.tolist()).items()}
        return {f"{prefix}codes": self.codes_NS, f"{prefix}codebooks": self.codebooks_LKD, **columns}
