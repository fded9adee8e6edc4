"""Interactions as a generator reads them: items of its catalogue, and features as small numbers.

Legend: n interactions, F features. How features become numbers is fixed on the training part (`FeatureEncoder.fit`), stored
with the model, and used again. Our choices, since the report does not say how features are bucketed and which interactions are
positive: time is the gap to the interaction before, in powers of two; playtime and duration likewise; a rating is positive
from the median of the training part on.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from kvtools.onerec.interactions.histories import N_BUCKETS, Histories, log2_buckets
from kvtools.onerec.interactions.log import TRAIN, Interactions, parts_of
from kvtools.onerec.semantic_ids.ids import SemanticIds
from kvtools.skipped import SkippedRows

_N_LABELS = 20  # distinct ratings with a code each, at most; where there are more, each tenth of the ratings has one
_N_WORDS = 50_000  # authors or tags that have a code of their own


@dataclass(frozen=True)
class FeatureEncoder:
    """How each feature becomes a number from 1 on; 0 is unknown. Empty where a feature is missing."""

    labels: tuple[float, ...] = ()  # ratings that have a code each, or the edges between tenths
    is_exact: bool = True  # whether labels are values, not edges
    has_time: bool = False
    numbers: tuple[str, ...] = ()  # which of playtime and duration there are
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # those with a code, most frequent first
    positive_from: float | None = None  # the rating from which an interaction counts as positive

    @classmethod
    def fit(cls, interactions: Interactions, is_train: np.ndarray, *, positive_from: float | None = None) -> Self:
        """From the training part, bool (n,). Where it has no ratings there are no labels, and positives only if given."""
        numbers = tuple(name for name in ("playtime", "duration") if name in interactions.extras)
        words = {name: _frequent(interactions, name, is_train) for name in sorted(interactions.words)}
        ratings = np.zeros(0) if interactions.ratings is None else interactions.ratings[is_train]
        ratings = ratings[~np.isnan(ratings)]
        if not len(ratings):
            start = None if interactions.ratings is None else positive_from
            return cls(has_time=interactions.has_times, numbers=numbers, words=words, positive_from=start)
        values = np.unique(ratings)
        is_exact = len(values) <= _N_LABELS
        labels = values if is_exact else np.unique(np.quantile(ratings, np.linspace(0.1, 0.9, 9)))
        start = float(np.median(ratings)) if positive_from is None else positive_from
        return cls(tuple(labels.tolist()), is_exact, interactions.has_times, numbers, words, start)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The encoder that to_json gave."""
        words = {name: tuple(words) for name, words in fields["words"].items()}
        return cls(**{**fields, "labels": tuple(fields["labels"]), "numbers": tuple(fields["numbers"]), "words": words})

    def to_json(self) -> dict[str, Any]:
        """Its fields by name."""
        return asdict(self)

    @property
    def features(self) -> dict[str, int]:
        """Name to number of categories, 0 included, in the order of the columns of `encode`."""
        n_categories = {
            **{name: len(words) + 1 for name, words in self.words.items()},
            "time": N_BUCKETS + 1 if self.has_time else 0,
            **dict.fromkeys(self.numbers, N_BUCKETS + 1),
            "label": len(self.labels) + 1 + (not self.is_exact) if self.labels else 0,
        }
        return {name: n for name, n in n_categories.items() if n > 1}

    @property
    def time_column(self) -> int | None:
        """Which column of `encode` is the time, None where there is none."""
        return list(self.features).index("time") if "time" in self.features else None

    def encode(self, interactions: Interactions) -> np.ndarray:
        """int64 (n, F): the features of each interaction."""
        encoded = np.zeros((len(interactions.items), len(self.features)), np.int64)
        for column, name in enumerate(self.features):
            if name == "time" and interactions.has_times:
                encoded[:, column] = log2_buckets(gaps(interactions))
            elif name == "label" and interactions.ratings is not None:
                encoded[:, column] = self._labels(interactions.ratings)
            elif name in interactions.words:
                known = {word: n for n, word in enumerate(self.words[name], start=1)}
                numbers = np.array([known.get(word, 0) for word in interactions.words[name].tolist()], np.int64)
                encoded[:, column] = numbers[interactions.extras[name]]
            elif name in interactions.extras:
                encoded[:, column] = log2_buckets(interactions.extras[name])
        return encoded

    def _labels(self, ratings: np.ndarray) -> np.ndarray:
        labels = np.array(self.labels, np.float32)
        if not self.is_exact:
            return np.where(np.isnan(ratings), 0, np.searchsorted(labels, ratings, side="right") + 1)
        at = np.searchsorted(labels, ratings).clip(max=len(labels) - 1)
        return np.where(labels[at] == ratings, at + 1, 0)


def gaps(interactions: Interactions) -> np.ndarray:
    """float64 (n,): seconds since the interaction before, 0 for a user's first."""
    times = np.asarray(interactions.times, np.float64)
    gap_n = np.diff(times, prepend=times[:1])
    gap_n[interactions.offsets[:-1][np.diff(interactions.offsets) > 0]] = 0
    return gap_n


def _frequent(interactions: Interactions, name: str, is_train: np.ndarray) -> tuple[str, ...]:
    words = interactions.words[name].tolist()
    counts = np.bincount(interactions.extras[name][is_train], minlength=len(words))
    order = np.argsort(-counts, kind="stable")[:_N_WORDS]
    return tuple(words[n] for n in order if counts[n] and words[n])


def join_catalogue(
    interactions: Interactions, ids: SemanticIds, name: str, encoder: FeatureEncoder | None = None, *,
    positive_from: float | None = None,
) -> tuple[Histories, FeatureEncoder, SkippedRows]:  # fmt: skip
    """Histories of the items that the catalogue has; others are counted and left out. Fits an encoder where none is given.

    name: what messages call the catalogue. The split is that of the interactions before anything is left out.
    """
    row_of = {key: row for row, key in enumerate(ids.keys)}
    rows = np.array([row_of.get(key, -1) for key in interactions.item_keys], np.int32)
    parts = parts_of(interactions)
    is_known = rows[interactions.items] >= 0
    unknown = np.flatnonzero(rows < 0)
    skipped = SkippedRows()
    reason = f"items that {name} does not have, left out with their {int((~is_known).sum())} interactions"
    skipped.add(reason, len(unknown), interactions.item_keys[unknown[:3]].tolist())
    kept, parts = interactions.keep(is_known), parts[is_known]
    encoder = encoder or FeatureEncoder.fit(kept, parts == TRAIN, positive_from=positive_from)
    is_positive = None
    if encoder.positive_from is not None and kept.ratings is not None:
        is_positive = kept.ratings >= encoder.positive_from
    histories = Histories(
        kept.user_keys, kept.offsets, rows[kept.items], parts, encoder.encode(kept),
        gaps(kept) if encoder.has_time and kept.has_times else None, is_positive, kept.times,
    )  # fmt: skip
    return histories, encoder, skipped
