"""Semantic IDs: every item's key and codes, and the codebooks behind them, as `semid-build` makes them.

Legend: N items, S codes an ID, L levels, K codes a level, D width. S is L, or L + 1 where one more token makes the
IDs distinct. Not here: how IDs are made (fit.py, assign.py), and how a generator searches them (model/trie.py).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

from kvtools.artifact.bag import write_bag
from kvtools.artifact.files import Sink
from kvtools.artifact.history import Step
from kvtools.artifact.open import open_bag, source_name
from kvtools.artifact.strings import first_repeated, pack, unpack
from kvtools.errors import Corrupt

if TYPE_CHECKING:
    from kvtools.onerec.model.trie import Trie


@dataclass(frozen=True)
class SemanticIds:
    """The IDs of a catalogue, and what is needed to give new items IDs by the same codebooks."""

    keys: np.ndarray  # strings (N,)
    codes_NS: np.ndarray  # int32
    codebooks_LKD: np.ndarray  # float32
    config: Mapping[str, Any] = field(default_factory=dict)  # the options of semid-build that made the codebooks
    report: Mapping[str, Any] = field(default_factory=dict)  # the quality report
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)  # `encoder.…`: what vectors go through before the codebooks
    encoder: Mapping[str, Any] | None = None  # the settings of the alignment, where there was one
    history: list[Step] = field(default_factory=list)
    fit: str | None = None  # the digest of the fit that the vectors came from, where it is known; see kvtools embed

    @classmethod
    def open(cls, src: str, *, file: BinaryIO | None = None) -> Self:
        """From a `semantic-id` bag. file: src already open. Raises Corrupt for another artifact, and for codes beyond them."""
        bag, name = open_bag(src, "semantic-id", made_by="kvtools semid-build", file=file), source_name(src)
        fields, weights = bag.fields, {tensor: x for tensor, x in bag.tensors.items() if tensor.startswith("encoder.")}
        return cls.from_tensors(
            bag.tensors, name, config=fields.get("config", {}), report=fields.get("quality", {}), weights=weights,
            encoder=fields.get("encoder"), history=bag.history, fit=fields.get("fit"),
        )  # fmt: skip

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], name: str, prefix: str = "", **fields: Any) -> Self:
        """From the tensors `codes`, `codebooks` and `keys`, in a bag of IDs or, under a prefix, in a model.

        fields: the other attributes. Raises Corrupt where the tensors contradict one another.
        """
        codes_NS = tensors[f"{prefix}codes"].astype(np.int32)
        codebooks_LKD = tensors[f"{prefix}codebooks"]
        keys = np.array(unpack(f"{prefix}keys", tensors), np.dtypes.StringDType())
        n_levels, n_codes, _ = codebooks_LKD.shape
        if len(keys) != len(codes_NS) or not len(keys):
            raise Corrupt(f"{name}: the number of keys is {len(keys)}, and that of items with codes {len(codes_NS)}. {_REMAKE}")
        largest = int(codes_NS[:, :n_levels].max())
        if codes_NS.min() < 0 or largest >= n_codes:
            raise Corrupt(f"{name}: codes run from {codes_NS.min()} to {largest}, and a level has {n_codes}. {_REMAKE}")
        if codes_NS.max() >= max(n_codes, len(keys)):  # further codes number the items of one ID
            raise Corrupt(f"{name}: code {codes_NS.max()} is too large for {len(keys)} items. {_REMAKE}")
        if not np.isfinite(codebooks_LKD).all():
            raise Corrupt(f"{name}: a codebook holds NaN or infinity. {_REMAKE}")
        if (key := first_repeated(keys)) is not None:
            raise Corrupt(f"{name}: key {key!r} names two items. {_REMAKE}")
        return cls(keys, codes_NS, codebooks_LKD, **fields)

    def save(self, sink: Sink, *, history: list[Step]) -> None:
        """Write a `semantic-id` bag and commit the sink. history: that of the bag, in place of one's own."""
        dtype = np.uint16 if int(self.codes_NS.max()) < 1 << 16 else np.int32
        tensors = {**self.tensors(), "codes": self.codes_NS.astype(dtype), **self.weights}
        fields = (
            {"quality": self.report}
            | ({"encoder": self.encoder} if self.encoder else {})
            | ({"fit": self.fit} if self.fit else {})
        )
        write_bag(sink, "semantic-id", tensors, config=self.config, history=history, **fields)

    def tensors(self, prefix: str = "") -> dict[str, np.ndarray]:
        """The tensors that `from_tensors` reads."""
        columns = {f"{prefix}{name}": array for name, array in pack("keys", self.keys).items()}
        return {f"{prefix}codebooks": self.codebooks_LKD, f"{prefix}codes": self.codes_NS, **columns}

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_distinct(self) -> int:
        """How many different IDs there are."""
        return len(np.unique(self.codes_NS, axis=0))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """How many different codes each of the S positions can have."""
        n_levels, n_codes, _ = self.codebooks_LKD.shape
        return (*[n_codes] * n_levels, *(self.codes_NS[:, n_levels:].max(axis=0) + 1).tolist())

    @property
    def digest(self) -> str:
        """A hash of keys and codes, whatever the codebooks."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.codes_NS).tobytes(), digest_size=12)
        for key in self.keys:
            digest.update(key.encode() + b"\0")
        return digest.hexdigest()

    @cached_property
    def trie(self) -> "Trie":
        """The trie of these IDs, built once: for search among them, and to number distinct IDs."""
        from kvtools.onerec.model.trie import Trie  # loads torch

        return Trie(self.codes_NS)

    def vectors(self) -> np.ndarray:
        """float32 (N, D): each item reconstructed, as the sum of its codes' vectors."""
        levels = range(len(self.codebooks_LKD))
        return np.asarray(sum(self.codebooks_LKD[level][self.codes_NS[:, level]] for level in levels), np.float32)


def one_id_each(keys: np.ndarray) -> SemanticIds:
    """IDs of one code for items that have none: the number of each. keys: strings (N,)."""
    return SemanticIds(keys, np.arange(len(keys), dtype=np.int32)[:, None], np.zeros((1, len(keys), 1), np.float32))


_REMAKE = "Make the IDs again with kvtools semid-build."
