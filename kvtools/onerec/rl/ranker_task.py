"""Training of the ranker: batches of interactions with sampled negatives, and the AUC of held-out interactions.

Each training interaction is a positive of `hit`, and items drawn at random are its negatives: half evenly, half by popularity.
A column has labels where the interaction has a value. Held-out AUC is of validation interactions, with negatives drawn alike.

Legend: B interactions, G candidates, L latest items, X objectives, n interactions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kvtools.chance import rng_for
from kvtools.onerec.interactions.histories import Histories
from kvtools.onerec.rl.ranker import N_LATEST, PScore, auc
from kvtools.train.loop import Loss
from kvtools.world import World

_NEGATIVES = 4  # an interaction, in training
_HELD_OUT_NEGATIVES = 20


@dataclass(frozen=True)
class Objective:
    """One objective: a hit, or a column's value that is at least the threshold."""

    name: str
    column: str = ""  # "" is the hit
    threshold: float = 0.0
    weight: float = 1.0

    def labels(self, is_hit_BG: np.ndarray, values: Mapping[str, np.ndarray], index_B: np.ndarray) -> np.ndarray:
        """float32 (B, G), NaN where there is none. index_B: int64, the interactions that come first in each row."""
        if not self.column:
            return is_hit_BG.astype(np.float32)
        labels = np.full(is_hit_BG.shape, np.nan, np.float32)
        value = values[self.column][index_B]
        labels[:, 0] = np.where(np.isfinite(value), value >= self.threshold, np.nan)
        return labels


@dataclass(frozen=True)
class Examples:
    """Interactions, int64 (B,) each: their user, position in the history, and number; and candidates drawn for them."""

    users: np.ndarray
    positions: np.ndarray
    index: np.ndarray
    candidates_BG: np.ndarray  # int64: the item itself first

    def __len__(self) -> int:
        return len(self.users)

    def take(self, index: np.ndarray) -> "Examples":
        """Those of these numbers, int (B',)."""
        return Examples(*(x[index] for x in vars(self).values()))


class Candidates:
    """Draws candidates of interactions. popularity: int64 (I,)."""

    def __init__(self, histories: Histories, popularity: np.ndarray) -> None:
        self.histories, self._cumulative = histories, np.cumsum(popularity)
        users = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
        self._users, self._positions = users, np.arange(len(users)) - histories.offsets[users]

    def of(self, index: np.ndarray, n_negative: int, rng: np.random.Generator) -> Examples:
        """Interactions of these numbers, int64 (B,), with negatives."""
        n_even, n_items = n_negative // 2, len(self._cumulative)
        even = rng.integers(0, n_items, (len(index), n_even))
        drawn = rng.integers(0, max(1, self._cumulative[-1]), (len(index), n_negative - n_even))
        popular = np.searchsorted(self._cumulative, drawn, side="right").clip(max=n_items - 1)
        candidates = np.concatenate([self.histories.items[index][:, None], even, popular], axis=1)
        return Examples(self._users[index], self._positions[index], index, candidates.astype(np.int64))

    def later(self, mask: np.ndarray) -> np.ndarray:
        """Numbers of the interactions where the mask, bool (n,), is set that are not their user's first, int64 (m,)."""
        return np.flatnonzero(mask & (self._positions > 0))


