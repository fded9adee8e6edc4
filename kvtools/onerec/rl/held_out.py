"""What held-out users get: their reward, hits and legality, before training, on the way and after it.

Each user is shown all of the history before a validation interaction, and the policy's k best items, by beams within the
catalogue, are rewarded as in training. Legality is that of beams without the trie; where it is rewarded, it is measured for all
users and added with its weight. A run without a reward of items or of legality is measured by NDCG. Not here: the test part,
which nobody reads.

Legend: R rows (a held-out interaction each), k items a user.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from kvtools.onerec.model.batching import Batcher, Neighbours
from kvtools.onerec.model.beam import n_users_at_once
from kvtools.onerec.model.onerec import OneRec
from kvtools.onerec.model.trie import Trie
from kvtools.onerec.recommend import metrics
from kvtools.onerec.rl import rollouts
from kvtools.onerec.rl.prompts import Prompts, futures, seen_ids
from kvtools.onerec.rl.rewards import FORMAT, Rewards

_ROWS = 128  # users at a time
_N_LEGALITY = 4  # of so many parts of the users the free beams are looked at where they are not rewarded
_LIST = 20  # beams of the hit rate, at least
_HIT = 10  # items of the hit rate


@dataclass(frozen=True)
class Measured:
    """The figures of each held-out row."""

    reward_R: np.ndarray  # float64: mean over the k best; NaN where none of them has a reward
    terms_R: Mapping[str, np.ndarray]
    rank_R: np.ndarray  # int64: of the ID of the item that came, -1 where it is not in the list
    legal_R: np.ndarray  # float64: the share of legal IDs among free beams; NaN where they were not looked at

    @property
    def hit_R(self) -> np.ndarray:
        """Whether the item that came is among the ten best, float64 (R,)."""
        return ((self.rank_R >= 0) & (self.rank_R < _HIT)).astype(np.float64)


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows and what is needed to measure on them. values: of each column, at all interactions of the batcher."""

    batcher: Batcher
    prompts: Prompts
    trie: Trie
    neighbours: Neighbours | None
    rewards: Rewards
    values: Mapping[str, np.ndarray]
    k: int
    n_free: int
    exclude_seen: bool
    device: str

    @torch.inference_mode()
    def measure(self, model: OneRec) -> Measured:
        """The figures of a model, in eval mode and on the device."""
        trie, histories = self.trie.to(self.device), self.batcher.histories
        n_rows = len(self.prompts)
        reward_R, legal_R, rank_R = np.full(n_rows, np.nan), np.full(n_rows, np.nan), np.full(n_rows, -1, np.int64)
        terms_R = {term.name: np.full(n_rows, np.nan) for term in self.rewards.item_terms}
        weight = self.rewards.weight_of(FORMAT)
        at_once = min(_ROWS, n_users_at_once(trie, max(model.vocabulary.codes), max(self.k, _LIST)))
        stride = 1 if weight else max(1, -(-n_rows // at_once) // _N_LEGALITY)
        for number, rows in enumerate(self.batcher.by_length(self.prompts.rows, at_once)):
            prompts = self.prompts.take(rows)
            neighbours = self.neighbours and (self.neighbours[0][rows], self.neighbours[1][rows])
            context = model.context(self.batcher.batch(prompts.rows, neighbours).to(self.device))
            barred = None
            if self.exclude_seen:
                barred = torch.from_numpy(seen_ids(histories, prompts, trie)).to(self.device)
            group = rollouts.beams(model, context, trie, max(self.k, _LIST), barred_BU=barred)
            ids = group.ids_BG.cpu().numpy()
            future = futures(histories, prompts, trie, 1)
            rank_R[rows] = metrics.rank_of(ids, future.ids_BH[:, 0])
            ids = ids[:, : self.k]
            terms = self.rewards.score(prompts, future, ids, values=self.values, held_out=True)
            reward_R[rows] = _row_means(self.rewards.total(terms, ids), ids)
            for name, term in terms.items():
                terms_R[name][rows] = _row_means(term, ids)
            if number % stride == 0:
                free = rollouts.free_beams(model, context, trie, self.n_free).ids_BG
                legal_R[rows] = (free >= 0).double().mean(1).cpu().numpy()
        if weight:
            reward_R = weight * legal_R + (reward_R if terms_R else 0.0)
        elif not terms_R:
            reward_R = np.where(rank_R >= 0, 1 / np.log2(rank_R.clip(min=0) + 2.0), 0.0)
        return Measured(reward_R, terms_R, rank_R, legal_R)

    def figures(self, measured: Measured) -> dict[str, float]:
        """What the log shows of a measurement."""
        figures = {"valid_reward": mean_of(measured.reward_R)}
        figures |= {
            f"valid_reward_{name}": mean_of(term) for name, term in measured.terms_R.items() if len(measured.terms_R) > 1
        }
        figures |= {f"valid_{name}": value for name, value in metrics.summary(measured.rank_R, (_HIT,)).items()}
        return {**figures, "valid_legal_share": mean_of(measured.legal_R), "valid_users": float(len(self.prompts))}


def mean_of(values: np.ndarray) -> float:
    """The mean of float64 (R,), NaN left out; 0 where nothing is left."""
    is_known = np.isfinite(values)
    return float(values[is_known].mean()) if is_known.any() else 0.0


def gain(before_R: np.ndarray, after_R: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The mean difference of a figure of the same users, float64 (R,), and its 95 % interval over draws of users, by the normal
    approximation; users whose figure is not finite are left out."""
    difference = after_R - before_R
    difference = difference[np.isfinite(difference)]
    if not len(difference):
        return 0.0, (0.0, 0.0)
    mean, reach = float(difference.mean()), 0.0
    if len(difference) > 1:
        reach = 1.959964 * float(difference.std(ddof=1)) / len(difference) ** 0.5
    return mean, (mean - reach, mean + reach)


def _row_means(values_Rk: np.ndarray, ids_Rk: np.ndarray) -> np.ndarray:
    """The mean of each row over its items that have a number; NaN where there is none."""
    is_known = np.isfinite(values_Rk) & (ids_Rk >= 0)
    total, count = np.where(is_known, values_Rk, 0.0).sum(1), is_known.sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
