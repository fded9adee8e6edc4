"""Rewards of proposed items: hits, a column of the interactions, a trained ranker, and the share of listed items.

A reward of a column is the value that the user gave the item, where the training part says it; of other items it is the mean
value of the item in the training part, drawn towards the mean of all by a few interactions' worth. The format reward is not
here, since it is of other proposals (task.py).

Source of the share: OneRec Technical Report section 4.3.3. Legend: B prompts, G proposals, H items of a future, U distinct IDs,
n interactions of the training part.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from kvtools.errors import Usage
from kvtools.onerec.rl.prompts import Futures, Prompts

FORMAT, HIT, COLUMN, PSCORE, DURATION = "format", "hit", "column", "pscore", "duration"
_NAMES = (HIT, COLUMN, PSCORE, FORMAT, DURATION)
_PRIOR = 5.0  # interactions' worth of the mean of all in the mean of an item: our choice
_WITH_VALUE = (COLUMN, PSCORE)


@dataclass(frozen=True)
class Term:
    """One --reward: its name as written, what it is, of which column or model, and its weight."""

    name: str
    kind: str
    of: str = ""
    weight: float = 1.0


def parse_rewards(words: Sequence[str]) -> list[Term]:
    """The terms of --reward NAME[:WEIGHT]. Raises Usage for what is none, or is there twice."""
    terms = [_parse(word) for word in words]
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise Usage(f"--reward {name} is given twice. Give it once, with the sum of the weights.")
    return terms


def _parse(word: str) -> Term:
    kind, _, rest = word.partition(":")
    if kind not in _NAMES:
        raise Usage(f"--reward {word}: there is no such reward. Give hit, column:NAME, pscore:MODEL, format or duration.")
    of, weight = ("", rest) if kind not in _WITH_VALUE else _split_weight(rest)
    if kind in _WITH_VALUE and not of:
        raise Usage(f"--reward {word} names nothing. Give column:NAME or pscore:MODEL.")
    number = _number(weight) if weight or word.endswith(":") else 1.0
    if number is None:
        raise Usage(f"--reward {word}: {weight!r} is not a weight. Give a finite number after the colon, as hit:0.5.")
    # a ranker is named without its folder, which is another one on another machine
    name = os.path.basename(of) if kind == PSCORE else of
    return Term(f"{kind}:{name}" if of else kind, kind, of, number)


def _split_weight(rest: str) -> tuple[str, str]:
    """NAME and WEIGHT of NAME:WEIGHT; a name may hold colons, and a last part that is no number belongs to it."""
    of, _, last = rest.rpartition(":")
    return (of, last) if of and _number(last) is not None else (rest, "")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class Ranker(Protocol):
    """What scores items for users whose history is shown up to a cut."""

    def score(self, prompts: Prompts, items_BG: np.ndarray, *, held_out: bool) -> np.ndarray:
        """float64 (B, G). items_BG: int64, items of the catalogue. held_out: of which histories the prompts are."""


@dataclass(frozen=True)
class ColumnValues:
    """A column of the training part: the value of each interaction, float64 (n,), NaN where there is none, and the mean of each
    ID, float64 (U,)."""

    values: np.ndarray
    mean_U: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, ids: np.ndarray, n_ids: int) -> "ColumnValues":
        """values: float64 (n,). ids: int64 (n,), the ID of each interaction. Raises ValueError where no value is a number."""
        is_known = np.isfinite(values)
        if not is_known.any():
            raise ValueError("no interaction of the training part has a number there")
        total = np.bincount(ids[is_known], values[is_known], minlength=n_ids)
        count = np.bincount(ids[is_known], minlength=n_ids)
        return cls(values, (total + _PRIOR * values[is_known].mean()) / (count + _PRIOR))


@dataclass(frozen=True)
class Share:
    """Listed IDs, bool (U,), the share of the proposals that they may have, and what their reward is multiplied with above."""

    is_listed_U: np.ndarray
    target: float = 0.1
    factor: float = 0.5


@dataclass(frozen=True)
class Rewards:
    """The terms of a run, and what they read. item_of_id: int64 (U,), the most popular item of each ID."""

    terms: Sequence[Term]
    item_of_id: np.ndarray
    columns: Mapping[str, ColumnValues] = field(default_factory=dict)
    rankers: Mapping[str, Ranker] = field(default_factory=dict)
    share: Share | None = None

    @property
    def item_terms(self) -> list[Term]:
        """The terms that are a reward of each proposed item."""
        return [term for term in self.terms if term.kind not in (FORMAT, DURATION)]

    def weight_of(self, kind: str) -> float:
        """The weight of the format reward or of the duration's; 0 where there is none."""
        return sum(term.weight for term in self.terms if term.kind == kind)

    def score(
        self, prompts: Prompts, future: Futures, ids_BG: np.ndarray, *, values: Mapping[str, np.ndarray], held_out: bool = False
    ) -> dict[str, np.ndarray]:
        """Each term's reward of the proposals by its name, float64 (B, G); NaN where there is no item.

        values: the values of each column at the interactions that the future's index means.
        """
        rewards: dict[str, np.ndarray] = {}
        for term in self.item_terms:
            if term.kind == HIT:
                reward = (ids_BG[:, :, None] == future.ids_BH[:, None, :]).any(2).astype(np.float64)
            elif term.kind == COLUMN:
                reward = self.columns[term.of].mean_U[ids_BG]
                own_BH = values[term.of][future.index_BH]
                for h in range(own_BH.shape[1]):
                    is_own = (ids_BG == future.ids_BH[:, h : h + 1]) & np.isfinite(own_BH[:, h : h + 1])
                    reward = np.where(is_own, own_BH[:, h : h + 1], reward)
            else:
                reward = self.rankers[term.of].score(prompts, self.item_of_id[ids_BG], held_out=held_out)
            rewards[term.name] = np.where(ids_BG >= 0, reward, np.nan)
        return rewards

    def total(self, rewards: Mapping[str, np.ndarray], ids_BG: np.ndarray, exposure: float = 0.0) -> np.ndarray:
        """The weighted sum of the terms, float64 (B, G). exposure: the present share of listed items among the proposals."""
        total = sum((term.weight * rewards[term.name] for term in self.item_terms), start=np.zeros(ids_BG.shape))
        if self.share is not None and exposure > self.share.target:
            # a factor would raise what is below 0
            listed = np.where(total > 0, total * self.share.factor, total / max(self.share.factor, 1e-6))
            total = np.where(self.share.is_listed_U[ids_BG], listed, total)
        return total