def latest(histories: Histories, users: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """The last items before each cut, int64 (B, L), -1 where there are no more. users, cuts: int64 (B,)."""
    position = cuts[:, None] - 1 - np.arange(N_LATEST)
    index = histories.offsets[users][:, None] + np.maximum(position, 0)
    return np.where(position >= 0, histories.items[index.clip(max=max(0, len(histories.items) - 1))], -1).astype(np.int64)


class RankerTask:
    """A `train.loop.Task`. learnt: histories of the training part; values: its columns. held_out: all histories, a mask of
    those that are evaluated, bool (n,), and their columns; None where there are none."""

    def __init__(
        self, model: PScore, objectives: Sequence[Objective], learnt: Histories, values: Mapping[str, np.ndarray],
        popularity: np.ndarray, held_out: tuple[Histories, np.ndarray, Mapping[str, np.ndarray]] | None, *, batch: int,
        seed: int, device: str,
    ) -> None:  # fmt: skip
        self.model, self._objectives, self._values, self._batch = model, objectives, values, batch
        self._seed, self._device = seed, device
        self._candidates = Candidates(learnt, popularity)
        self._targets = self._candidates.later(np.ones(len(learnt.items), bool))
        self._held_out = None
        if held_out is not None:
            histories, mask, held_values = held_out
            drawer = Candidates(histories, popularity)
            index = drawer.later(mask)
            if len(index):
                examples = drawer.of(index, _HELD_OUT_NEGATIVES, rng_for(seed, "ranker", "valid"))
                self._held_out = (histories, examples, held_values)

    def n_steps(self) -> int:
        """Steps an epoch."""
        return max(1, -(-len(self._targets) // self._batch))

    def epoch(self, number: int) -> Iterator[Examples]:
        """The training interactions in batches, with fresh negatives."""
        rng = rng_for(self._seed, "ranker", number)
        order = self._targets[rng.permutation(len(self._targets))]
        for begin in range(0, len(order), self._batch):
            yield self._candidates.of(order[begin : begin + self._batch], _NEGATIVES, rng)

    def microbatches(self, batch: Examples, n: int, _own: slice) -> Sequence[Examples]:
        """The interactions in at most n parts, every n-th in one."""
        return [batch.take(np.arange(i, len(batch), n)) for i in range(min(n, len(batch)))]

    def loss(self, batch: Examples) -> Loss:
        """The loss of interactions, summed over them."""
        latest_BL, labels = self._arrays(self._candidates.histories, batch, self._values)
        items = torch.from_numpy(batch.candidates_BG).to(self._device)
        weights = [objective.weight for objective in self._objectives]
        total, towers = self.model.loss(latest_BL, items, labels, weights)
        figures: dict[str, torch.Tensor | float] = {"loss": total.detach()}
        figures |= {f"loss_{o.name}": towers[x] / items.shape[1] for x, o in enumerate(self._objectives)}
        return Loss(total, len(batch), figures, tokens=items.numel(), flops=6.0 * items.numel() * _n_weights(self.model))

    def _arrays(
        self, histories: Histories, batch: Examples, values: Mapping[str, np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        is_hit = batch.candidates_BG == batch.candidates_BG[:, :1]  # a negative may be drawn to be the item itself
        labels = np.stack([objective.labels(is_hit, values, batch.index) for objective in self._objectives], axis=2)
        latest_BL = latest(histories, batch.users, batch.positions)
        return torch.from_numpy(latest_BL).to(self._device), torch.from_numpy(labels).to(self._device)

    def after_step(self, _world: World) -> dict[str, float]:
        """Nothing follows an update."""
        return {}

    @torch.inference_mode()
    def validate(self) -> dict[str, float] | None:
        """Held-out AUC of each objective, by its own tower and by the P-Score; "score" is the mean of the latter."""
        if self._held_out is None:
            return None
        histories, examples, values = self._held_out
        towers, scores, labels = [], [], []
        for begin in range(0, len(examples), 512):
            part = examples.take(np.arange(begin, min(begin + 512, len(examples))))
            latest_BL, labels_BGX = self._arrays(histories, part, values)
            logits, score = self.model(latest_BL, torch.from_numpy(part.candidates_BG).to(self._device))
            towers.append(logits.cpu().numpy())
            scores.append(score.cpu().numpy())
            labels.append(labels_BGX.cpu().numpy())
        tower, score, label = np.concatenate(towers), np.concatenate(scores), np.concatenate(labels)
        figures: dict[str, float] = {}
        for x, objective in enumerate(self._objectives):
            is_known = np.isfinite(label[:, :, x])
            known = label[:, :, x][is_known] > 0
            if known.all() or not known.any():
                continue  # nothing to rank
            figures[f"auc_{objective.name}"] = auc(tower[:, :, x][is_known], known)
            figures[f"pscore_auc_{objective.name}"] = auc(score[is_known], known)
        of_score = [value for name, value in figures.items() if name.startswith("pscore_auc_")]
        return {"score": float(np.mean(of_score)), **figures} if of_score else None

    def describe(self, batch: Examples) -> str:
        """The first users of a batch, for a fault's message."""
        keys = [str(self._candidates.histories.user_keys[user]) for user in batch.users[:3]]
        return f"users {', '.join(keys)}{' …' if len(batch) > 3 else ''}"


def _n_weights(model: PScore) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("items"))
