"""Users' histories in the numbers of a catalogue: what a model is trained on and recommends from.

Legend: n interactions, U users, F features. The invariant: the interactions of a user lie together, in time order. Not here:
how interactions and features become numbers (features.py).
"""

from dataclasses import dataclass

import numpy as np

N_BUCKETS = 40  # of a feature that is a number


@dataclass(frozen=True)
class Histories:
    """Interactions of all users, user after user."""

    user_keys: np.ndarray  # strings (U,)
    offsets: np.ndarray  # int64 (U+1,)
    items: np.ndarray  # int32 (n,): numbers of the catalogue
    parts: np.ndarray  # int8 (n,)
    features: np.ndarray  # int64 (n, F)
    gaps: np.ndarray | None  # float64 (n,): seconds, for averages; None where there is no time
    is_positive: np.ndarray | None  # bool (n,)
    times: np.ndarray  # (n,): as in Interactions

    def __len__(self) -> int:
        return len(self.user_keys)

    def only(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The interactions where a mask, bool (n,), is set: offsets int64 (U+1,) and items int32."""
        counts = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
        return counts[self.offsets], self.items[mask]

    def of(self, mask: np.ndarray) -> "Histories":
        """Histories of the interactions where a mask, bool (n,), is set, as if there were no others."""
        offsets, items = self.only(mask)
        gaps, is_positive = (None if column is None else column[mask] for column in (self.gaps, self.is_positive))
        features, times = self.features[mask], self.times[mask]
        return Histories(self.user_keys, offsets, items, self.parts[mask], features, gaps, is_positive, times)


def log2_buckets(values: np.ndarray) -> np.ndarray:
    """int64, the shape of values: 1 for values below 1, then one more for each doubling, up to N_BUCKETS; 0 for NaN."""
    buckets = np.floor(np.log2(np.maximum(np.nan_to_num(values), 0.5))) + 2
    return np.where(np.isnan(values), 0, buckets.clip(1, N_BUCKETS)).astype(np.int64)
