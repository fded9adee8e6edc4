"""Vectors on their way from the intake to the quantiser, moved so that items which go together lie together (align.py)."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from kvtools.artifact import Reader, kinds, open_artifact
from kvtools.artifact.files import open_source
from kvtools.artifact.strings import unpack
from kvtools.errors import Corrupt
from kvtools.onerec.items.catalogue import read_catalogue
from kvtools.onerec.items.intake import Intake
from kvtools.onerec.semantic_ids.align import Settings, align, encode
from kvtools.progress import Ticker

_BLOCK_ROWS = 4096
_N_WORDS = 8192  # ids of caption terms: the most frequent ones
_PREFIX = "encoder.align."

Weights = dict[str, np.ndarray]


class Aligned:
    """An intake whose vectors are aligned by pairs of items before they are handed on; iterate once, in blocks.

    Holds all vectors, and their aligned form, which is four times as wide. `weights` and `settings` align newcomers.
    """

    def __init__(
        self, intake: Intake, pairs_src: str, captions_src: str | None, settings: Settings, seed: int, *, is_quiet: bool
    ) -> None:
        self.name, self.keys, self.skipped = intake.name, intake.keys, intake.skipped
        self.weights: Weights = {}
        self.settings = settings
        self._intake, self._captions_src = intake, captions_src
        self._pairs_name, self._pairs = ("stdin" if pairs_src == "-" else pairs_src), open_artifact(pairs_src)
        self._seed, self._is_quiet = seed, is_quiet
        if not isinstance(self._pairs, Reader) or self._pairs.head.kind != "pair":
            kind = self._pairs.head.kind if isinstance(self._pairs, Reader) else self._pairs.kind
            raise Corrupt(f"{self._pairs_name}: {kind or 'a foreign bag'} found, pair expected. Make them with kvtools pairs.")
        self.history = [*intake.history, *(step for step in self._pairs.head.history if step not in intake.history)]

    def __iter__(self) -> Iterator[np.ndarray]:
        x_ND = np.concatenate(list(self._intake))
        numbers = {self.keys[row]: row for row in range(len(self.keys))}
        pairs_P2 = self._read_pairs(numbers)
        captions = None if self._captions_src is None else self._read_captions(self._captions_src)
        steps = Ticker(total=self.settings.n_steps, unit="steps", label="align", quiet=self._is_quiet)
        try:
            found = align(x_ND, pairs_P2, settings=self.settings, seed=self._seed, captions=captions, tell=steps)
        except ValueError as fault:
            raise Corrupt(f"{self._pairs_name}: {fault}.") from None
        self.weights = {_PREFIX + name: array for name, array in found.weights.items()}
        for begin in range(0, len(x_ND), _BLOCK_ROWS):
            yield found.vectors[begin : begin + _BLOCK_ROWS]

    def _read_pairs(self, numbers: dict[str, int]) -> np.ndarray:
        assert isinstance(self._pairs, Reader), "told at the start"
        found, n_unknown = [np.empty((0, 2), np.int64)], 0
        for record in self._pairs:
            try:
                kinds.check("pair", "stream", record.tensors, record.fields)
            except ValueError as fault:
                raise Corrupt(f"{self._pairs_name}: record {record.number}: {fault}.") from None
            rows = np.array([numbers.get(key, -1) for key in unpack("keys", record.tensors)], np.int64)
            pairs_P2 = rows[record.tensors["pairs"]] if len(record.tensors["pairs"]) else found[0]
            is_known = (pairs_P2 >= 0).all(axis=1)
            n_unknown += int((~is_known).sum())
            found.append(pairs_P2[is_known])
        self.skipped.add(f"pairs in {self._pairs_name} of items without a vector left out", n_unknown, is_skipped=False)
        pairs_P2 = np.concatenate(found)
        if len(pairs_P2) < 2:
            raise Corrupt(f"{self._pairs_name}: {len(pairs_P2)} pairs of items that have vectors found, 2 or more expected.")
        return pairs_P2

    def _read_captions(self, src: str) -> list[list[int]]:
        with open_source(src) as file:
            catalogue, _ = read_catalogue(file, src)
        counts = Counter(term for terms in catalogue.terms for term in terms)
        # by count, then by name: equal counts must not be ordered by chance
        common = sorted(counts, key=lambda term: (-counts[term], term))[:_N_WORDS]
        ids = {term: number for number, term in enumerate(common)}
        said = {key: [ids[t] for t in terms if t in ids] for key, terms in zip(catalogue.keys, catalogue.terms, strict=True)}
        captions = [said.get(self.keys[row], []) for row in range(len(self.keys))]
        if not any(captions):
            raise Corrupt(f"{src}: nothing said of any item that has a vector. Look at the keys.")
        return captions


def lens_of(tensors: dict[str, np.ndarray], fields: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray] | None:
    """What aligns newcomers as the items of a bag were aligned; None where they were not."""
    weights = {name.removeprefix(_PREFIX): array for name, array in tensors.items() if name.startswith(_PREFIX)}
    if not weights:
        return None
    settings = Settings(**fields["encoder"])
    return lambda x_BD: encode(x_BD, weights, settings)


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """What a bag keeps of how its items were aligned."""
    words: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return words
