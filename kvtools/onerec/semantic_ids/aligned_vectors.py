"""Vectors that are aligned by pairs of items before they are quantised, and newcomers aligned as they were (align.py)."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from kvtools.artifact import checked_records, open_stream, source_name
from kvtools.artifact.files import open_source
from kvtools.artifact.strings import unpack
from kvtools.errors import Corrupt, Usage, raising
from kvtools.onerec.items.catalogue import read_catalogue
from kvtools.onerec.items.vectors import VectorSource
from kvtools.onerec.semantic_ids.align import AlignConfig, align, encode
from kvtools.onerec.semantic_ids.ids import SemanticIds
from kvtools.progress import Ticker

_BLOCK_ROWS = 4096
_N_TERMS = 8192  # ids of caption terms: the most frequent ones
_PREFIX = "encoder.align."
_MANY = 0.1  # of the items. On Beauty, where it is 28 %, pairs helped; on MovieLens-100k they made no difference


class AlignedSource(VectorSource):
    """A VectorSource whose vectors are aligned by pairs of items, from kvtools pairs. Holds all vectors, and their aligned
    form, which is four times as wide."""

    def __init__(
        self, src: str, keys_src: str | None, pairs_src: str, captions_src: str | None, config: AlignConfig, seed: int, *,
        quiet: bool,
    ) -> None:  # fmt: skip
        """captions_src: a catalogue whose terms the aligned vectors must predict, None for none."""
        super().__init__(src, keys_src)
        self._pairs_name, self._captions_src = source_name(pairs_src), captions_src
        self._pairs = open_stream(pairs_src, "pair", made_by="kvtools pairs")
        self._config, self._seed, self._quiet = config, seed, quiet
        self.encoder = json.loads(json.dumps(asdict(config)))
        self.history = [*self.history, *(step for step in self._pairs.head.history if step not in self.history)]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Raises Corrupt as VectorSource does, and for pairs and captions of other items."""
        x_ND = np.concatenate(list(super().__iter__()))
        pairs_P2 = self._read_pairs()
        captions = None if self._captions_src is None else self._read_captions(self._captions_src)
        on_step = Ticker(total=self._config.n_steps, unit="steps", label="align", quiet=self._quiet)
        with raising(Corrupt, self.name, "The vectors cannot be aligned; give other vectors, or build the IDs without pairs."):
            aligned = align(x_ND, pairs_P2, config=self._config, seed=self._seed, captions=captions, on_step=on_step)
        self.weights = {_PREFIX + name: array for name, array in aligned.weights.items()}
        for begin in range(0, len(x_ND), _BLOCK_ROWS):
            yield aligned.vectors[begin : begin + _BLOCK_ROWS]

    def _read_pairs(self) -> np.ndarray:
        """int64 (P, 2): the rows of the pairs that have two vectors."""
        row_of = {key: row for row, key in enumerate(self.keys)}
        known, n_unknown = [np.empty((0, 2), np.int64)], 0
        for record in checked_records(self._pairs, made_by="kvtools pairs"):
            rows = np.array([row_of.get(key, -1) for key in unpack("keys", record.tensors)], np.int64)
            pairs_P2 = rows[record.tensors["pairs"]] if len(record.tensors["pairs"]) else known[0]
            is_known = (pairs_P2 >= 0).all(axis=1)
            n_unknown += int((~is_known).sum())
            known.append(pairs_P2[is_known])
        reason = f"pairs in {self._pairs_name} of items without a vector left out"
        self.skipped.add(reason, n_unknown, is_skipped=False)
        pairs_P2 = np.concatenate(known)
        if len(pairs_P2) < 2:
            raise Corrupt(
                f"{self._pairs_name}: {len(pairs_P2)} pairs have vectors for both items, and 2 are needed. Look at the keys."
            )
        return pairs_P2

    def _read_captions(self, src: str) -> list[list[int]]:
        """For each row the ids of its terms."""
        name = source_name(src)
        with open_source(src) as file, raising(Usage, name, "Give captions that kvtools embed reads without options."):
            catalogue, _ = read_catalogue(file, name)
        counts = Counter(term for terms in catalogue.terms for term in terms)
        # by count, then by name: terms of equal count need an order that does not depend on the file's
        common = sorted(counts, key=lambda term: (-counts[term], term))[:_N_TERMS]
        id_of = {term: number for number, term in enumerate(common)}
        terms_of = dict(zip(catalogue.keys, catalogue.terms, strict=True))
        captions = [[id_of[term] for term in terms_of.get(key, []) if term in id_of] for key in self.keys]
        if not any(captions):
            raise Corrupt(f"{source_name(src)}: it describes no item that has a vector. Look at the keys.")
        return captions


def align_like(ids: SemanticIds, x_BD: np.ndarray) -> np.ndarray:
    """float32 (B, E): vectors (float32) aligned as the items of the IDs were; the same where they were not.

    Raises ValueError for another width.
    """
    weights = {name.removeprefix(_PREFIX): array for name, array in ids.weights.items() if name.startswith(_PREFIX)}
    return encode(x_BD, weights, AlignConfig(**(ids.encoder or {}))) if weights else x_BD


def advice_on_pairs(ids: SemanticIds | None) -> str:
    """What to tell of IDs that a fit made without pairs: one sentence and the remedy where many items got the codes of another,
    before any way out of such collisions; else empty."""
    if ids is None or ids.encoder is not None:
        return ""
    n_items, report = len(ids), ids.report
    gave_way = {
        "keep": n_items - len(np.unique(ids.codes_NS, axis=0)),
        "extend": int((ids.codes_NS[:, -1] > 0).sum()),
        "nearest": report.get("moved", 0) + report.get("stuck", 0),
    }[report["collisions"]]
    if gave_way <= _MANY * n_items:
        return ""
    return (
        f"{gave_way:,} of {n_items:,} items have the codes of another: their vectors tell them apart badly. "
        "Where there are interactions, give --pairs, from kvtools pairs."
    )
