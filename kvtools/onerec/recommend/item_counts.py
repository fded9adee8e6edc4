"""What the training part counts of items, and the baselines that recommend by counts alone."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.recommend import cooccurrence
from kvtools.onerec.recommend.cooccurrence import Cooccurrence, Settings, top_popular
from kvtools.onerec.recommend.query import Query

Baseline = Literal["popular", "co-occurrence"]


@dataclass(frozen=True)
class ItemCounts:
    """Counts of the N items of a catalogue."""

    popularity: np.ndarray  # int64 (N,): interactions with each item
    latest: np.ndarray  # float64 (N,): the time of the last one, -inf where there is none
    cooccurrence: Cooccurrence

    @classmethod
    def fit(cls, histories: Histories, is_train: np.ndarray, n_items: int) -> "ItemCounts":
        """The counts of the training part, bool (n,)."""
        offsets, items = histories.only(is_train)
        latest = np.full(n_items, -np.inf)
        np.maximum.at(latest, items, histories.times[is_train].astype(np.float64))
        counted = cooccurrence.fit(offsets, items, n_items, Settings())
        return cls(cooccurrence.popularity(items, n_items), latest, counted)

    def recommend(
        self, baseline: Baseline, query: Query, histories: Histories, k: int, *, exclude_seen: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items by a baseline, int32 (B, k), -1 where there are no more, and their scores, float32 (B, k)."""
        offsets, items = query.past(histories)
        if baseline == "popular":
            return top_popular(self.popularity, offsets, items, k, exclude_seen=exclude_seen)
        best, scores = self.cooccurrence.nearest(offsets, items, k, exclude_seen=exclude_seen)
        is_cold = query.lengths == 0
        if is_cold.any():  # without a history nothing co-occurs: such users get what is popular
            empty = np.zeros(int(is_cold.sum()) + 1, np.int64)
            best[is_cold], scores[is_cold] = top_popular(self.popularity, empty, items[:0], k, exclude_seen=False)
        return best, scores
