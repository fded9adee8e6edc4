"""What a fit of text vectors learned: the weight and the direction of every term, and the scale of every numeric column.

It travels with the vectors, in the records of their stream, so that items that come later are projected as the first ones
were: `embed --like`. The digest in the head of the stream names the fit. Terms that the fit did not know say nothing.

Legend: N items, V terms, E dimensions, C numeric columns.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from kvtools.artifact import checked_records, open_stream
from kvtools.artifact.blob import Tensors
from kvtools.artifact.history import Step
from kvtools.artifact.strings import pack, unpack
from kvtools.errors import Corrupt

_PART_BYTES = 48 << 20  # of a record, beside its vectors
_TERM_BYTES = 64  # of a term's text and offset, about
NOTHING = 1e-6  # of a row's norm: what is left below this is rounding, measured at 1e-15 and far from real rows at 1e-3


@dataclass(frozen=True)
class Basis:
    """The fit. terms: V, sorted; weights_V: float32, their idf; vectors_VE: float32, the dimensions; mean_C and deviation_C:
    float64, of the numeric columns."""

    terms: list[str]
    weights_V: np.ndarray
    vectors_VE: np.ndarray
    mean_C: np.ndarray
    deviation_C: np.ndarray

    @cached_property
    def digest(self) -> str:
        """A hash of everything in it."""
        digest = hashlib.blake2b("\0".join(self.terms).encode(), digest_size=12)
        for array in (self.weights_V, self.vectors_VE, self.mean_C, self.deviation_C):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def project(self, terms: Sequence[Sequence[str]]) -> np.ndarray:
        """float64 (N, E): rows of TF-IDF over the known terms, made unit norm, on the dimensions; 0 where no term is known, or
        all lie outside of the dimensions."""
        number_of = {term: number for number, term in enumerate(self.terms)}
        known = [[number_of[term] for term in own if term in number_of] for own in terms]
        rows = np.repeat(np.arange(len(known)), [len(own) for own in known])
        columns = np.array([number for own in known for number in own], np.int64)
        x_NV = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(known), len(self.terms))).tocsr()
        x_NV.data *= self.weights_V[x_NV.indices]
        norm_N = np.sqrt(x_NV.multiply(x_NV).sum(axis=1))
        x_NE = (x_NV @ self.vectors_VE.astype(np.float64)) / np.where(norm_N > 0, norm_N, 1)[:, None]
        x_NE[np.linalg.norm(x_NE, axis=1) < NOTHING] = 0
        return np.asarray(x_NE)

    def standardise(self, x_NC: np.ndarray) -> np.ndarray:
        """float64 (N, C): columns as those of the fit, with mean 0 and variance 1 there; NaN, an empty cell, is the mean."""
        scaled_NC = (np.where(np.isnan(x_NC), self.mean_C, x_NC) - self.mean_C) / self.deviation_C
        return np.asarray(scaled_NC)

    def parts(self, n_parts: int) -> Iterator[Tensors]:
        """The tensors of each of so many records. What is too large for them is cut: the rarest terms are left out first, so
        call it on `fitting`."""
        for numbers in np.array_split(np.arange(len(self.terms)), n_parts):
            if not len(numbers):
                yield {}
                continue
            here = slice(int(numbers[0]), int(numbers[-1]) + 1)
            yield {
                **pack("basis.terms", self.terms[here]), "basis.weights": self.weights_V[here],
                "basis.vectors": self.vectors_VE[here],
            }  # fmt: skip

    def fitting(self, n_parts: int) -> "Basis":
        """The same, without the rarest terms where so many records cannot hold all."""
        most = n_parts * (_PART_BYTES // (4 * self.vectors_VE.shape[1] + _TERM_BYTES))
        if len(self.terms) <= most:
            return self
        kept = np.sort(np.argsort(self.weights_V, kind="stable")[:most])
        terms = [self.terms[number] for number in kept.tolist()]
        return replace(self, terms=terms, weights_V=self.weights_V[kept], vectors_VE=self.vectors_VE[kept])

    def to_json(self) -> dict[str, Any]:
        """What stands in the head of the stream."""
        return {"digest": self.digest, "mean": self.mean_C.tolist(), "deviation": self.deviation_C.tolist()}


def open_basis(src: str) -> tuple[Basis, dict[str, Any], list[Step]]:
    """The basis in a stream of embeddings, the options that the vectors were made with, and the stream's history.

    Raises Corrupt for another artifact, and for a stream without a basis or with a part of one.
    """
    reader = open_stream(src, "embedding", made_by="kvtools embed")
    head = reader.head
    fit = head.config.get("fit")
    weight_of: dict[str, tuple[float, np.ndarray]] = {}
    for record in checked_records(reader, made_by="kvtools embed"):
        if "basis.weights" in record.tensors:
            rows = zip(record.tensors["basis.weights"], record.tensors["basis.vectors"], strict=True)
            weight_of |= zip(unpack("basis.terms", record.tensors), rows, strict=True)
    if not isinstance(fit, dict):
        raise Corrupt(
            f"{reader.name}: its vectors were not fitted to text by this version. Make them with kvtools embed ITEMS."
        )
    terms = sorted(weight_of)
    weights_V = np.array([weight_of[term][0] for term in terms], np.float32)
    vectors_VE = np.array([weight_of[term][1] for term in terms], np.float32).reshape(len(terms), -1 if terms else 0)
    basis = Basis(terms, weights_V, vectors_VE, np.array(fit["mean"], np.float64), np.array(fit["deviation"], np.float64))
    if basis.digest != fit["digest"]:
        raise Corrupt(f"{reader.name}: a part of the fit {fit['digest']} is missing. Give the whole stream of kvtools embed.")
    return basis, dict(head.config), head.history
